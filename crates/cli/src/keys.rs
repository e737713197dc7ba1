//! The names of all settings, and what values each takes. One table checks
//! file, environment and flags alike; it neither reads nor merges them.

use crate::args;
use crate::device::DeviceChoice;
use crate::dtype::{DENSE_WORDS, KV_WORDS};
use crate::nccl::NcclChoice;
use crate::offload::ExpertHostMemory;
use crate::telemetry;
use crate::units;
use figment::value::{Num, Value};

/// A setting.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key {
    /// As in the file; `CHORALE_` before it in capitals, `--` with hyphens.
    pub(crate) name: &'static str,
    kind: Kind,
    /// Completes "must be".
    must: &'static str,
}

/// What a setting's value is.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Any text but none.
    Text,
    /// Which logs are wanted.
    Directives,
    /// On or off.
    Switch,
    /// A whole number in a range.
    Count { min: u64, max: u64 },
    /// A number in a range; a NaN never is.
    Real { min: f64, max: f64, min_allowed: bool },
    /// One of these.
    Choice(&'static [&'static str]),
    /// A day of the calendar, or a word for one.
    Date,
    /// What computes.
    Device,
    /// By what GPUs exchange.
    Nccl,
    /// What experts may have of the host.
    ExpertHostMemory,
    /// Bytes, with a unit.
    Size,
    /// Bytes a second, with a unit.
    Rate,
}

/// How much there may be of anything that is counted in tokens.
const TOKENS_MAX: u64 = 1 << 30;
/// Penalties beyond this only overflow.
const PENALTY_MAX: f64 = 1e6;

/// All settings, in the order of `Config`'s fields.
pub(crate) const KEYS: &[Key] = &[
    key("model", Kind::Text, "a directory, a hub id such as openai/gpt-oss-20b, or demo"),
    key("revision", Kind::Text, "a branch, tag or commit"),
    key("offline", Kind::Switch, "true or false"),
    key("cache_dir", Kind::Text, "a directory"),
    key("download_dir", Kind::Text, "a directory"),
    key(
        "device",
        Kind::Device,
        "auto, cpu, cuda for the first GPUs, or cuda:0 or cuda:0,1 for some of them, each once",
    ),
    key("nccl", Kind::Nccl, "auto, off, or the path of libnccl.so.2"),
    key("expert_host_memory", Kind::ExpertHostMemory, "auto, off, or a size such as 64GiB"),
    key("batch_invariant", Kind::Switch, "true or false"),
    key("peer_exchange", Kind::Choice(&["auto", "off"]), "auto or off"),
    key("threads", count(1, 4096), "a whole number from 1 to 4096; leave it out to use every core"),
    key(
        "log_level",
        Kind::Directives,
        "error, warn, info, debug, trace, or directives such as chorale_model=debug",
    ),
    key(
        "max_model_len",
        count(1, TOKENS_MAX),
        "a whole number of tokens from 1 up; leave it out for the model's own limit",
    ),
    key("max_batch_tokens", count(1, 1 << 20), "a whole number of tokens from 1 to 1048576"),
    key("kv_block_size", count(1, 4096), "a whole number of tokens from 1 to 4096"),
    key("dense_dtype", Kind::Choice(DENSE_WORDS), "bf16 or int8"),
    key(
        "kv_cache_dtype",
        Kind::Choice(KV_WORDS),
        "bf16, f32 or fp8, of which the device keeps some; auto leaves it to the device",
    ),
    key("tensor_parallel_size", count(1, 1024), "a whole number of ranks from 1 to 1024"),
    key("data_parallel_size", count(1, 1024), "a whole number of groups from 1 to 1024"),
    key("device_memory", Kind::Size, "a size such as 80GiB, 80GB or 512MiB"),
    key("memory_bandwidth", Kind::Rate, "a rate such as 3.35TB/s or 24GB/s"),
    key("reasoning_effort", Kind::Choice(&["low", "medium", "high"]), "low, medium or high"),
    key(
        "max_tokens",
        count(1, TOKENS_MAX),
        "a whole number of tokens from 1 up; leave it out to stop at the context's end",
    ),
    key("temperature", real(0.0, 1e6), "a number from 0 up; 0 always takes the most probable token"),
    key("top_k", count(1, u32::MAX as u64), "a whole number from 1 up; leave it out to keep all tokens"),
    key("top_p", real_above(0.0, 1.0), "a number above 0 and up to 1; 1 keeps all tokens"),
    key("min_p", real(0.0, 1.0), "a number from 0 to 1; 0 keeps all tokens"),
    key("repetition_penalty", real_above(0.0, PENALTY_MAX), "a number above 0; 1 does nothing"),
    key("presence_penalty", real(-PENALTY_MAX, PENALTY_MAX), "a finite number; 0 does nothing"),
    key("frequency_penalty", real(-PENALTY_MAX, PENALTY_MAX), "a finite number; 0 does nothing"),
    key("host", Kind::Text, "an address such as 127.0.0.1, or 0.0.0.0 for all"),
    key("port", count(0, u16::MAX as u64), "a port from 0 to 65535"),
    key("grpc_port", count(0, u16::MAX as u64), "a port from 0 to 65535"),
    key("served_model_name", Kind::Text, "a name"),
    key("tls_cert", Kind::Text, "a file in PEM"),
    key("tls_key", Kind::Text, "a file in PEM"),
    key("api_key_file", Kind::Text, "a TOML file of keys"),
    key("api_key", Kind::Text, "a secret"),
    key("metrics_need_key", Kind::Switch, "true or false"),
    key("cors_origin", Kind::Text, "an origin such as https://example.com, or *"),
    key("log_json", Kind::Switch, "true or false"),
    key("drain_timeout", count(0, 86_400), "a whole number of seconds from 0 to 86400"),
    key("system_date", Kind::Date, "a day such as 2025-06-28, today, or none"),
    key("kv_cache_memory", Kind::Size, "a size such as 4GiB or 512MiB"),
    key("max_num_seqs", count(1, 4096), "a whole number of sequences from 1 to 4096"),
    key("max_waiting_requests", count(1, 1 << 20), "a whole number of requests from 1 to 1048576"),
    key("max_waiting_time", count(1, 86_400), "a whole number of seconds from 1 to 86400"),
    key("prefix_caching", Kind::Switch, "true or false"),
    key("cluster_listen", Kind::Text, "an address and a port such as 0.0.0.0:50061"),
    key("worker_timeout", real(0.1, 3600.0), "a number of seconds from 0.1 to 3600"),
    key("hang_timeout", real(0.1, 86_400.0), "a number of seconds from 0.1 to 86400"),
    key(
        "rebalance_interval",
        real(0.0, 86_400.0),
        "a number of seconds from 0 to 86400; 0 never moves an expert",
    ),
    key("dispatch_dtype", Kind::Choice(&["f32", "int8"]), "f32 or int8"),
    key("fast_combine", Kind::Switch, "true or false"),
    key("overlap_min_rows", count(2, 1 << 20), "a whole number of rows from 2 to 1048576"),
    key("tls_dir", Kind::Text, "a directory with ca.pem, cert.pem and key.pem"),
    key("insecure", Kind::Switch, "true or false"),
    key("coordinator", Kind::Text, "a host and a port such as 10.0.0.1:50061"),
    key("listen", Kind::Text, "an address and a port such as 10.0.0.2:50062"),
    key("advertise", Kind::Text, "a host and a port such as worker-0.example:50062"),
    key("experts_only", Kind::Switch, "true or false"),
];

const fn key(name: &'static str, kind: Kind, must: &'static str) -> Key {
    Key { name, kind, must }
}

const fn count(min: u64, max: u64) -> Kind {
    Kind::Count { min, max }
}

const fn real(min: f64, max: f64) -> Kind {
    Kind::Real { min, max, min_allowed: true }
}

const fn real_above(min: f64, max: f64) -> Kind {
    Kind::Real { min, max, min_allowed: false }
}

impl Key {
    /// The setting of that name.
    pub(crate) fn named(name: &str) -> Option<&'static Self> {
        KEYS.iter().find(|key| key.name == name)
    }

    /// The known name that `unknown` was probably meant to be.
    pub(crate) fn nearest(unknown: &str) -> Option<&'static str> {
        let similarity = |key: &Key| strsim::jaro_winkler(key.name, unknown);
        let nearest = KEYS.iter().max_by(|a, b| similarity(a).total_cmp(&similarity(b)))?;
        (similarity(nearest) > 0.8).then_some(nearest.name)
    }

    /// Parses what a flag or a variable says.
    pub(crate) fn parse(&self, text: &str) -> Result<Value, String> {
        let value = match self.kind {
            Kind::Text
            | Kind::Date
            | Kind::Device
            | Kind::Nccl
            | Kind::ExpertHostMemory
            | Kind::Directives
            | Kind::Choice(_)
            | Kind::Size
            | Kind::Rate => Some(Value::from(text)),
            Kind::Switch => match text {
                "true" | "1" | "yes" | "on" => Some(Value::from(true)),
                "false" | "0" | "no" | "off" => Some(Value::from(false)),
                _ => None,
            },
            Kind::Count { .. } => text.parse().ok().map(|count: u64| Value::from(count)),
            Kind::Real { .. } => text.parse().ok().map(|real: f64| Value::from(real)),
        };
        self.check(&value.ok_or_else(|| self.complaint())?)
    }

    /// Checks a value that has a type already, as a file's do. Sizes and rates
    /// come back as numbers.
    pub(crate) fn check(&self, value: &Value) -> Result<Value, String> {
        let checked = match self.kind {
            Kind::Text => value.as_str().filter(|text| !text.is_empty()).map(Value::from),
            Kind::Date => value
                .as_str()
                .filter(|text| ["today", "none"].contains(text) || args::parse_date(text).is_ok())
                .map(Value::from),
            Kind::Device => {
                value.as_str().filter(|text| DeviceChoice::parse(text).is_some()).map(Value::from)
            }
            Kind::ExpertHostMemory => match value.as_str() {
                Some(text) => {
                    self.with_unit(ExpertHostMemory::parse(text)).map(|_| Some(Value::from(text)))?
                }
                None => None,
            },
            Kind::Nccl => value.as_str().filter(|text| NcclChoice::parse(text).is_some()).map(Value::from),
            Kind::Directives => value.as_str().filter(|text| telemetry::is_directives(text)).map(Value::from),
            Kind::Switch => value.to_bool().map(Value::from),
            Kind::Choice(names) => value.as_str().filter(|name| names.contains(name)).map(Value::from),
            Kind::Count { min, max } => {
                whole(value).filter(|count| (min..=max).contains(count)).map(Value::from)
            }
            Kind::Real { min, max, min_allowed } => number(value)
                .filter(|real| (*real > min || min_allowed && *real == min) && *real <= max)
                .map(Value::from),
            Kind::Size => match value.as_str() {
                Some(text) => Some(Value::from(self.with_unit(units::parse_bytes(text))?)),
                None => None,
            },
            Kind::Rate => match value.as_str() {
                Some(text) => Some(Value::from(self.with_unit(units::parse_rate(text))?)),
                None => None,
            },
        };
        checked.ok_or_else(|| self.complaint())
    }

    fn complaint(&self) -> String {
        format!("must be {}", self.must)
    }

    fn with_unit<T>(&self, parsed: Result<T, units::UnitError>) -> Result<T, String> {
        parsed.map_err(|error| format!("{error}; it must be {}", self.must))
    }
}

fn whole(value: &Value) -> Option<u64> {
    let number = value.to_num()?;
    let signed = number.to_i128().and_then(|signed| u64::try_from(signed).ok());
    signed.or_else(|| number.to_u128().and_then(|unsigned| u64::try_from(unsigned).ok()))
}

fn number(value: &Value) -> Option<f64> {
    let number: Num = value.to_num()?;
    let real = number.to_f64().or_else(|| number.to_i128().map(|signed| signed as f64));
    real.or_else(|| number.to_u128().map(|unsigned| unsigned as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bad_value_is_refused_with_its_remedy() {
        for (name, bad) in [
            ("temperature", "-0.1"),
            ("temperature", "nan"),
            ("temperature", "inf"),
            ("temperature", "warm"),
            ("top_p", "0"),
            ("top_p", "1.01"),
            ("top_k", "0"),
            ("top_k", "-1"),
            ("top_k", "1.5"),
            ("top_k", "4294967296"),
            ("min_p", "-0.001"),
            ("min_p", "1.001"),
            ("repetition_penalty", "0"),
            ("presence_penalty", "inf"),
            ("frequency_penalty", "-inf"),
            ("device", "gpu"),
            ("device", "cuda:1,1"),
            ("nccl", "on"),
            ("expert_host_memory", "64"),
            ("batch_invariant", "perhaps"),
            ("threads", "0"),
            ("threads", "99999999999999999999"),
            ("max_tokens", "0"),
            ("offline", "maybe"),
            ("dense_dtype", "fp8"),
            ("kv_cache_dtype", "int4"),
            ("reasoning_effort", "extreme"),
            ("device_memory", "80"),
            ("device_memory", "80 parsecs"),
            ("memory_bandwidth", "3.35TB"),
            ("revision", ""),
            ("log_level", "loud"),
        ] {
            let key = Key::named(name).unwrap();
            let complaint = key.parse(bad).unwrap_err();
            assert!(complaint.contains("must be"), "{name} = {bad}: {complaint}");
        }
    }

    #[test]
    fn bounds_that_are_allowed_are_allowed() {
        for (name, good) in [
            ("temperature", "0"),
            ("top_p", "1"),
            ("top_p", "1e-9"),
            ("min_p", "0"),
            ("min_p", "1"),
            ("top_k", "1"),
            ("presence_penalty", "-2"),
            ("offline", "on"),
            ("batch_invariant", "true"),
            ("dense_dtype", "int8"),
            ("kv_cache_dtype", "auto"),
        ] {
            assert!(Key::named(name).unwrap().parse(good).is_ok(), "{name} = {good}");
        }
    }

    #[test]
    fn a_file_may_write_whole_numbers_for_real_ones_but_not_text() {
        let temperature = Key::named("temperature").unwrap();
        assert_eq!(temperature.check(&Value::from(1_i64)).unwrap().to_f64(), Some(1.0));
        assert!(temperature.check(&Value::from("1.0")).is_err());
        assert!(Key::named("threads").unwrap().check(&Value::from(1.0)).is_err());
        assert!(Key::named("model").unwrap().check(&Value::from(7_i64)).is_err());
    }

    #[test]
    fn a_slip_of_the_finger_is_recognised() {
        assert_eq!(Key::nearest("temprature"), Some("temperature"));
        assert_eq!(Key::nearest("max-model-len"), Some("max_model_len"));
        assert_eq!(Key::nearest("qqq"), None);
    }
}
