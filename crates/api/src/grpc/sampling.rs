//! How a client wants its tokens chosen, as the workers want to be told. What
//! depends on the vocabulary is checked here; ranges were checked before.

use crate::error::ApiError;
use chorale_harmony::TokenId;
use chorale_plan::{Penalties, SamplingParams};
use chorale_wire::inference::{Limits, Sampling};
use std::num::NonZeroU32;

/// OpenAI's temperature where none is asked for.
const DEFAULT_TEMPERATURE: f32 = 1.0;

/// Temperatures below this are greedy: they would overflow.
const MIN_TEMPERATURE: f32 = 1e-5;

/// The sampling of a request.
pub(super) fn params(
    sampling: Sampling,
    num_logprobs: Option<u32>,
    vocabulary_size: u32,
) -> Result<SamplingParams, ApiError> {
    for (token, _) in &sampling.logit_bias {
        in_vocabulary(*token, vocabulary_size, || format!("sampling.logit_bias[{token}]"))?;
    }
    Ok(SamplingParams {
        temperature: match sampling.temperature {
            Some(temperature) if temperature < MIN_TEMPERATURE => 0.0,
            temperature => temperature.unwrap_or(DEFAULT_TEMPERATURE),
        },
        top_k: sampling.top_k.filter(|&k| k > 0),
        top_p: sampling.top_p.unwrap_or(1.0),
        min_p: sampling.min_p.unwrap_or(0.0),
        penalties: penalties(&sampling),
        logit_bias: sampling.logit_bias,
        seed: sampling.seed.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0),
        allowed: None,
        num_logprobs,
    })
}

/// Penalties cost each step something, so none are asked for that do nothing.
fn penalties(sampling: &Sampling) -> Option<Penalties> {
    let penalties = Penalties {
        repetition: sampling.repetition_penalty.unwrap_or(1.0),
        presence: sampling.presence_penalty.unwrap_or(0.0),
        frequency: sampling.frequency_penalty.unwrap_or(0.0),
        history: Vec::new(),
    };
    let does_nothing = penalties.repetition == 1.0 && penalties.presence == 0.0 && penalties.frequency == 0.0;
    (!does_nothing).then_some(penalties)
}

/// Checks the stop tokens of a request.
pub(super) fn check_limits(limits: &Limits, vocabulary_size: u32) -> Result<(), ApiError> {
    all_in_vocabulary(&limits.stop_tokens, "limits.stop_token_ids", vocabulary_size)
}

/// Checks how many answers are wanted.
pub(super) fn check_choices(n: NonZeroU32, max: u32) -> Result<(), ApiError> {
    if n.get() > max {
        return Err(ApiError::invalid("n", format_args!("must be from 1 to {max}, not {n}")));
    }
    Ok(())
}

/// Checks a list of tokens.
pub(super) fn all_in_vocabulary(
    tokens: &[TokenId],
    field: &str,
    vocabulary_size: u32,
) -> Result<(), ApiError> {
    let mut tokens = tokens.iter().enumerate();
    tokens
        .try_for_each(|(index, token)| in_vocabulary(*token, vocabulary_size, || format!("{field}[{index}]")))
}

fn in_vocabulary(
    token: TokenId,
    vocabulary_size: u32,
    field: impl FnOnce() -> String,
) -> Result<(), ApiError> {
    if token < vocabulary_size {
        return Ok(());
    }
    Err(ApiError::invalid(field(), format_args!("must be below {vocabulary_size}, not {token}")))
}
