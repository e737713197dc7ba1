//! The golden checkpoints and what independent implementations computed on
//! them, compiled in: a bare machine has no repository.

use crate::failure::{Failure, ensure};
use chorale_plan::TokenId;
use safetensors::SafeTensors;
use serde_json::Value;
use std::path::Path;

/// A small random checkpoint with its goldens.
pub struct Golden {
    /// Its name among the fixtures.
    pub name: &'static str,
    files: &'static [(&'static str, &'static [u8])],
    logits: &'static [u8],
    greedy: &'static str,
    oracle: &'static str,
}

/// A greedy continuation, and how sure each choice was.
pub struct Continuation {
    /// Tokens after the prompt.
    pub tokens: Vec<TokenId>,
    /// By how much the best logit led the second.
    pub margins: Vec<f64>,
}

macro_rules! golden {
    ($name:literal, [$($file:literal),+]) => {
        Golden {
            name: $name,
            files: &[$((
                $file,
                include_bytes!(concat!(
                    env!("CARGO_MANIFEST_DIR"),
                    "/../../tests/fixtures/models/",
                    $name,
                    "/",
                    $file
                )),
            )),+],
            logits: include_bytes!(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/../../tests/fixtures/goldens/",
                $name,
                "/logits.safetensors"
            )),
            greedy: include_str!(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/../../tests/fixtures/goldens/",
                $name,
                "/greedy.json"
            )),
            oracle: include_str!(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/../../tests/fixtures/goldens/",
                $name,
                "/oracle.json"
            )),
        }
    };
}

/// All of them.
pub static GOLDENS: [Golden; 3] = [
    golden!(
        "a-small",
        [
            "config.json",
            "generation_config.json",
            "model.safetensors.index.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors"
        ]
    ),
    golden!(
        "b-awkward",
        [
            "config.json",
            "generation_config.json",
            "model.safetensors.index.json",
            "model-00001-of-00003.safetensors",
            "model-00002-of-00003.safetensors",
            "model-00003-of-00003.safetensors"
        ]
    ),
    golden!(
        "c-ratio",
        [
            "config.json",
            "generation_config.json",
            "model.safetensors.index.json",
            "model-00000-of-00002.safetensors",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors"
        ]
    ),
];

impl Golden {
    /// Writes the checkpoint to a folder that exists.
    pub fn unpack(&self, folder: &Path) -> std::io::Result<()> {
        self.files.iter().try_for_each(|(name, bytes)| std::fs::write(folder.join(name), bytes))
    }

    /// A prompt by its name.
    pub fn prompt(&self, prompt: &str) -> Result<Vec<TokenId>, Failure> {
        let tensors = SafeTensors::deserialize(self.logits)?;
        let data = tensors.tensor(&format!("{prompt}.input_ids"))?.data().to_vec();
        Ok(data.as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes) as TokenId).collect())
    }

    /// What bf16 throughout cost transformers on a prompt: the mean KL divergence
    /// from f32, and the share of positions whose best token was another.
    pub fn bf16_loss(&self, prompt: &str) -> Result<(f64, f64), Failure> {
        let oracle: Value = serde_json::from_str(self.oracle)?;
        let bf16 = &oracle["prompts"][prompt]["hf_f32_vs_hf_bf16"];
        let number = |key: &str| bf16[key].as_f64();
        let both = number("kl_mean").zip(number("argmax_agreement"));
        both.map(|(kl, agreement)| (kl, 1.0 - agreement))
            .ok_or_else(|| Failure(format!("{}: no loss of bf16 on {prompt}", self.name)))
    }

    /// The greedy continuation of a prompt.
    pub fn continuation(&self, prompt: &str) -> Result<Continuation, Failure> {
        let greedy: Value = serde_json::from_str(self.greedy)?;
        let run = greedy["runs"].as_array().and_then(|runs| runs.iter().find(|run| run["prompt"] == prompt));
        let numbers = |key: &str| -> Vec<f64> {
            let values = run.and_then(|run| run[key].as_array());
            values.map_or(Vec::new(), |values| values.iter().filter_map(Value::as_f64).collect())
        };
        let tokens: Vec<TokenId> = numbers("continuation").into_iter().map(|id| id as TokenId).collect();
        let margins = numbers("margins");
        ensure(!tokens.is_empty() && tokens.len() == margins.len(), || {
            format!("{}: no continuation of {prompt}", self.name)
        })?;
        Ok(Continuation { tokens, margins })
    }
}
