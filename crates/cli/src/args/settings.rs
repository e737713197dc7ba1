//! Arguments that are settings, in the groups in which commands take them. A
//! field's name is the setting's; its value is text until `config` checks it.

use crate::config::ReasoningEffort;
use crate::dtype::{DENSE_WORDS, KV_WORDS};
use clap::Args;
use clap::builder::PossibleValuesParser;
use serde::Serialize;
use std::path::PathBuf;

/// Settings of every command.
#[derive(Debug, Args, Serialize)]
pub(crate) struct SharedArgs {
    /// A TOML file of settings instead of ~/.config/chorale/config.toml
    #[arg(long, global = true, value_name = "FILE", help_heading = "Settings")]
    #[serde(skip)]
    pub(crate) config: Option<PathBuf>,
    /// What to log on standard error: error, warn, info, debug, trace, or directives
    #[arg(long, global = true, value_name = "LEVEL", help_heading = "Settings")]
    log_level: Option<String>,
    /// What computes: auto, cpu, cuda, or some GPUs such as cuda:0 or cuda:0,1
    #[arg(long, global = true, value_name = "DEVICE", help_heading = "Settings")]
    device: Option<String>,
    /// By what GPUs exchange rows: NCCL where the system finds it (auto), a library that is named by its
    /// path, or the host (off)
    #[arg(long, global = true, value_name = "auto|off|PATH", help_heading = "Settings")]
    nccl: Option<String>,
    /// Let kernels exchange what is small between GPUs of one host, where they reach each other and
    /// NCCL carries the rest: auto or off
    #[arg(long, global = true, value_name = "auto|off", help_heading = "Settings")]
    peer_exchange: Option<String>,
    /// Memory of the host for experts that do not fit their GPUs, such as 64GiB for all ranks of this process;
    /// what is free, less a margin (auto), or none (off)
    #[arg(long, global = true, value_name = "auto|off|SIZE", help_heading = "Settings")]
    expert_host_memory: Option<String>,
    /// Answers that are the same to the last bit whatever else is computed beside them, at some cost of
    /// speed on GPUs; CPUs always give them. Of a cluster, each worker is told by itself
    #[arg(long, global = true, value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", help_heading = "Settings")]
    batch_invariant: Option<bool>,
    /// CPU threads; all cores if not given
    #[arg(long, global = true, value_name = "N", allow_negative_numbers = true, help_heading = "Settings")]
    threads: Option<String>,
    /// The hub's branch, tag or commit; its main branch if not given
    #[arg(long, global = true, value_name = "REVISION", help_heading = "Model files")]
    revision: Option<String>,
    /// Never touch the network
    #[arg(long, global = true, value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", help_heading = "Model files")]
    offline: Option<bool>,
    /// Where the demo model is unpacked; the user's cache directory if not given
    #[arg(long, global = true, value_name = "DIR", help_heading = "Model files")]
    cache_dir: Option<PathBuf>,
    /// The hub's cache; where HF_HUB_CACHE or HF_HOME say if not given
    #[arg(long, global = true, value_name = "DIR", help_heading = "Model files")]
    download_dir: Option<PathBuf>,
}

/// Which model, as an argument or as an option.
#[derive(Debug, Args)]
pub(crate) struct ModelArg {
    /// A directory, a hub id such as openai/gpt-oss-20b, or demo
    #[arg(value_name = "MODEL", id = "model")]
    positional: Option<String>,
    /// The same as MODEL
    #[arg(long = "model", value_name = "MODEL", conflicts_with = "model", id = "model_option")]
    option: Option<String>,
}

impl ModelArg {
    /// The model that was named, if one was.
    pub(crate) fn name(&self) -> Option<&str> {
        self.positional.as_deref().or(self.option.as_deref())
    }
}

/// How much a rank computes and keeps at once.
#[derive(Debug, Args, Serialize)]
#[command(next_help_heading = "Memory")]
pub(crate) struct MemoryArgs {
    /// Longest sequence; the model's own limit if not given
    #[arg(long, value_name = "TOKENS", allow_negative_numbers = true)]
    max_model_len: Option<String>,
    /// Tokens of the largest step: longer prompts are computed in slices (2048; on GPUs 4096)
    #[arg(long, value_name = "TOKENS", allow_negative_numbers = true)]
    max_batch_tokens: Option<String>,
    /// Positions of a KV page
    #[arg(long, value_name = "TOKENS", allow_negative_numbers = true)]
    kv_block_size: Option<String>,
    /// What the attention's matrices and the output matrix are kept in: bf16, or int8 with a scale for
    /// each row for half of the bytes and slightly other answers
    #[arg(long, value_name = "TYPE", value_parser = PossibleValuesParser::new(DENSE_WORDS))]
    dense_dtype: Option<String>,
    /// What cached keys and values are kept in: the device's own choice (auto), or one that it has. GPUs
    /// have bf16 and fp8, CPUs f32, bf16 and fp8
    #[arg(long, value_name = "TYPE", value_parser = PossibleValuesParser::new(KV_WORDS))]
    kv_cache_dtype: Option<String>,
}

/// How many ranks there are.
#[derive(Debug, Args, Serialize)]
#[command(next_help_heading = "Ranks")]
pub(crate) struct ParallelArgs {
    /// Ranks of a group, which split the attention of its sequences
    #[arg(long, value_name = "RANKS", allow_negative_numbers = true)]
    tensor_parallel_size: Option<String>,
    /// Groups; the experts are spread over all ranks of all groups
    #[arg(long, value_name = "GROUPS", allow_negative_numbers = true)]
    data_parallel_size: Option<String>,
}

/// What a rank has.
#[derive(Debug, Args, Serialize)]
#[command(next_help_heading = "Ranks")]
pub(crate) struct DeviceArgs {
    /// Memory of each rank's device, such as 80GiB
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true)]
    device_memory: Option<String>,
    /// What each rank's memory delivers, such as 3.35TB/s
    #[arg(long, value_name = "RATE", allow_negative_numbers = true)]
    memory_bandwidth: Option<String>,
}

/// How tokens are chosen.
#[derive(Debug, Args, Serialize)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingArgs {
    /// How long the model thinks before it answers
    #[arg(long, value_name = "EFFORT", value_enum, help_heading = "Conversation")]
    reasoning_effort: Option<ReasoningEffort>,
    /// Tokens to generate at most; as many as fit if not given
    #[arg(long, value_name = "TOKENS", allow_negative_numbers = true)]
    max_tokens: Option<String>,
    /// 0 always takes the most probable token
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    temperature: Option<String>,
    /// Keep the N most probable tokens; all if not given
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    top_k: Option<String>,
    /// Keep the fewest tokens whose probabilities sum to this
    #[arg(long, value_name = "PROBABILITY", allow_negative_numbers = true)]
    top_p: Option<String>,
    /// Drop tokens below this share of the most probable one
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    min_p: Option<String>,
    /// Divide the logits of tokens that prompt or answer hold by this
    #[arg(long, value_name = "FACTOR", allow_negative_numbers = true)]
    repetition_penalty: Option<String>,
    /// Subtract this from the logits of tokens that the answer holds
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    presence_penalty: Option<String>,
    /// The same for each time that the answer holds them
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    frequency_penalty: Option<String>,
}
