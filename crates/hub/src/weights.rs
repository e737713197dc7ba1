//! Which files of a repository make a model: its configuration and its safetensors weights.
//!
//! Tokenizer files are not among them, for the vocabulary is built in, nor are
//! the copies of the weights under `original/` and `metal/`.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

/// The model's shape; a repository without it is no model.
pub(crate) const CONFIG: &str = "config.json";
/// Defaults for sampling; optional.
pub(crate) const GENERATION_CONFIG: &str = "generation_config.json";
/// Which shard holds which tensor; present when there is more than one.
pub(crate) const INDEX: &str = "model.safetensors.index.json";
/// The weights, when they are one file.
pub(crate) const SINGLE: &str = "model.safetensors";

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The shards that an index names, in order, or what is wrong with it.
///
/// A shard lies beside its index: anything that could lead out of the directory is refused, because
/// repositories are written by strangers.
pub(crate) fn shards(index: &[u8]) -> Result<Vec<String>, String> {
    let index: Index = serde_json::from_slice(index).map_err(|error| error.to_string())?;
    let shards: BTreeSet<String> = index.weight_map.into_values().collect();
    if shards.is_empty() {
        return Err("it names no shard".into());
    }
    match shards.iter().find(|name| !is_plain(name)) {
        Some(name) => Err(format!("it names the shard `{name}`, which is not a plain file name")),
        None => Ok(shards.into_iter().collect()),
    }
}

fn is_plain(name: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    name.ends_with(".safetensors") && !name.starts_with('.') && name.chars().all(is_allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_names_each_shard_once() {
        let index = br#"{"metadata":{}, "weight_map": {"a":"m-2.safetensors","b":"m-1.safetensors","c":"m-2.safetensors"}}"#;
        assert_eq!(shards(index).unwrap(), ["m-1.safetensors", "m-2.safetensors"]);
    }

    #[test]
    fn an_index_that_leads_elsewhere_is_refused() {
        for name in [
            "../x.safetensors",
            "/x.safetensors",
            "a/x.safetensors",
            ".x.safetensors",
            "x.bin",
            "a\\b.safetensors",
        ] {
            let index = serde_json::json!({ "weight_map": { "w": name } }).to_string();
            assert!(shards(index.as_bytes()).unwrap_err().contains(name), "{name}");
        }
        assert!(shards(b"{\"weight_map\": {}}").is_err());
        assert!(shards(b"not json").is_err());
    }
}
