//! Arguments of `chorale inspect`; what they ask is answered in `inspect`.

use super::{DeviceArgs, MemoryArgs, ModelArg, ParallelArgs};
use clap::Args;
use serde::Serialize;

/// Arguments of `chorale inspect`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    pub(crate) model: ModelArg,
    #[command(flatten)]
    pub(crate) parallel: ParallelArgs,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    #[command(flatten)]
    pub(crate) memory: MemoryArgs,
    #[command(flatten)]
    pub(crate) step: StepArgs,
    /// Cached tokens that each sequence of a decode step reads
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32), default_value_t = 0,
          allow_negative_numbers = true, help_heading = "Decode")]
    pub(crate) context: u32,
    /// Print one JSON object instead of tables
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
}

/// What steps are planned for.
#[derive(Debug, Args, Serialize)]
pub(crate) struct StepArgs {
    /// Sequences that are computed together, on GPUs (256)
    #[arg(long, value_name = "SEQUENCES", allow_negative_numbers = true, help_heading = "Ranks")]
    max_num_seqs: Option<String>,
}

const EXAMPLES: &str = "\
Examples:
  chorale inspect openai/gpt-oss-20b
  chorale inspect ./checkpoint --device-memory 80GiB --memory-bandwidth 3.35TB/s
  chorale inspect ./checkpoint --tensor-parallel-size 2 --data-parallel-size 4 --device-memory 24GiB --json

A directory with nothing but config.json will do; where weights are, they are checked, too.";
