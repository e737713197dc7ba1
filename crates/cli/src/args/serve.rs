//! Arguments of `chorale serve`: settings throughout, so that a config file can
//! say all of it.

use super::{MemoryArgs, ModelArg, ParallelArgs};
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;

/// Arguments of `chorale serve`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) model: ModelArg,
    #[command(flatten)]
    pub(crate) parallel: ParallelArgs,
    #[command(flatten)]
    pub(crate) serving: ServingArgs,
    #[command(flatten)]
    pub(crate) memory: MemoryArgs,
}

const EXAMPLES: &str = "\
Examples:
  chorale serve
  chorale serve openai/gpt-oss-20b --host 0.0.0.0 --api-key-file keys.toml
  chorale serve ./checkpoint --port 8080 --grpc-port 0 --system-date 2025-06-28 --max-num-seqs 64

The keys of a file are [[key]] tables with name and secret (or sha256), and perhaps weight, priority,
max_concurrent_requests, tokens_per_minute and admin. SIGTERM or Ctrl-C drains, a second one ends at once.";

/// Where a server listens, whom it answers, and how much at once.
#[derive(Debug, Args, Serialize)]
pub(crate) struct ServingArgs {
    /// The address to listen at; 0.0.0.0 for all
    #[arg(long, value_name = "ADDRESS", help_heading = "Doors")]
    host: Option<String>,
    /// The HTTP port; 0 lets the system choose
    #[arg(long, value_name = "PORT", allow_negative_numbers = true, help_heading = "Doors")]
    port: Option<String>,
    /// The gRPC port; 0 lets the system choose
    #[arg(long, value_name = "PORT", allow_negative_numbers = true, help_heading = "Doors")]
    grpc_port: Option<String>,
    /// The name of the model in requests and answers; the model's own if not given
    #[arg(long, value_name = "NAME", help_heading = "Doors")]
    served_model_name: Option<String>,
    /// The server's certificate and its issuers', in PEM; turns TLS on
    #[arg(long, value_name = "FILE", help_heading = "Doors")]
    tls_cert: Option<PathBuf>,
    /// The certificate's key, in PEM
    #[arg(long, value_name = "FILE", help_heading = "Doors")]
    tls_key: Option<PathBuf>,
    /// Who may ask: a TOML file of keys. One key alone may stand in CHORALE_API_KEY
    #[arg(long, value_name = "FILE", help_heading = "Doors")]
    api_key_file: Option<PathBuf>,
    /// Ask for a key at /metrics, too
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", help_heading = "Doors")]
    metrics_need_key: Option<bool>,
    /// A web page's origin that may call from a browser, or *
    #[arg(long, value_name = "ORIGIN", help_heading = "Doors")]
    cors_origin: Option<String>,
    /// Log in JSON, one object a line
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", help_heading = "Doors")]
    log_json: Option<bool>,
    /// How long running answers may go on after the first signal
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true, help_heading = "Doors")]
    drain_timeout: Option<String>,
    /// The date that the model is told: a day, today, or none
    #[arg(long, value_name = "YYYY-MM-DD", help_heading = "Answers")]
    system_date: Option<String>,
    /// Memory for keys and values, such as 4GiB; if not given, half of what is free, at most 8GiB, or all that a GPU has left
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true, help_heading = "Load")]
    kv_cache_memory: Option<String>,
    /// Sequences that are computed together (32; on GPUs 256)
    #[arg(long, value_name = "SEQUENCES", allow_negative_numbers = true, help_heading = "Load")]
    max_num_seqs: Option<String>,
    /// Requests that may wait; further ones are answered with 429
    #[arg(long, value_name = "REQUESTS", allow_negative_numbers = true, help_heading = "Load")]
    max_waiting_requests: Option<String>,
    /// How long a request may wait for its first token to be computed
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true, help_heading = "Load")]
    max_waiting_time: Option<String>,
    /// Keep computed prompts and find them again
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", help_heading = "Load")]
    prefix_caching: Option<bool>,
    /// Compute steps with this many rows of a group in two halves, one while the other's rows travel
    #[arg(long, value_name = "ROWS", allow_negative_numbers = true, help_heading = "Load")]
    overlap_min_rows: Option<String>,
}
