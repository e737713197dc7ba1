//! Arguments of the cluster's commands: `coordinator`, `worker`, `certs` and `cluster`.

use super::{DeviceArgs, MemoryArgs, ModelArg, ParallelArgs, ServingArgs};
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;

/// Arguments of `chorale coordinator`.
#[derive(Debug, Args)]
#[command(after_help = COORDINATOR_EXAMPLES)]
pub(crate) struct CoordinatorArgs {
    #[command(flatten)]
    pub(crate) model: ModelArg,
    #[command(flatten)]
    pub(crate) parallel: ParallelArgs,
    #[command(flatten)]
    pub(crate) cluster: CoordinationArgs,
    #[command(flatten)]
    pub(crate) trust: TrustArgs,
    #[command(flatten)]
    pub(crate) serving: ServingArgs,
    #[command(flatten)]
    pub(crate) memory: MemoryArgs,
}

const COORDINATOR_EXAMPLES: &str = "\
Examples:
  chorale coordinator --data-parallel-size 2 --insecure
  chorale coordinator openai/gpt-oss-120b --tensor-parallel-size 2 --cluster-listen 10.0.0.1:50061 --tls-dir ./certs

It opens the doors of chorale serve, computes nothing itself, and serves as soon as enough workers
have joined: tensor-parallel-size times data-parallel-size of them. Later it goes on with any set
that can hold the model.";

/// How workers reach the coordinator, and when they count as lost.
#[derive(Debug, Args, Serialize)]
#[command(next_help_heading = "Cluster")]
pub(crate) struct CoordinationArgs {
    /// Where workers dial in
    #[arg(long, value_name = "ADDRESS:PORT")]
    cluster_listen: Option<String>,
    /// A worker that is silent for so long is lost
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    worker_timeout: Option<String>,
    /// A worker that computes for so long without anything new is lost
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    hang_timeout: Option<String>,
    /// How often experts may move to where there is less to do; 0 for never
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    rebalance_interval: Option<String>,
    /// How rows travel to experts: f32, or int8 for a quarter of the traffic and slightly other answers
    #[arg(long, value_name = "TYPE")]
    dispatch_dtype: Option<String>,
    /// Add experts' outputs up where they are computed: less traffic, but the answer's last bits depend on the cluster
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    fast_combine: Option<bool>,
}

/// Whom coordinator and workers trust.
#[derive(Debug, Args, Serialize)]
#[command(next_help_heading = "Trust")]
pub(crate) struct TrustArgs {
    /// A directory with ca.pem, cert.pem and key.pem: both sides show certificates of this authority
    #[arg(long, value_name = "DIR")]
    tls_dir: Option<PathBuf>,
    /// Talk in the open and trust everyone; both sides must say so
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    insecure: Option<bool>,
}

/// Arguments of `chorale worker`.
#[derive(Debug, Args)]
#[command(after_help = WORKER_EXAMPLES)]
pub(crate) struct WorkerArgs {
    #[command(flatten)]
    pub(crate) model: ModelArg,
    #[command(flatten)]
    pub(crate) joining: JoiningArgs,
    #[command(flatten)]
    pub(crate) trust: TrustArgs,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

const WORKER_EXAMPLES: &str = "\
Examples:
  chorale worker --coordinator 127.0.0.1:50061 --insecure
  chorale worker openai/gpt-oss-120b --coordinator 10.0.0.1:50061 --tls-dir ./certs --listen 10.0.0.2:50062
  chorale worker --coordinator 10.0.0.1:50061 --tls-dir ./certs --experts-only --device-memory 32GiB

It computes what the coordinator assigns to it, from its own copy of the model's files. SIGTERM hands
its part over to the others before it ends.";

/// How a worker joins.
#[derive(Debug, Args, Serialize)]
#[command(next_help_heading = "Cluster")]
pub(crate) struct JoiningArgs {
    /// The coordinator's --cluster-listen
    #[arg(long, value_name = "HOST:PORT")]
    coordinator: Option<String>,
    /// Where other workers dial in; any port of all addresses if not given, or of the loopback where
    /// the coordinator is there, too
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// What other workers are told to dial; where it listens if not given
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// Take experts, but no attention
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    experts_only: Option<bool>,
}

/// Arguments of `chorale certs`.
#[derive(Debug, Args)]
#[command(after_help = CERTS_EXAMPLES)]
pub(crate) struct CertsArgs {
    /// Where to write the directories; made if it is not there
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// One directory for each of these
    #[arg(value_name = "NAME", default_values = ["coordinator", "worker"])]
    pub(crate) names: Vec<String>,
}

const CERTS_EXAMPLES: &str = "\
Examples:
  chorale certs ./certs
  chorale certs ./certs coordinator worker-0 worker-1

Each directory is a --tls-dir. The authority's own key is thrown away, so a set cannot be added to.
Meant for trials; where certificates are managed, write ca.pem, cert.pem and key.pem from there: each
certificate needs the name chorale.cluster.";

/// Arguments of `chorale cluster`.
#[derive(Debug, Args)]
#[command(after_help = CLUSTER_EXAMPLES)]
pub(crate) struct ClusterArgs {
    /// The coordinator's HTTP door
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8000")]
    pub(crate) url: String,
    /// Print the coordinator's own answer
    #[arg(long)]
    pub(crate) json: bool,
}

const CLUSTER_EXAMPLES: &str = "\
Examples:
  chorale cluster
  CHORALE_API_KEY=... chorale cluster --url https://chorale.example.com --json

Shows ranks, groups, placement, epoch, load and faults, as GET /v1/cluster does.";
