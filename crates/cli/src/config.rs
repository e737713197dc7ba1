//! The settings of a run: defaults, overlaid by a TOML file, by `CHORALE_*`
//! variables and by flags, in this order. Defaults stand here and nowhere
//! else; what each setting may be stands in `keys`.

use crate::device::DeviceKind;
use crate::dtype;
use crate::keys::Key;
use chorale_device::{DenseDtype, KvDtype};
use chorale_plan::{ExchangeOptions, RowFormat};
use figment::providers::{Format, Serialized, Toml};
use figment::value::{Dict, Value};
use figment::{Figment, Profile, Provider};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What file, environment and flags together say.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// A directory, a hub id, or `demo`, the model inside the binary.
    pub(crate) model: String,
    /// The hub's branch, tag or commit; its main branch if `None`.
    pub(crate) revision: Option<String>,
    /// Never touches the network; as `HF_HUB_OFFLINE` says if `None`.
    pub(crate) offline: Option<bool>,
    /// Where the demo model is unpacked; the user's cache directory if `None`.
    pub(crate) cache_dir: Option<PathBuf>,
    /// The hub's cache; where `HF_HOME` and its kin say if `None`.
    pub(crate) download_dir: Option<PathBuf>,
    /// What computes: `auto`, `cpu`, `cuda`, or `cuda:` and GPUs.
    pub(crate) device: String,
    /// By what GPUs exchange rows: `auto`, `off`, or a library's path.
    pub(crate) nccl: String,
    /// Whether what is small goes between GPUs of a host by kernels of our own.
    pub(crate) peer_exchange: PeerExchange,
    /// Memory of the host for experts that do not fit their GPUs: `auto`, `off`, or a size.
    pub(crate) expert_host_memory: String,
    /// If GPUs' answers depend in no bit on what else is computed beside them.
    pub(crate) batch_invariant: bool,
    /// CPU threads; all cores if `None`.
    pub(crate) threads: Option<usize>,
    /// Directives of `tracing-subscriber`'s `EnvFilter`.
    pub(crate) log_level: String,
    /// Longest sequence; the model's own limit if `None`.
    pub(crate) max_model_len: Option<usize>,
    /// Rows of the largest step: longer prompts are computed in slices. By the
    /// device if `None`.
    pub(crate) max_batch_tokens: Option<usize>,
    /// Positions of a KV page.
    pub(crate) kv_block_size: usize,
    /// What the attention's matrices and the output matrix are kept in.
    #[serde(with = "dtype::dense")]
    pub(crate) dense_dtype: DenseDtype,
    /// Type of cached keys and values; the device's own choice if `None`.
    #[serde(with = "dtype::kv")]
    pub(crate) kv_cache_dtype: Option<KvDtype>,
    /// Ranks of a group.
    pub(crate) tensor_parallel_size: usize,
    /// Groups.
    pub(crate) data_parallel_size: usize,
    /// Memory of a rank's device.
    #[serde(rename = "device_memory")]
    pub(crate) device_memory_bytes: Option<u64>,
    /// What a rank's memory delivers.
    #[serde(rename = "memory_bandwidth")]
    pub(crate) memory_bandwidth_bytes_per_s: Option<f64>,
    /// How long the model thinks before it answers.
    pub(crate) reasoning_effort: ReasoningEffort,
    /// Tokens to generate at most; as many as fit if `None`.
    pub(crate) max_tokens: Option<u32>,
    /// 0 takes the most probable token.
    pub(crate) temperature: f32,
    /// Keeps the `k` most probable tokens; all if `None`.
    pub(crate) top_k: Option<u32>,
    /// Keeps the fewest tokens whose probabilities sum to this.
    pub(crate) top_p: f32,
    /// Drops tokens below this share of the most probable one.
    pub(crate) min_p: f32,
    /// Divides logits of tokens that the sequence holds.
    pub(crate) repetition_penalty: f32,
    /// Subtracted from logits of tokens in the output.
    pub(crate) presence_penalty: f32,
    /// The same for each occurrence.
    pub(crate) frequency_penalty: f32,
    /// The address of the doors.
    pub(crate) host: String,
    /// The HTTP door's port.
    pub(crate) port: u16,
    /// The gRPC door's port.
    pub(crate) grpc_port: u16,
    /// The model's name in requests; its own if `None`.
    pub(crate) served_model_name: Option<String>,
    /// The server's certificate, in PEM.
    pub(crate) tls_cert: Option<PathBuf>,
    /// Its key, in PEM.
    pub(crate) tls_key: Option<PathBuf>,
    /// A TOML file of API keys.
    pub(crate) api_key_file: Option<PathBuf>,
    /// One API key, for the environment. Not a flag: other users see those.
    pub(crate) api_key: Option<Hidden>,
    /// Whether metrics need a key.
    pub(crate) metrics_need_key: bool,
    /// An origin that browsers may call from.
    pub(crate) cors_origin: Option<String>,
    /// Logs in JSON.
    pub(crate) log_json: bool,
    /// Seconds for running answers after the first signal.
    pub(crate) drain_timeout: u64,
    /// The date that the model is told; today's if `None`.
    pub(crate) system_date: Option<String>,
    /// Memory for keys and values; by what the machine has if `None`.
    #[serde(rename = "kv_cache_memory")]
    pub(crate) kv_cache_memory_bytes: Option<u64>,
    /// Sequences that are computed together. By the device if `None`.
    pub(crate) max_num_seqs: Option<usize>,
    /// Requests that may wait.
    pub(crate) max_waiting_requests: usize,
    /// Seconds that a request may wait; no limit if `None`.
    pub(crate) max_waiting_time: Option<u64>,
    /// Keeps computed prompts.
    pub(crate) prefix_caching: bool,
    /// Where workers dial in.
    pub(crate) cluster_listen: String,
    /// Seconds of silence after which a worker is lost.
    pub(crate) worker_timeout: f64,
    /// Seconds without anything new after which a computing worker is lost.
    pub(crate) hang_timeout: f64,
    /// Seconds between two looks at whether experts are to move; 0 never looks.
    pub(crate) rebalance_interval: f64,
    /// How rows travel to experts.
    pub(crate) dispatch_dtype: DispatchDtype,
    /// Adds experts' outputs up where they are computed.
    pub(crate) fast_combine: bool,
    /// Steps with so many rows of a group are computed in halves; none if `None`.
    pub(crate) overlap_min_rows: Option<u32>,
    /// The cluster's certificates.
    pub(crate) tls_dir: Option<PathBuf>,
    /// No certificates, everyone is trusted.
    pub(crate) insecure: bool,
    /// Where the coordinator listens.
    pub(crate) coordinator: Option<String>,
    /// Where other workers dial in; the address that reaches the coordinator if `None`.
    pub(crate) listen: Option<String>,
    /// What other workers are told to dial; where it listens if `None`.
    pub(crate) advertise: Option<String>,
    /// Takes experts, but no attention.
    pub(crate) experts_only: bool,
}

/// Text that is not shown where settings are.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Hidden(pub(crate) String);

impl std::fmt::Debug for Hidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(hidden)")
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            model: "demo".to_owned(),
            revision: None,
            offline: None,
            cache_dir: None,
            download_dir: None,
            device: "auto".to_owned(),
            nccl: "auto".to_owned(),
            peer_exchange: PeerExchange::Auto,
            expert_host_memory: "auto".to_owned(),
            batch_invariant: false,
            threads: None,
            log_level: "info".to_owned(),
            max_model_len: None,
            max_batch_tokens: None,
            kv_block_size: 64,
            dense_dtype: DenseDtype::Bf16,
            kv_cache_dtype: None,
            tensor_parallel_size: 1,
            data_parallel_size: 1,
            device_memory_bytes: None,
            memory_bandwidth_bytes_per_s: None,
            reasoning_effort: ReasoningEffort::Medium,
            max_tokens: None,
            // OpenAI recommends to sample gpt-oss at 1.0 without cutting.
            temperature: 1.0,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            // Whoever serves others says so, and sets keys.
            host: "127.0.0.1".to_owned(),
            port: 8000,
            grpc_port: 50051,
            served_model_name: None,
            tls_cert: None,
            tls_key: None,
            api_key_file: None,
            api_key: None,
            metrics_need_key: false,
            cors_origin: None,
            log_json: false,
            drain_timeout: 30,
            system_date: None,
            kv_cache_memory_bytes: None,
            max_num_seqs: None,
            max_waiting_requests: 1024,
            max_waiting_time: None,
            prefix_caching: true,
            cluster_listen: "127.0.0.1:50061".to_owned(),
            worker_timeout: 1.5,
            hang_timeout: 30.0,
            rebalance_interval: 10.0,
            dispatch_dtype: DispatchDtype::F32,
            fast_combine: false,
            overlap_min_rows: None,
            tls_dir: None,
            insecure: false,
            coordinator: None,
            listen: None,
            advertise: None,
            experts_only: false,
        }
    }
}

impl Config {
    /// Rows of the largest step. A GPU needs many to be busy: its experts'
    /// weights are read once a step, whatever the rows.
    pub(crate) fn max_batch_tokens(&self, kind: DeviceKind) -> usize {
        self.max_batch_tokens.unwrap_or(match kind {
            DeviceKind::Cpu => 2048,
            DeviceKind::Gpu => 4096,
        })
    }

    /// Sequences that are computed together.
    pub(crate) fn max_num_seqs(&self, kind: DeviceKind) -> usize {
        self.max_num_seqs.unwrap_or(match kind {
            DeviceKind::Cpu => 32,
            DeviceKind::Gpu => 256,
        })
    }
}

/// How GPUs of one host exchange what is small.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PeerExchange {
    /// By kernels that write to the other GPU's memory, where they reach it.
    Auto,
    /// By NCCL, as everything else.
    Off,
}

/// How rows travel to experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum DispatchDtype {
    /// As they are.
    F32,
    /// A quarter of the bytes.
    Int8,
}

/// How long the model thinks before it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ReasoningEffort {
    /// Short.
    Low,
    /// As trained by default.
    Medium,
    /// Long.
    High,
}

/// Settings that cannot be used. The user's mistake: exit code 2.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// A file that was named is not there, or cannot be read.
    #[error("cannot read the config file {}: {reason}", path.display())]
    Unreadable { path: PathBuf, reason: String },
    /// A file that is no TOML.
    #[error("the config file {} is no TOML: {reason}", path.display())]
    NoToml { path: PathBuf, reason: String },
    /// A name that no setting has.
    #[error("unknown {place}{}", suggestion(nearest))]
    UnknownKey { place: String, nearest: Option<String> },
    /// A value that its setting does not take.
    #[error("{place} is {value}: {complaint}")]
    BadValue { place: String, value: String, complaint: String },
    /// The merged settings do not make a `Config`; `keys` should have said so.
    #[error("the settings do not fit together: {0}")]
    Unfit(String),
}

fn suggestion(nearest: &Option<String>) -> String {
    match nearest {
        Some(name) => format!("; did you mean {name}?"),
        None => String::new(),
    }
}

/// Where a setting was made.
#[derive(Clone, Debug)]
enum Source<'a> {
    File(&'a Path),
    Environment,
    Flags,
}

impl Source<'_> {
    /// How the user wrote a setting's name here.
    fn name(&self, key: &str) -> String {
        match self {
            Self::File(_) => format!("`{key}`"),
            Self::Environment => format!("{PREFIX}{}", key.to_uppercase()),
            Self::Flags => format!("--{}", key.replace('_', "-")),
        }
    }

    fn place(&self, key: &str) -> String {
        match self {
            Self::File(path) => format!("key `{key}` in {}", path.display()),
            Self::Environment => format!("environment variable {}", self.name(key)),
            Self::Flags => self.name(key),
        }
    }
}

/// What variables of ours start with.
const PREFIX: &str = "CHORALE_";
/// Names the config file, so it is no setting in it.
const FILE_VARIABLE: &str = "CHORALE_CONFIG";
/// The short name of `CHORALE_LOG_LEVEL`.
const LOG_VARIABLE: &str = "CHORALE_LOG";

impl Config {
    /// How ranks exchange rows, where one waits so long for another.
    pub(crate) fn exchange(&self, timeout: Duration) -> ExchangeOptions {
        ExchangeOptions {
            timeout_ms: u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX),
            dispatch: match self.dispatch_dtype {
                DispatchDtype::F32 => RowFormat::F32,
                DispatchDtype::Int8 => RowFormat::Int8,
            },
            fast_combine: self.fast_combine,
            overlap_min_rows: self.overlap_min_rows,
        }
    }

    /// Merges file, environment and flags over the defaults. `file` was named
    /// by a flag; `default_file` is used if it exists and none was named.
    pub(crate) fn load(
        file: Option<&Path>,
        default_file: Option<&Path>,
        environment: &BTreeMap<String, String>,
        flags: &impl Serialize,
    ) -> Result<Self, ConfigError> {
        let mut figment = Figment::from(Serialized::defaults(Self::default()));
        let named = file.map(Path::to_owned).or_else(|| named_by(environment));
        let file = named.or_else(|| default_file.filter(|path| path.exists()).map(Path::to_owned));
        if let Some(path) = file {
            figment = merge(figment, checked(&Source::File(&path), read(&path)?)?);
        }
        figment = merge(figment, checked(&Source::Environment, variables(environment))?);
        let flags = top_level(&Serialized::defaults(flags)).map_err(ConfigError::Unfit)?;
        figment = merge(figment, checked(&Source::Flags, flags)?);
        figment.extract().map_err(|error| ConfigError::Unfit(error.to_string()))
    }
}

fn merge(figment: Figment, layer: Dict) -> Figment {
    figment.merge(Serialized::defaults(layer))
}

fn named_by(environment: &BTreeMap<String, String>) -> Option<PathBuf> {
    environment.get(FILE_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from)
}

fn read(path: &Path) -> Result<Dict, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| ConfigError::Unreadable { path: path.to_owned(), reason: error.to_string() })?;
    top_level(&Toml::string(&text))
        .map_err(|reason| ConfigError::NoToml { path: path.to_owned(), reason: reason.trim_end().to_owned() })
}

/// Our variables as settings. An empty one counts as unset.
fn variables(environment: &BTreeMap<String, String>) -> Dict {
    let ours = environment.iter().filter(|(name, value)| *name != FILE_VARIABLE && !value.is_empty());
    ours.filter_map(|(name, value)| {
        let name = if name == LOG_VARIABLE { "CHORALE_LOG_LEVEL" } else { name };
        Some((name.strip_prefix(PREFIX)?.to_lowercase(), Value::from(value.as_str())))
    })
    .collect()
}

/// What a provider says, without its profiles: we have one.
fn top_level(provider: &impl Provider) -> Result<Dict, String> {
    let mut profiles = provider.data().map_err(|error| error.kind.to_string())?;
    Ok(profiles.remove(&Profile::Default).unwrap_or_default())
}

/// Checks each setting against the table of keys; unset ones are left out.
fn checked(source: &Source<'_>, layer: Dict) -> Result<Dict, ConfigError> {
    let mut good = Dict::new();
    for (name, value) in layer {
        if matches!(value, Value::Empty(..)) {
            continue;
        }
        let place = source.place(&name);
        let Some(key) = Key::named(&name) else {
            let nearest = Key::nearest(&name).map(|known| source.name(known));
            return Err(ConfigError::UnknownKey { place, nearest });
        };
        let result = match (source, value.as_str()) {
            (Source::Environment | Source::Flags, Some(text)) => key.parse(text),
            (Source::Environment | Source::Flags, None) | (Source::File(_), _) => key.check(&value),
        };
        let value =
            result.map_err(|complaint| ConfigError::BadValue { place, value: show(&value), complaint })?;
        good.insert(name, value);
    }
    Ok(good)
}

fn show(value: &Value) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| "unprintable".to_owned())
}

#[cfg(test)]
mod tests;
