//! How fast it was.

use super::answer::Answer;
use crate::output::Output;
use crate::setup::Setup;
use serde::Serialize;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// When tokens came.
pub(super) struct Timings {
    num_prompt_tokens: usize,
    num_tokens: usize,
    started: Instant,
    first_token: Option<Duration>,
    last_token: Duration,
}

impl Timings {
    pub(super) fn start(num_prompt_tokens: usize) -> Self {
        let started = Instant::now();
        Self { num_prompt_tokens, num_tokens: 0, started, first_token: None, last_token: Duration::ZERO }
    }

    pub(super) fn count_token(&mut self) {
        self.num_tokens += 1;
        self.last_token = self.started.elapsed();
        self.first_token.get_or_insert(self.last_token);
    }

    /// Tokens after the first in the time that they took; `None` with one token.
    fn tokens_per_s(&self) -> Option<f64> {
        let decoding = self.last_token.checked_sub(self.first_token?)?.as_secs_f64();
        (self.num_tokens > 1 && decoding > 0.0).then(|| (self.num_tokens - 1) as f64 / decoding)
    }
}

#[derive(Serialize)]
struct Report<'a> {
    model: &'a str,
    #[serde(flatten)]
    answer: &'a Answer,
    usage: Usage,
    timings: Speeds,
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
}

#[derive(Serialize)]
struct Speeds {
    time_to_first_token_ms: Option<f64>,
    tokens_per_second: Option<f64>,
}

/// One JSON object on standard output.
pub(super) fn print_json(model: &str, answer: &Answer, timings: &Timings) -> anyhow::Result<()> {
    let (prompt_tokens, completion_tokens) = (timings.num_prompt_tokens, timings.num_tokens);
    let report = Report {
        model,
        answer,
        usage: Usage { prompt_tokens, completion_tokens, total_tokens: prompt_tokens + completion_tokens },
        timings: Speeds {
            time_to_first_token_ms: timings.first_token.map(|time| time.as_secs_f64() * 1e3),
            tokens_per_second: timings.tokens_per_s(),
        },
    };
    let mut text = serde_json::to_string_pretty(&report)?;
    text.push('\n');
    Ok(Output::print(&text)?)
}

/// One line on standard error.
pub(super) fn print_summary(timings: &Timings, setup: &Setup) {
    let first = timings.first_token.unwrap_or_default().as_secs_f64();
    let speed = timings.tokens_per_s().map_or_else(String::new, |speed| format!("{speed:.1} tokens/s, "));
    let is_coloured = setup.is_coloured && std::io::stderr().is_terminal();
    let (before, after) = if is_coloured { ("\x1b[2m", "\x1b[0m") } else { ("", "") };
    let tokens = if timings.num_tokens == 1 { "token" } else { "tokens" };
    // The answer is out; nobody may be reading what it cost.
    let _ = writeln!(
        std::io::stderr(),
        "{before}{} {tokens}, {speed}time to first token {first:.3} s ({} tokens of prompt){after}",
        timings.num_tokens,
        timings.num_prompt_tokens,
    );
}
