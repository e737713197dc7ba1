//! Arguments of `chorale generate`, with those of its values that are about
//! one run alone and so are no settings.

use super::{MemoryArgs, SamplingArgs};
use clap::Args;
use std::str::FromStr;

/// Arguments of `chorale generate`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, override_usage = "chorale generate [OPTIONS] [MODEL] <PROMPT>")]
pub(crate) struct GenerateArgs {
    /// What to answer, after the model if one is named; - reads it from standard input
    // One list, for clap would take a lone word before a flag for the last of two.
    #[arg(value_name = "[MODEL] PROMPT", num_args = 1..=2, required = true)]
    words: Vec<String>,
    /// A directory, a hub id such as openai/gpt-oss-20b, or demo
    #[arg(long = "model", value_name = "MODEL", id = "model")]
    model: Option<String>,
    /// Instructions for the model, as its developer
    #[arg(long, value_name = "TEXT", help_heading = "Conversation")]
    pub(crate) system: Option<String>,
    /// The date that the model is told; today if not given
    #[arg(long, value_name = "YYYY-MM-DD", value_parser = parse_date, help_heading = "Conversation")]
    pub(crate) system_date: Option<String>,
    /// Continue the prompt as it is, without a conversation around it; special tokens are read as such
    #[arg(long, conflicts_with_all = ["system", "system_date", "reasoning_effort"],
          help_heading = "Conversation")]
    pub(crate) raw: bool,
    /// Print one JSON object instead of text
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
    /// Report the log-probabilities of each token and of the N most probable ones, at most 20
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=20),
          allow_negative_numbers = true, help_heading = "Output")]
    pub(crate) logprobs: Option<u32>,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    /// Add BIAS, from -100 to 100, to the logit of token ID; may be given often
    #[arg(long, value_name = "ID=BIAS", help_heading = "Sampling")]
    pub(crate) logit_bias: Vec<LogitBias>,
    /// The same seed gives the same text; another each time if not given
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = "Sampling")]
    pub(crate) seed: Option<u64>,
    /// Go on past tokens that end an answer
    #[arg(long, help_heading = "Sampling")]
    pub(crate) ignore_eos: bool,
    #[command(flatten)]
    pub(crate) memory: MemoryArgs,
}

impl GenerateArgs {
    /// The model that was named, if one was.
    pub(crate) fn model(&self) -> Option<&str> {
        match self.words.as_slice() {
            [model, _] => Some(model),
            _ => self.model.as_deref(),
        }
    }

    /// What to answer.
    pub(crate) fn prompt(&self) -> &str {
        self.words.last().map_or("", String::as_str)
    }

    /// True if the model was named twice, or there are more words than two.
    pub(crate) fn is_overfull(&self) -> bool {
        self.words.len() > 2 || self.words.len() == 2 && self.model.is_some()
    }
}

const EXAMPLES: &str = "\
Examples:
  chorale generate \"Why is the sky blue?\"
  chorale generate openai/gpt-oss-20b --system \"Answer in French.\" \"Why is the sky blue?\"
  chorale generate ./checkpoint --temperature 0 --max-tokens 64 --json - < prompt.txt
  chorale generate --raw \"<|start|>user<|message|>Hi<|end|><|start|>assistant\"";

/// `ID=BIAS`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct LogitBias {
    /// Whose logit; the vocabulary's size is checked with the model.
    pub(crate) token: u32,
    /// What is added to it.
    pub(crate) bias: f32,
}

/// The range that OpenAI's API has: it is as good as a ban or a must.
const BIAS_MAX: f32 = 100.0;

impl FromStr for LogitBias {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let malformed = || "must be a token id, =, and a number, such as 1734=-100".to_owned();
        let (token, bias) = text.split_once('=').ok_or_else(malformed)?;
        let token = token.trim().parse().map_err(|_| malformed())?;
        let bias: f32 = bias.trim().parse().map_err(|_| malformed())?;
        if !(-BIAS_MAX..=BIAS_MAX).contains(&bias) {
            return Err("the bias must be a number from -100 to 100".to_owned());
        }
        Ok(Self { token, bias })
    }
}

/// Takes a day of the calendar, as the model is told it.
/// A day of the calendar, as it was written.
pub(crate) fn parse_date(text: &str) -> Result<String, String> {
    let is_day = is_calendar_day(text).unwrap_or(false);
    is_day.then(|| text.to_owned()).ok_or_else(|| "must be a day such as 2025-06-28".to_owned())
}

/// `None` for what does not look like a date at all.
fn is_calendar_day(text: &str) -> Option<bool> {
    let digits = |range: std::ops::Range<usize>| {
        let part = text.get(range)?;
        part.bytes().all(|byte| byte.is_ascii_digit()).then(|| part.parse::<u32>().ok())?
    };
    let (year, month, day) = (digits(0..4)?, digits(5..7)?, digits(8..10)?);
    let is_leap = year % 4 == 0 && year % 100 != 0 || year % 400 == 0;
    let num_days = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 if is_leap => 29,
        2 => 28,
        _ => return Some(false),
    };
    let is_separated = text.len() == 10 && text.get(4..5) == Some("-") && text.get(7..8) == Some("-");
    Some(is_separated && (1..=num_days).contains(&day))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bias_is_an_id_and_a_number() {
        assert_eq!("1734=-100".parse(), Ok(LogitBias { token: 1734, bias: -100.0 }));
        assert_eq!(" 0 = 0.5".parse(), Ok(LogitBias { token: 0, bias: 0.5 }));
        for bad in
            ["", "1734", "=1", "1734=", "-1=1", "1734=nan", "1734=101", "1734=inf", "a=b", "5000000000=1"]
        {
            assert!(bad.parse::<LogitBias>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_date_is_a_day_of_the_calendar() {
        for good in ["2025-06-28", "2024-02-29", "2000-02-29", "1999-12-31"] {
            assert_eq!(parse_date(good).as_deref(), Ok(good));
        }
        for bad in [
            "",
            "today",
            "2025-02-29",
            "1900-02-29",
            "2025-13-01",
            "2025-00-01",
            "2025-04-31",
            "2025-06-00",
            "2025/06/28",
            "25-06-28",
            "2025-06-281",
            "+025-06-28",
            "２025-06-28",
        ] {
            assert!(parse_date(bad).is_err(), "{bad}");
        }
    }
}
