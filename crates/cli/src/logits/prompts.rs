//! The file of prompts: a JSON object of token ids by name.

use crate::engine;
use crate::exit::UsageError;
use chorale_model::config::ModelConfig;
use chorale_plan::TokenId;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::path::Path;

/// Token ids by name.
pub(super) struct Prompts(pub(super) BTreeMap<String, Vec<TokenId>>);

impl Prompts {
    /// Reads a file; what is wrong with it is the user's mistake.
    pub(super) fn read(path: &Path) -> Result<Self, UsageError> {
        let file = path.display();
        let text = std::fs::read(path).map_err(|error| UsageError(format!("cannot read {file}: {error}")))?;
        serde_json::from_slice(&text).map_err(|error| {
            UsageError(format!(
                "{file} is not a JSON object of token ids by name, such as {{\"p1\": [1, 2, 3]}}: {error}"
            ))
        })
    }

    /// Refuses prompts that the model cannot compute; gives the longest's length.
    pub(super) fn check(
        &self,
        path: &Path,
        num_generated: usize,
        context: usize,
        config: &ModelConfig,
    ) -> Result<usize, UsageError> {
        let file = path.display();
        for (name, prompt) in &self.0 {
            let what = format!("{file}: `{name}`");
            if prompt.is_empty() {
                return Err(UsageError(format!("{what} holds no tokens")));
            }
            engine::check_tokens(prompt, config, &what)?;
            if prompt.len() + num_generated > context {
                let more = match num_generated {
                    0 => String::new(),
                    count => format!(" and --generate adds {count}"),
                };
                return Err(UsageError(format!(
                    "{what} has {} tokens{more}: the context ends at {context}",
                    prompt.len()
                )));
            }
        }
        let longest = self.0.values().map(Vec::len).max();
        longest.ok_or_else(|| UsageError(format!("{file} holds no prompts")))
    }
}

impl<'de> Deserialize<'de> for Prompts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Named).map(Self)
    }
}

/// A map that holds each name once: JSON does not mind, but one of two prompts
/// would be lost.
struct Named;

impl<'de> Visitor<'de> for Named {
    type Value = BTreeMap<String, Vec<TokenId>>;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("an object of token ids by name")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let mut prompts = BTreeMap::new();
        while let Some(name) = entries.next_key::<String>()? {
            let tokens = entries.next_value()?;
            if prompts.insert(name.clone(), tokens).is_some() {
                return Err(serde::de::Error::custom(format!("`{name}` is there twice")));
            }
        }
        Ok(prompts)
    }
}
