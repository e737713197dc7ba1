//! Keys as a person writes them down. A file of keys is TOML:
//!
//! ```toml
//! [[key]]
//! name = "search"          # in logs, metrics and lists
//! secret = "sk-…"          # or: sha256 = "<64 hex digits>"
//! weight = 2               # its part of the engine beside other keys; 1
//! priority = -1            # added to each request's; lower runs first; 0
//! max_concurrent_requests = 16
//! tokens_per_minute = 100000
//! admin = true             # sees and cancels everybody's requests; false
//! ```

use serde::Deserialize;
use std::num::NonZeroU32;

/// A key, and what it may do.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeySettings {
    /// What it is called in logs, metrics and lists.
    pub name: String,
    /// What clients send; this or `sha256`.
    pub secret: Option<Secret>,
    /// The SHA-256 of what clients send, in hexadecimal.
    pub sha256: Option<String>,
    /// Its part of the engine beside other keys that have work.
    #[serde(default = "one")]
    pub weight: NonZeroU32,
    /// Added to the priority of its requests; lower runs first.
    #[serde(default)]
    pub priority: i32,
    /// Requests that it may have running; `None` is no limit.
    pub max_concurrent_requests: Option<NonZeroU32>,
    /// Tokens of prompts and answers in a minute; `None` is no limit.
    pub tokens_per_minute: Option<NonZeroU32>,
    /// Sees and cancels everybody's requests.
    #[serde(default)]
    pub admin: bool,
}

/// Something that must not be printed.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

fn one() -> NonZeroU32 {
    NonZeroU32::MIN
}

impl KeySettings {
    /// A key with no limits.
    pub fn new(name: impl Into<String>, secret: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            secret: Some(Secret(secret.into())),
            sha256: None,
            weight: one(),
            priority: 0,
            max_concurrent_requests: None,
            tokens_per_minute: None,
            admin: false,
        }
    }
}

impl Secret {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}
