//! Sound files whose tensors are not those of the model that `config.json` describes.

use super::{Case, FIRST, ROUTER, SCALES, SECOND};
use crate::support::INDEX;
use chorale_model::checkpoint::CheckpointError::*;
use serde_json::{Value, json};

pub(super) const CASES: &[Case] = &[
    (
        "a tensor is missing",
        |c| c.rename_tensor(FIRST, ROUTER, "model.rotary_emb.inv_freq"),
        |e| matches!(e, MissingTensor { .. }),
        &[INDEX, ROUTER],
    ),
    (
        "the head is missing",
        |c| c.rename_tensor(SECOND, "lm_head.weight", "model.rotary_emb.inv_freq"),
        |e| matches!(e, MissingTensor { .. }),
        &[INDEX, "lm_head.weight", "tie_word_embeddings"],
    ),
    (
        "a bias is missing",
        |c| c.rename_tensor(FIRST, "model.layers.0.self_attn.q_proj.bias", "model.rotary_emb.inv_freq"),
        |e| matches!(e, MissingTensor { .. }),
        &[INDEX, "model.layers.0.self_attn.q_proj.bias", "attention_bias"],
    ),
    (
        "experts are not MXFP4",
        |c| {
            let name = "model.layers.0.mlp.experts.gate_up_proj";
            c.rename_tensor(FIRST, &format!("{name}_blocks"), name);
        },
        |e| matches!(e, MissingTensor { .. }),
        &[INDEX, "gate_up_proj_blocks", "MXFP4"],
    ),
    (
        "config has a layer more",
        |c| {
            c.edit_json("config.json", |config| {
                config["num_hidden_layers"] = 5.into();
                config["layer_types"] = Value::Null;
            });
        },
        |e| matches!(e, MissingTensor { .. }),
        &[INDEX, "model.layers.4.", "num_hidden_layers"],
    ),
    (
        "config has a layer less",
        |c| {
            c.edit_json("config.json", |config| {
                config["num_hidden_layers"] = 3.into();
                config["layer_types"] = Value::Null;
            });
        },
        |e| matches!(e, UnknownTensor { .. }),
        &[SECOND, "model.layers.3.", "num_hidden_layers"],
    ),
    (
        "a tensor that no gpt-oss has",
        |c| c.add_tensor(FIRST, "model.layers.0.self_attn.q_norm.weight", "BF16", &[64], &[0; 128]),
        |e| matches!(e, UnknownTensor { .. }),
        &[FIRST, "model.layers.0.self_attn.q_norm.weight"],
    ),
    (
        "biases that config denies",
        |c| c.edit_json("config.json", |config| config["attention_bias"] = false.into()),
        |e| matches!(e, UnknownTensor { .. }),
        &["self_attn.k_proj.bias", "attention_bias"],
    ),
    (
        "a transposed matrix",
        |c| c.edit_header(FIRST, |h| h[ROUTER]["shape"] = json!([64, 8])),
        |e| matches!(e, Shape { .. }),
        &[FIRST, ROUTER, "[64, 8]", "[8, 64]"],
    ),
    (
        "a flattened matrix",
        |c| c.edit_header(FIRST, |h| h[ROUTER]["shape"] = json!([512])),
        |e| matches!(e, Shape { .. }),
        &[FIRST, ROUTER, "[512]"],
    ),
    (
        "another hidden size",
        |c| c.edit_json("config.json", |config| config["hidden_size"] = 96.into()),
        |e| matches!(e, Shape { .. }),
        &[FIRST, "model.embed_tokens.weight", "[512, 64]", "[512, 96]"],
    ),
    (
        "another number of experts",
        |c| c.edit_json("config.json", |config| config["num_local_experts"] = 9.into()),
        |e| matches!(e, Shape { .. }),
        &[FIRST, "model.layers.0.mlp.router.weight", "[8, 64]", "[9, 64]"],
    ),
    (
        "f16 weights",
        |c| c.edit_header(FIRST, |h| h[ROUTER]["dtype"] = "F16".into()),
        |e| matches!(e, Dtype { .. }),
        &[FIRST, ROUTER, "F16", "BF16", "bfloat16"],
    ),
    (
        "f32 weights",
        |c| {
            c.edit_header(FIRST, |h| {
                h[ROUTER]["dtype"] = "F32".into();
                h[ROUTER]["shape"] = json!([8, 32]);
            });
        },
        |e| matches!(e, Dtype { .. }),
        &[FIRST, ROUTER, "F32", "BF16"],
    ),
    (
        "signed scales",
        |c| c.edit_header(FIRST, |h| h[SCALES]["dtype"] = "I8".into()),
        |e| matches!(e, Dtype { .. }),
        &[FIRST, SCALES, "I8", "U8", "MXFP4"],
    ),
];
