//! Rotary position embedding as `config.json` describes it: transformers 4's
//! `rope_theta` beside `rope_scaling`, transformers 5's `rope_parameters`, and
//! the keys of OpenAI's own file. Only plain RoPE and YaRN; nothing is assumed.

use super::fields::Fields;
use crate::checkpoint::CheckpointError;
use chorale_device::{RopeParams, YarnParams};

/// YaRN's own choice where the checkpoint has none (arXiv:2309.00071), as in transformers.
const DEFAULT_BETA_FAST: f64 = 32.0;
const DEFAULT_BETA_SLOW: f64 = 1.0;

/// Reads transformers' keys.
pub(super) fn hugging_face(
    config: &Fields<'_>,
    head_dim: usize,
    max_position_embeddings: usize,
) -> Result<RopeParams, CheckpointError> {
    refuse_partial(config)?;
    let read = |section: &Fields<'_>| {
        refuse_partial(section)?;
        let theta = theta(config, section)?;
        Ok(RopeParams { head_dim, theta, yarn: scaling(section, max_position_embeddings)? })
    };
    let parameters = config.section("rope_parameters", "rope_parameters.")?;
    let scaling = config.section("rope_scaling", "rope_scaling.")?;
    match (parameters, scaling) {
        (Some(section), None) | (None, Some(section)) => read(&section),
        (Some(section), Some(other)) => {
            let rope = read(&section)?;
            if rope == read(&other)? {
                Ok(rope)
            } else {
                Err(config.conflict("rope_parameters", "rope_scaling", "keep one of them"))
            }
        }
        // transformers 4 takes null for plain RoPE, transformers 5 for gpt-oss's usual YaRN.
        (None, None) if config.is_null("rope_scaling") || config.is_null("rope_parameters") => {
            let key = if config.is_null("rope_scaling") { "rope_scaling" } else { "rope_parameters" };
            Err(config.invalid(key, "write it out: {\"rope_type\": \"default\"} is plain RoPE"))
        }
        (None, None) => Err(config.missing(
            "rope_scaling",
            "write it out, or `rope_parameters`: {\"rope_type\": \"default\"} is plain RoPE",
        )),
    }
}

/// Reads the keys of OpenAI's own `config.json`, whose YaRN is off up to a factor of 1.
pub(super) fn original(config: &Fields<'_>, head_dim: usize) -> Result<RopeParams, CheckpointError> {
    let theta = base(config, "rope_theta")?.ok_or_else(|| config.missing("rope_theta", THETA))?;
    let factor = stretch(config, "rope_scaling_factor")?;
    let yarn = YarnParams {
        factor,
        beta_fast: positive(config, "rope_ntk_beta")?
            .ok_or_else(|| config.missing("rope_ntk_beta", POSITIVE))?,
        beta_slow: positive(config, "rope_ntk_alpha")?
            .ok_or_else(|| config.missing("rope_ntk_alpha", POSITIVE))?,
        original_context: config.size("initial_context_length")? as f64,
        truncate: false,
        attention_factor: mscale(factor, 1.0),
    };
    check_betas(config, "rope_ntk_beta", &yarn)?;
    Ok(RopeParams { head_dim, theta, yarn: (factor > 1.0).then_some(yarn) })
}

const THETA: &str = "a number above 1 is expected";
const POSITIVE: &str = "a number above 0 is expected";

/// A model that rotates only part of each head would load and answer wrongly.
fn refuse_partial(fields: &Fields<'_>) -> Result<(), CheckpointError> {
    match fields.optional_number("partial_rotary_factor")? {
        None | Some(1.0) => Ok(()),
        Some(_) => Err(fields.unsupported("partial_rotary_factor", "only 1 is, whole heads are rotated")),
    }
}

/// The base of the frequencies: inside the section, beside it, or both alike.
fn theta(config: &Fields<'_>, section: &Fields<'_>) -> Result<f64, CheckpointError> {
    match (base(section, "rope_theta")?, base(config, "rope_theta")?) {
        (Some(inner), Some(outer)) if inner != outer => {
            Err(config.conflict_with("rope_theta", section, "rope_theta", "keep one of them"))
        }
        (Some(theta), _) | (None, Some(theta)) => Ok(theta),
        (None, None) => Err(config.missing("rope_theta", THETA)),
    }
}

/// YaRN's parameters, or nothing for plain RoPE.
fn scaling(
    section: &Fields<'_>,
    max_position_embeddings: usize,
) -> Result<Option<YarnParams>, CheckpointError> {
    if let Some((key, _)) = section.entries().find(|(_, value)| value.is_object()) {
        return Err(section.unsupported(key, "one set of parameters is read for all layers"));
    }
    let (key, kind) = match (section.text("rope_type")?, section.text("type")?) {
        (Some(kind), Some(older)) if kind != older => {
            return Err(section.conflict("rope_type", "type", "keep `rope_type`"));
        }
        (Some(kind), _) => ("rope_type", kind),
        (None, Some(kind)) => ("type", kind),
        (None, None) => return Err(section.missing("rope_type", "`default` or `yarn` is expected")),
    };
    match kind {
        "default" | "none" => Ok(None),
        "yarn" => yarn(section, max_position_embeddings).map(Some),
        _ => Err(section.unsupported(key, "only `yarn` and `default` are")),
    }
}

/// As transformers 5 reads it; `factor` is taken at its word even where
/// `max_position_embeddings / original_max_position_embeddings` differs.
fn yarn(section: &Fields<'_>, max_position_embeddings: usize) -> Result<YarnParams, CheckpointError> {
    let factor = stretch(section, "factor")?;
    let attention_factor = match positive(section, "attention_factor")? {
        Some(factor) => factor,
        None => default_attention_factor(section, factor)?,
    };
    let yarn = YarnParams {
        factor,
        beta_fast: positive(section, "beta_fast")?.unwrap_or(DEFAULT_BETA_FAST),
        beta_slow: positive(section, "beta_slow")?.unwrap_or(DEFAULT_BETA_SLOW),
        original_context: section
            .optional_size("original_max_position_embeddings")?
            .unwrap_or(max_position_embeddings) as f64,
        truncate: section.boolean("truncate", true)?,
        attention_factor,
    };
    check_betas(section, "beta_fast", &yarn)?;
    Ok(yarn)
}

/// `0.1 ln(factor) + 1`, or the quotient of two such where a checkpoint gives
/// both `mscale`s, as DeepSeek's do.
fn default_attention_factor(section: &Fields<'_>, factor: f64) -> Result<f64, CheckpointError> {
    let scale = section.optional_number("mscale")?.filter(|&scale| scale != 0.0);
    let all_dim = section.optional_number("mscale_all_dim")?.filter(|&scale| scale != 0.0);
    let (Some(scale), Some(all_dim)) = (scale, all_dim) else { return Ok(mscale(factor, 1.0)) };
    let attention_factor = mscale(factor, scale) / mscale(factor, all_dim);
    if attention_factor.is_finite() && attention_factor > 0.0 {
        Ok(attention_factor)
    } else {
        Err(section.invalid("mscale", "with `mscale_all_dim` it must give a finite scale above 0"))
    }
}

fn mscale(factor: f64, scale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 }
}

fn check_betas(fields: &Fields<'_>, fast: &str, yarn: &YarnParams) -> Result<(), CheckpointError> {
    if yarn.beta_fast > yarn.beta_slow {
        return Ok(());
    }
    Err(fields.invalid_value(
        fast,
        yarn.beta_fast.to_string(),
        format!("it must be above the slow one, which is {}", yarn.beta_slow),
    ))
}

/// Frequencies fall with the base's logarithm, so it must be above 1.
fn base(fields: &Fields<'_>, key: &str) -> Result<Option<f64>, CheckpointError> {
    match fields.optional_number(key)? {
        Some(theta) if theta <= 1.0 => Err(fields.invalid(key, THETA)),
        theta => Ok(theta),
    }
}

fn stretch(fields: &Fields<'_>, key: &str) -> Result<f64, CheckpointError> {
    let factor = fields.number(key)?;
    if factor >= 1.0 { Ok(factor) } else { Err(fields.invalid(key, "a number from 1 up is expected")) }
}

fn positive(fields: &Fields<'_>, key: &str) -> Result<Option<f64>, CheckpointError> {
    match fields.optional_number(key)? {
        Some(number) if number <= 0.0 => Err(fields.invalid(key, POSITIVE)),
        number => Ok(number),
    }
}
