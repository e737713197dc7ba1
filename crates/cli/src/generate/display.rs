//! An answer as it arrives: thinking dimmed, the answer plain. Where standard
//! output is no terminal, only the answer goes there, and the thinking to
//! standard error.

use crate::output::Output;
use crate::setup::Setup;
use chorale_harmony::{Delta, Kind, Part, StreamDecoder, StreamParser};
use chorale_plan::TokenId;
use std::io::{self, IsTerminal, Write};

const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

/// Writes tokens as text.
pub(super) struct Display {
    reader: Reader,
    output: Output,
    /// Thinking goes where the answer goes.
    is_terminal: bool,
    is_dimmed: bool,
    is_coloured: bool,
    /// Whether the last thing on each stream was the end of a line.
    at_line_start: bool,
}

enum Reader {
    Raw(StreamDecoder),
    Harmony(StreamParser),
}

impl Display {
    pub(super) fn new(raw: bool, setup: &Setup) -> anyhow::Result<Self> {
        let is_terminal = io::stdout().is_terminal();
        let reads_colours = if is_terminal { true } else { io::stderr().is_terminal() };
        Ok(Self {
            reader: if raw {
                Reader::Raw(StreamDecoder::new())
            } else {
                Reader::Harmony(StreamParser::new())
            },
            output: Output::lock(),
            is_terminal,
            is_dimmed: false,
            is_coloured: reads_colours && setup.is_coloured,
            at_line_start: true,
        })
    }

    /// Shows what a token brings.
    pub(super) fn push(&mut self, token: TokenId) -> anyhow::Result<()> {
        let deltas = match &mut self.reader {
            Reader::Raw(decoder) => {
                let text = decoder.push(token);
                self.answer(&text)?;
                Vec::new()
            }
            Reader::Harmony(parser) => parser.push(token),
        };
        self.show(&deltas)?;
        Ok(self.output.flush()?)
    }

    /// Shows what was held back, and ends the line.
    pub(super) fn finish(mut self) -> anyhow::Result<()> {
        match &mut self.reader {
            Reader::Raw(decoder) => {
                let text = decoder.finish();
                self.answer(&text)?;
            }
            Reader::Harmony(parser) => {
                let deltas = parser.finish();
                self.show(&deltas)?;
            }
        }
        self.dim(false)?;
        if !self.at_line_start {
            self.output.write_all(b"\n")?;
        }
        Ok(self.output.flush()?)
    }

    fn show(&mut self, deltas: &[Delta]) -> io::Result<()> {
        for delta in deltas {
            match (delta.kind(), &delta.part) {
                (Kind::Reasoning, Part::Text(text)) => self.thinking(text)?,
                (Kind::Reasoning, Part::Ended(_)) => self.thinking("\n\n")?,
                (Kind::Content, Part::Text(text)) => self.answer(text)?,
                (Kind::Content, Part::Ended(_)) => self.end_line()?,
                (Kind::ToolCall { name }, Part::Started) => {
                    let call = format!("{name}(");
                    self.answer(&call)?;
                }
                (Kind::ToolCall { .. }, Part::Text(text)) => self.answer(text)?,
                (Kind::ToolCall { .. }, Part::Ended(_)) => self.answer(")\n")?,
                (Kind::Reasoning | Kind::Content, Part::Started) | (Kind::NotAssistant, _) => {}
            }
        }
        Ok(())
    }

    fn thinking(&mut self, text: &str) -> io::Result<()> {
        if self.is_terminal {
            self.dim(true)?;
            return self.output.write_all(text.as_bytes());
        }
        let (before, after) = if self.is_coloured { (DIM, PLAIN) } else { ("", "") };
        // A reader that left standard error alone misses nothing it asked for.
        let _ = write!(io::stderr(), "{before}{text}{after}");
        Ok(())
    }

    fn answer(&mut self, text: &str) -> io::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        self.dim(false)?;
        self.at_line_start = text.ends_with('\n');
        self.output.write_all(text.as_bytes())
    }

    fn end_line(&mut self) -> io::Result<()> {
        if self.at_line_start { Ok(()) } else { self.answer("\n") }
    }

    fn dim(&mut self, dimmed: bool) -> io::Result<()> {
        if self.is_dimmed == dimmed {
            return Ok(());
        }
        self.is_dimmed = dimmed;
        if !self.is_coloured {
            return Ok(());
        }
        self.output.write_all(if dimmed { DIM } else { PLAIN }.as_bytes())
    }
}
