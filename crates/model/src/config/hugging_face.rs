//! `config.json` and `generation_config.json` as transformers writes them.
//! What transformers reads and this crate does not support is refused by name.

use super::fields::Fields;
use super::geometry::{self, Names};
use super::{DEFAULT_RMS_NORM_EPS, DEFAULT_SWIGLU_LIMIT, ModelConfig, rope, tokens};
use crate::checkpoint::CheckpointError;
use serde_json::Value;

const ARCHITECTURE: &str = "GptOssForCausalLM";
const MODEL_TYPE: &str = "gpt_oss";
/// The slope of the experts' sigmoid, which the kernels have built in.
const SWIGLU_ALPHA: f64 = 1.702;

const NAMES: Names = Names { num_experts: "num_local_experts", experts_per_token: "num_experts_per_tok" };

pub(super) fn read(
    config: &Fields<'_>,
    generation: Option<&Fields<'_>>,
) -> Result<ModelConfig, CheckpointError> {
    refuse_other_models(config)?;
    let head_dim = config.size("head_dim")?;
    let max_position_embeddings = config.size("max_position_embeddings")?;
    let model = ModelConfig {
        hidden_size: config.size("hidden_size")?,
        intermediate_size: config.size("intermediate_size")?,
        num_attention_heads: config.size("num_attention_heads")?,
        num_key_value_heads: config.size("num_key_value_heads")?,
        head_dim,
        num_experts: config.size_by_either_name(NAMES.num_experts, "num_experts")?,
        experts_per_token: config.size_by_either_name(NAMES.experts_per_token, "experts_per_token")?,
        vocab_size: config.size("vocab_size")?,
        windows: windows(config)?,
        rope: rope::hugging_face(config, head_dim, max_position_embeddings)?,
        swiglu_limit: config.positive_f32("swiglu_limit", DEFAULT_SWIGLU_LIMIT)?,
        rms_norm_eps: config.positive_f32("rms_norm_eps", DEFAULT_RMS_NORM_EPS)?,
        attention_bias: config.boolean("attention_bias", true)?,
        tie_word_embeddings: config.boolean("tie_word_embeddings", false)?,
        max_position_embeddings,
        eos_token_ids: tokens::end_of_sequence(config, generation)?,
    };
    geometry::check(&model, config, &NAMES)?;
    Ok(model)
}

/// Everything that says the computation is another one.
fn refuse_other_models(config: &Fields<'_>) -> Result<(), CheckpointError> {
    match config.text("model_type")? {
        Some(MODEL_TYPE) => {}
        Some(_) => return Err(config.unsupported("model_type", "only `gpt_oss` is")),
        None if config.get("architectures").is_some() => {}
        None => return Err(config.missing("model_type", "`gpt_oss` is expected")),
    }
    match config.get("architectures") {
        None => {}
        Some(Value::Array(names)) if names.iter().any(|name| name.as_str() == Some(ARCHITECTURE)) => {}
        Some(_) => return Err(config.unsupported("architectures", "only [\"GptOssForCausalLM\"] is")),
    }
    match config.text("hidden_act")? {
        None | Some("silu") => {}
        Some(_) => return Err(config.unsupported("hidden_act", "only `silu` is")),
    }
    match config.optional_number("swiglu_alpha")? {
        None | Some(SWIGLU_ALPHA) => {}
        Some(_) => return Err(config.unsupported("swiglu_alpha", "only 1.702 is")),
    }
    refuse_other_quantization(config)
}

fn refuse_other_quantization(config: &Fields<'_>) -> Result<(), CheckpointError> {
    const REMEDY: &str = "only `mxfp4` is: take the published checkpoint, or quantise the experts to MXFP4";
    const MISSING: &str =
        "`quant_method` must be `mxfp4`: take the published checkpoint, or quantise the experts to MXFP4";
    let Some(quantization) = config.section("quantization_config", "quantization_config.")? else {
        return Err(config.missing("quantization_config", MISSING));
    };
    match quantization.text("quant_method")? {
        Some("mxfp4") => Ok(()),
        Some(_) => Err(quantization.unsupported("quant_method", REMEDY)),
        None => Err(quantization.missing("quant_method", MISSING)),
    }
}

/// For each layer its window; without `layer_types` even layers slide.
fn windows(config: &Fields<'_>) -> Result<Vec<Option<u32>>, CheckpointError> {
    let num_layers = geometry::num_layers(config)?;
    let slides: Vec<bool> = match config.get("layer_types") {
        None => (0..num_layers).map(|layer| layer % 2 == 0).collect(),
        Some(Value::Array(types)) => {
            if types.len() != num_layers {
                return Err(config.invalid_value(
                    "layer_types",
                    format!("a list of {}", types.len()),
                    format!("`num_hidden_layers` is {num_layers}, one entry for each layer is expected"),
                ));
            }
            types
                .iter()
                .enumerate()
                .map(|(layer, kind)| slides(config, layer, kind))
                .collect::<Result<_, _>>()?
        }
        Some(_) => return Err(config.invalid("layer_types", "a list of strings is expected")),
    };
    if !slides.contains(&true) {
        return Ok(vec![None; num_layers]);
    }
    let window = geometry::window(config)?;
    Ok(slides.into_iter().map(|slides| slides.then_some(window)).collect())
}

fn slides(config: &Fields<'_>, layer: usize, kind: &Value) -> Result<bool, CheckpointError> {
    match kind.as_str() {
        Some("sliding_attention") => Ok(true),
        Some("full_attention") => Ok(false),
        _ => Err(config.invalid_value(
            &format!("layer_types[{layer}]"),
            kind.to_string(),
            "`sliding_attention` or `full_attention` is expected",
        )),
    }
}
