//! What chat and token level have in common in their requests: sampling,
//! limits and handling. Each field is in its range afterwards; defaults are
//! not filled in, for the server has them.

use super::v1;
use crate::field::{InvalidField, at_most, filled, in_range, positive, short};
use chorale_plan::TokenId;
use std::num::NonZeroU32;

const MAX_TOP_LOGPROBS: u32 = 20;
const MAX_STOPS: usize = 16;
const MAX_STOP_TOKENS: usize = 256;
const MAX_STOP_BYTES: usize = 1024;
const MAX_LOGIT_BIASES: usize = 1024;
const MAX_CACHE_SALT_BYTES: usize = 256;

/// How each token is chosen, as far as the client says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampling {
    /// 0 to 2.
    pub temperature: Option<f32>,
    /// Above 0, to 1.
    pub top_p: Option<f32>,
    /// 0 keeps all.
    pub top_k: Option<u32>,
    /// 0 to 1.
    pub min_p: Option<f32>,
    /// -2 to 2.
    pub presence_penalty: Option<f32>,
    /// -2 to 2.
    pub frequency_penalty: Option<f32>,
    /// 0.01 to 100.
    pub repetition_penalty: Option<f32>,
    /// By token, each at most once, -100 to 100.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Makes the output repeatable.
    pub seed: Option<u64>,
}

impl TryFrom<v1::Sampling> for Sampling {
    type Error = InvalidField;

    fn try_from(message: v1::Sampling) -> Result<Self, InvalidField> {
        if message.logit_bias.len() > MAX_LOGIT_BIASES {
            let reason = format_args!("must have at most {MAX_LOGIT_BIASES} entries");
            return Err(InvalidField::new("logit_bias", reason));
        }
        // A map has no order; requests that say the same must be the same.
        let mut logit_bias: Vec<(TokenId, f32)> = message.logit_bias.into_iter().collect();
        logit_bias.sort_by_key(|(token, _)| *token);
        for (token, bias) in &logit_bias {
            in_range(&format!("logit_bias[{token}]"), Some(*bias), -100.0..=100.0)?;
        }
        Ok(Self {
            temperature: in_range("temperature", message.temperature, 0.0..=2.0)?,
            top_p: positive("top_p", message.top_p, 1.0)?,
            top_k: message.top_k,
            min_p: in_range("min_p", message.min_p, 0.0..=1.0)?,
            presence_penalty: in_range("presence_penalty", message.presence_penalty, -2.0..=2.0)?,
            frequency_penalty: in_range("frequency_penalty", message.frequency_penalty, -2.0..=2.0)?,
            repetition_penalty: in_range("repetition_penalty", message.repetition_penalty, 0.01..=100.0)?,
            logit_bias,
            seed: message.seed,
        })
    }
}

/// When a request ends by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// `None` for what the context leaves.
    pub max_tokens: Option<NonZeroU32>,
    /// At most `max_tokens`.
    pub min_tokens: u32,
    /// None is empty.
    pub stop: Vec<String>,
    /// Beside the model's own.
    pub stop_tokens: Vec<TokenId>,
    /// Go on after the model's end tokens.
    pub ignore_eos: bool,
}

impl TryFrom<v1::Limits> for Limits {
    type Error = InvalidField;

    fn try_from(message: v1::Limits) -> Result<Self, InvalidField> {
        let v1::Limits { max_tokens, min_tokens, stop, stop_token_ids, ignore_eos } = message;
        let max_tokens = in_range("max_tokens", max_tokens, 1..=u32::MAX)?;
        in_range("min_tokens", Some(min_tokens), 0..=max_tokens.unwrap_or(u32::MAX))?;
        let max_tokens = max_tokens.and_then(NonZeroU32::new);
        let check_stop = |(index, text): (usize, String)| {
            let field = format!("stop[{index}]");
            short(&field, filled(&field, text)?, MAX_STOP_BYTES)
        };
        let stop = at_most("stop", stop, MAX_STOPS)?;
        let stop = stop.into_iter().enumerate().map(check_stop).collect::<Result<_, _>>()?;
        let stop_tokens = at_most("stop_token_ids", stop_token_ids, MAX_STOP_TOKENS)?;
        Ok(Self { max_tokens, min_tokens, stop, stop_tokens, ignore_eos })
    }
}

/// How the server treats a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Handling {
    /// Lower runs first.
    pub priority: i32,
    /// Requests of the same salt share cached pages.
    pub cache_salt: Vec<u8>,
}

impl TryFrom<v1::Handling> for Handling {
    type Error = InvalidField;

    fn try_from(message: v1::Handling) -> Result<Self, InvalidField> {
        let cache_salt = short("cache_salt", message.cache_salt, MAX_CACHE_SALT_BYTES)?;
        Ok(Self { priority: message.priority, cache_salt: cache_salt.into_bytes() })
    }
}

/// Reads a field that is a message with nothing but optional fields.
pub(super) fn optional<M, T>(field: &str, message: Option<M>) -> Result<T, InvalidField>
where
    M: Default,
    T: TryFrom<M, Error = InvalidField>,
{
    T::try_from(message.unwrap_or_default()).map_err(|error| error.within(field))
}

/// How many answers are wanted. How many are served is not known here.
pub(super) fn num_choices(n: Option<u32>) -> Result<NonZeroU32, InvalidField> {
    let n = in_range("n", n, 1..=u32::MAX)?;
    Ok(n.and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN))
}

/// How many alternatives are wanted, if log-probabilities are wanted at all.
pub(super) fn num_top_logprobs(options: Option<v1::LogprobsOptions>) -> Result<Option<u32>, InvalidField> {
    in_range("logprobs.num_top", options.map(|options| options.num_top), 0..=MAX_TOP_LOGPROBS)
}
