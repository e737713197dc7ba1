//! How tokens are chosen. What is not a number here would come out as no token
//! at all far away, so it is refused.

use super::packed::{differences, sums};
use super::v1;
use crate::InvalidField;
use crate::field::{at_most, in_range, positive};
use chorale_plan::{Penalties, SamplingParams, TokenCount};

/// More than any door lets through.
const MAX_LOGPROBS: u32 = 1024;
/// More than any door lets through.
const MAX_BIASES: usize = 1 << 16;

impl From<SamplingParams> for v1::Sampling {
    fn from(params: SamplingParams) -> Self {
        let (bias_tokens, biases) = params.logit_bias.into_iter().unzip();
        Self {
            temperature: params.temperature,
            top_k: params.top_k,
            top_p: params.top_p,
            min_p: params.min_p,
            penalties: params.penalties.map(Into::into),
            bias_tokens,
            biases,
            seed: params.seed,
            allowed: params.allowed.map(Into::into),
            num_logprobs: params.num_logprobs,
        }
    }
}

impl TryFrom<v1::Sampling> for SamplingParams {
    type Error = InvalidField;

    fn try_from(message: v1::Sampling) -> Result<Self, InvalidField> {
        let penalties = message.penalties.map(TryInto::try_into).transpose();
        let allowed = message.allowed.map(TryInto::try_into).transpose();
        in_range("temperature", Some(message.temperature), 0.0..=f32::MAX)?;
        positive("top_p", Some(message.top_p), 1.0)?;
        in_range("min_p", Some(message.min_p), 0.0..=1.0)?;
        let bias_tokens = at_most("bias_tokens", message.bias_tokens, MAX_BIASES)?;
        same_length("biases", message.biases.len(), bias_tokens.len())?;
        for (index, bias) in message.biases.iter().enumerate() {
            number(&format!("biases[{index}]"), *bias)?;
        }
        Ok(Self {
            temperature: message.temperature,
            top_k: in_range("top_k", message.top_k, 1..=u32::MAX)?,
            top_p: message.top_p,
            min_p: message.min_p,
            penalties: penalties.map_err(|error: InvalidField| error.within("penalties"))?,
            logit_bias: bias_tokens.into_iter().zip(message.biases).collect(),
            seed: message.seed,
            allowed: allowed.map_err(|error: InvalidField| error.within("allowed"))?,
            num_logprobs: in_range("num_logprobs", message.num_logprobs, 0..=MAX_LOGPROBS)?,
        })
    }
}

impl From<Penalties> for v1::Penalties {
    fn from(penalties: Penalties) -> Self {
        Self {
            repetition: penalties.repetition,
            presence: penalties.presence,
            frequency: penalties.frequency,
            token_differences: differences(penalties.history.iter().map(|count| count.token)),
            nums_in_output: penalties.history.iter().map(|count| count.num_in_output).collect(),
        }
    }
}

impl TryFrom<v1::Penalties> for Penalties {
    type Error = InvalidField;

    fn try_from(message: v1::Penalties) -> Result<Self, InvalidField> {
        positive("repetition", Some(message.repetition), f32::MAX)?;
        in_range("presence", Some(message.presence), f32::MIN..=f32::MAX)?;
        in_range("frequency", Some(message.frequency), f32::MIN..=f32::MAX)?;
        let tokens = sums(&message.token_differences);
        same_length("nums_in_output", message.nums_in_output.len(), tokens.len())?;
        let counts = tokens.zip(message.nums_in_output);
        Ok(Self {
            repetition: message.repetition,
            presence: message.presence,
            frequency: message.frequency,
            history: counts.map(|(token, num_in_output)| TokenCount { token, num_in_output }).collect(),
        })
    }
}

/// Lists that belong together item by item.
pub(super) fn same_length(field: &str, len: usize, expected: usize) -> Result<(), InvalidField> {
    if len == expected {
        return Ok(());
    }
    Err(InvalidField::new(field, format_args!("must have {expected} entries, not {len}")))
}

/// Anything but what is not a number: logits may be infinite.
pub(super) fn number(field: &str, value: f32) -> Result<f32, InvalidField> {
    if value.is_nan() { Err(InvalidField::new(field, "must be a number")) } else { Ok(value) }
}
