//! Arguments of the commands that measure a model: `chorale logits` for what
//! it computes, `chorale bench` for how fast.

use super::{MemoryArgs, ModelArg};
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Arguments of `chorale logits`.
#[derive(Debug, Args)]
#[command(after_help = LOGITS_EXAMPLES)]
pub(crate) struct LogitsArgs {
    #[command(flatten)]
    pub(crate) model: ModelArg,
    /// A JSON object of token ids by name: {"p17": [1, 2, 3]}
    #[arg(long, value_name = "FILE.json", help_heading = "Files")]
    pub(crate) tokens: PathBuf,
    /// Where to write NAME.logits and NAME.positions
    #[arg(long, value_name = "FILE.safetensors", help_heading = "Files")]
    pub(crate) out: PathBuf,
    /// Write the logits of the last N positions only
    #[arg(long, value_name = "N", value_parser = at_least_one(), allow_negative_numbers = true,
          help_heading = "What to compute")]
    pub(crate) last: Option<u32>,
    /// Compute prompts in slices of N tokens
    #[arg(long, value_name = "N", value_parser = at_least_one(), allow_negative_numbers = true,
          help_heading = "What to compute")]
    pub(crate) slice: Option<u32>,
    /// Also continue each prompt by its N most probable tokens, ends ignored, as NAME.generated
    #[arg(long, value_name = "N", value_parser = at_least_one(), allow_negative_numbers = true,
          help_heading = "What to compute")]
    pub(crate) generate: Option<u32>,
    #[command(flatten)]
    pub(crate) memory: MemoryArgs,
}

const LOGITS_EXAMPLES: &str = "\
Examples:
  chorale logits ./checkpoint --tokens prompts.json --out logits.safetensors --last 4
  chorale logits ./checkpoint --tokens prompts.json --out logits.safetensors --slice 7 --generate 64";

/// Arguments of `chorale bench`.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// What to measure.
    #[command(subcommand)]
    pub(crate) measurement: Measurement,
}

/// What to measure.
#[derive(Debug, Subcommand)]
pub(crate) enum Measurement {
    /// Time steps inside this process, without a server; one JSON line a measurement
    Offline(OfflineArgs),
}

/// Arguments of `chorale bench offline`.
#[derive(Debug, Args)]
#[command(after_help = OFFLINE_EXAMPLES)]
pub(crate) struct OfflineArgs {
    #[command(flatten)]
    pub(crate) model: ModelArg,
    /// Tokens of each prompt
    #[arg(long, value_name = "TOKENS", value_parser = at_least_one(), default_value_t = 128,
          allow_negative_numbers = true, help_heading = "Load")]
    pub(crate) prompt_tokens: u32,
    /// Tokens to generate for each sequence
    #[arg(long, value_name = "TOKENS", value_parser = at_least_one(), default_value_t = 64,
          allow_negative_numbers = true, help_heading = "Load")]
    pub(crate) gen_tokens: u32,
    /// Sequences at once
    #[arg(long, value_name = "SEQUENCES", value_parser = at_least_one(), default_value_t = 1,
          allow_negative_numbers = true, help_heading = "Load")]
    pub(crate) batch: u32,
    /// Runs before those that are timed
    #[arg(long, value_name = "RUNS", value_parser = clap::value_parser!(u32).range(0..=1000),
          default_value_t = 1, allow_negative_numbers = true, help_heading = "Load")]
    pub(crate) warmup: u32,
    /// Runs that are timed
    #[arg(long, value_name = "RUNS", value_parser = clap::value_parser!(u32).range(1..=1000),
          default_value_t = 1, allow_negative_numbers = true, help_heading = "Load")]
    pub(crate) repeat: u32,
    #[command(flatten)]
    pub(crate) memory: MemoryArgs,
}

const OFFLINE_EXAMPLES: &str = "\
Examples:
  chorale bench offline demo
  chorale bench offline openai/gpt-oss-20b --prompt-tokens 512 --gen-tokens 128 --batch 8 --threads 16";

/// Counts that arithmetic on token numbers stays far from overflowing with.
const COUNT_MAX: i64 = 1 << 30;

fn at_least_one() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=COUNT_MAX)
}
