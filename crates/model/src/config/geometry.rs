//! What the numbers of a geometry owe each other, whichever file they are
//! from: after this no product of them overflows and every division is exact.

use super::ModelConfig;
use super::fields::Fields;
use crate::checkpoint::CheckpointError;
use chorale_device::BLOCK;

/// The published models have 24 and 36.
const MAX_LAYERS: usize = 4096;

/// Fields that the two kinds of file name differently.
pub(super) struct Names {
    pub(super) num_experts: &'static str,
    pub(super) experts_per_token: &'static str,
}

pub(super) fn num_layers(config: &Fields<'_>) -> Result<usize, CheckpointError> {
    let num_layers = config.size("num_hidden_layers")?;
    if num_layers <= MAX_LAYERS {
        Ok(num_layers)
    } else {
        Err(config.invalid("num_hidden_layers", format!("at most {MAX_LAYERS} layers are served")))
    }
}

pub(super) fn window(config: &Fields<'_>) -> Result<u32, CheckpointError> {
    let window = config.size("sliding_window")?;
    u32::try_from(window).map_err(|_| config.invalid("sliding_window", "a 32-bit number is expected"))
}

pub(super) fn check(model: &ModelConfig, config: &Fields<'_>, names: &Names) -> Result<(), CheckpointError> {
    for (key, size) in [("hidden_size", model.hidden_size), ("intermediate_size", model.intermediate_size)] {
        if !size.is_multiple_of(BLOCK) {
            return Err(config.invalid(key, format!("a multiple of {BLOCK} is expected, MXFP4's block")));
        }
    }
    if !model.head_dim.is_multiple_of(2) {
        return Err(config.invalid("head_dim", "an even number is expected, RoPE rotates pairs"));
    }
    if !model.num_attention_heads.is_multiple_of(model.num_key_value_heads) {
        return Err(config.invalid(
            "num_key_value_heads",
            format!("a divisor of `num_attention_heads` ({}) is expected", model.num_attention_heads),
        ));
    }
    if model.experts_per_token > model.num_experts {
        return Err(config.invalid(
            names.experts_per_token,
            format!("at most `{}` ({}) is expected", names.num_experts, model.num_experts),
        ));
    }
    check_bytes(model, config)
}

/// The largest factors are bounded where they are read, so `u128` holds every
/// product here; all of the model must be addressable at once.
fn check_bytes(model: &ModelConfig, config: &Fields<'_>) -> Result<(), CheckpointError> {
    let [hidden, intermediate, heads, head_dim, experts, vocab] = [
        model.hidden_size,
        model.intermediate_size,
        model.num_attention_heads,
        model.head_dim,
        model.num_experts,
        model.vocab_size,
    ]
    .map(|size| size as u128);
    let attention = heads * head_dim * hidden * 8;
    let expert_weights = experts * intermediate * hidden * 3;
    let tables = vocab * hidden * 4;
    for (key, bytes) in [
        ("num_attention_heads x head_dim x hidden_size", attention),
        ("experts x intermediate_size x hidden_size", expert_weights),
        ("vocab_size x hidden_size", tables),
        ("num_hidden_layers x weights", (attention + expert_weights) * model.windows.len() as u128),
    ] {
        if bytes > isize::MAX as u128 / 4 {
            let value = format!("about {bytes} bytes");
            return Err(config.invalid_value(
                key,
                value,
                "no machine addresses that many, check the factors",
            ));
        }
    }
    Ok(())
}
