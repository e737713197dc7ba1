//! Whether a checkpoint's tensors are those of the model that its `config.json`
//! describes: all there, of the right type and shape, and no others. It looks
//! at headers only, never at weights.

use super::CheckpointError;
use super::names::{Expected, Layout};
use super::table::{Tensor, TensorTable};
use crate::config::ModelConfig;
use safetensors::Dtype;
use std::collections::HashSet;

/// The layout that the tensors' names are of.
pub(super) fn detect(table: &TensorTable) -> Layout {
    table.iter().find_map(|(name, _)| Layout::of_tensor(name)).unwrap_or(Layout::HuggingFace)
}

pub(super) fn check(
    table: &TensorTable,
    layout: Layout,
    config: &ModelConfig,
) -> Result<(), CheckpointError> {
    let expected = layout.expected(config);
    for tensor in &expected {
        check_tensor(table, tensor)?;
    }
    let known: HashSet<&str> = expected.iter().map(|tensor| tensor.name.as_str()).collect();
    match table.iter().find(|(name, _)| !known.contains(name) && !is_harmless(name, layout, config)) {
        None => Ok(()),
        Some((name, tensor)) => Err(CheckpointError::UnknownTensor {
            file: table.file_of(tensor).to_owned(),
            tensor: name.to_owned(),
            remedy: explain_unknown(name, config),
        }),
    }
}

fn check_tensor(table: &TensorTable, expected: &Expected) -> Result<(), CheckpointError> {
    let tensor = table.get(&expected.name, explain_missing(&expected.name))?;
    if tensor.dtype != expected.dtype {
        return Err(wrong_dtype(table, tensor, expected));
    }
    if tensor.shape != expected.shape {
        return Err(CheckpointError::Shape {
            file: table.file_of(tensor).to_owned(),
            tensor: expected.name.clone(),
            expected: expected.shape.clone(),
            found: tensor.shape.clone(),
        });
    }
    Ok(())
}

fn wrong_dtype(table: &TensorTable, tensor: &Tensor, expected: &Expected) -> CheckpointError {
    CheckpointError::Dtype {
        file: table.file_of(tensor).to_owned(),
        tensor: expected.name.clone(),
        expected: expected.dtype.to_string(),
        found: tensor.dtype.to_string(),
        remedy: if expected.dtype == Dtype::BF16 {
            "convert it to bfloat16, as in the published checkpoints"
        } else {
            "quantise the experts to MXFP4, as in the published checkpoints"
        },
    }
}

/// What may be there and changes nothing: frequencies that old versions of
/// transformers saved although they follow from `config.json`, and a head
/// where the embedding is tied, which transformers overwrites with it.
fn is_harmless(name: &str, layout: Layout, config: &ModelConfig) -> bool {
    name.ends_with("rotary_emb.inv_freq") || (config.tie_word_embeddings && name == layout.head())
}

fn explain_missing(name: &str) -> &'static str {
    if name.contains("experts.") || name.contains(".mlp1_") || name.contains(".mlp2_") {
        "experts are read as MXFP4 blocks, scales and bf16 biases"
    } else if name.ends_with(".bias") && (name.contains("_attn.") || name.contains(".attn.")) {
        "add it, or set `attention_bias` to false if the model has none"
    } else if name == "lm_head.weight" {
        "add it, or set `tie_word_embeddings` to true if the embedding is the head"
    } else {
        "the model needs it: compare `num_hidden_layers` and the download"
    }
}

fn explain_unknown(name: &str, config: &ModelConfig) -> &'static str {
    if !config.attention_bias && name.ends_with(".bias") {
        "`attention_bias` is false in config.json; set it to true if the model has biases"
    } else {
        "compare `num_hidden_layers` and `model_type` in config.json"
    }
}
