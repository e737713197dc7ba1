//! `config.json` of OpenAI's own layout, the folder `original/` of the
//! published repositories. It says less: even layers slide, biases are always
//! there, and the head is never tied.

use super::fields::Fields;
use super::geometry::{self, Names};
use super::{DEFAULT_RMS_NORM_EPS, DEFAULT_SWIGLU_LIMIT, ModelConfig, rope, tokens};
use crate::checkpoint::CheckpointError;

const NAMES: Names = Names { num_experts: "num_experts", experts_per_token: "experts_per_token" };

pub(super) fn read(
    config: &Fields<'_>,
    generation: Option<&Fields<'_>>,
) -> Result<ModelConfig, CheckpointError> {
    let num_layers = geometry::num_layers(config)?;
    let window = geometry::window(config)?;
    let head_dim = config.size("head_dim")?;
    let rope = rope::original(config, head_dim)?;
    let model = ModelConfig {
        hidden_size: config.size("hidden_size")?,
        intermediate_size: config.size("intermediate_size")?,
        num_attention_heads: config.size("num_attention_heads")?,
        num_key_value_heads: config.size("num_key_value_heads")?,
        head_dim,
        num_experts: config.size(NAMES.num_experts)?,
        experts_per_token: config.size(NAMES.experts_per_token)?,
        vocab_size: config.size("vocab_size")?,
        windows: (0..num_layers).map(|layer| (layer % 2 == 0).then_some(window)).collect(),
        // The first releases lack `swiglu_limit`; the reference code's default is the released value.
        swiglu_limit: config.positive_f32("swiglu_limit", DEFAULT_SWIGLU_LIMIT)?,
        rms_norm_eps: DEFAULT_RMS_NORM_EPS,
        attention_bias: true,
        tie_word_embeddings: false,
        max_position_embeddings: max_positions(config, &rope)?,
        rope,
        eos_token_ids: tokens::end_of_sequence(config, generation)?,
    };
    geometry::check(&model, config, &NAMES)?;
    Ok(model)
}

/// The file has no such field: the context it was trained on, stretched.
fn max_positions(config: &Fields<'_>, rope: &chorale_device::RopeParams) -> Result<usize, CheckpointError> {
    let context = config.size("initial_context_length")? as f64;
    let positions = context * rope.yarn.map_or(1.0, |yarn| yarn.factor);
    if positions <= f64::from(u32::MAX) {
        Ok(positions as usize)
    } else {
        Err(config.invalid("rope_scaling_factor", "it stretches the context beyond 32-bit positions"))
    }
}
