//! A step's plan and its outcome. Plans go to every rank for every step, so this
//! is where bytes count.

use super::packed::{differences, sums};
use super::sampling::{number, same_length};
use super::world::{MAX_RANKS, rank};
use super::{items, v1};
use crate::InvalidField;
use crate::field::{at_most, present};
use chorale_plan::{
    BlockId, BlockTable, Sample, SequenceId, SequenceSlice, SliceTokens, StepOutput, StepPlan, TokenLogprob,
};

/// Slices of a plan, and samples of its outcome.
pub const MAX_SLICES: usize = 1 << 16;

impl From<StepPlan> for v1::StepPlan {
    fn from(StepPlan { step, in_halves, home_rows, slices }: StepPlan) -> Self {
        Self { step, in_halves, home_rows, slices: slices.into_iter().map(Into::into).collect() }
    }
}

impl TryFrom<v1::StepPlan> for StepPlan {
    type Error = InvalidField;

    fn try_from(message: v1::StepPlan) -> Result<Self, InvalidField> {
        let v1::StepPlan { step, in_halves, home_rows, slices } = message;
        let home_rows = at_most("home_rows", home_rows, MAX_RANKS as usize)?;
        Ok(Self { step, in_halves, home_rows, slices: items("slices", slices, MAX_SLICES)? })
    }
}

impl From<SequenceSlice> for v1::Slice {
    fn from(slice: SequenceSlice) -> Self {
        let (tokens, sampled_before) = match slice.tokens {
            SliceTokens::Known(tokens) => (tokens, false),
            SliceTokens::SampledBefore => (Vec::new(), true),
        };
        Self {
            sequence: slice.sequence.0,
            home: slice.home.0,
            tokens,
            sampled_before,
            num_computed: slice.num_computed,
            full_blocks: Some(slice.full_blocks.into()),
            sliding_blocks: Some(slice.sliding_blocks.into()),
            sampling: slice.sample.map(Into::into),
        }
    }
}

impl TryFrom<v1::Slice> for SequenceSlice {
    type Error = InvalidField;

    fn try_from(message: v1::Slice) -> Result<Self, InvalidField> {
        let tokens = match (message.sampled_before, message.tokens) {
            (true, tokens) if tokens.is_empty() => SliceTokens::SampledBefore,
            (true, _) => return Err(InvalidField::new("tokens", "must be empty if sampled_before")),
            (false, tokens) if tokens.is_empty() => {
                return Err(InvalidField::new("tokens", "must not be empty"));
            }
            (false, tokens) => SliceTokens::Known(tokens),
        };
        // Positions are counted in 32 bits by everybody.
        let num_tokens = u32::try_from(tokens.len()).ok();
        if num_tokens.and_then(|count| message.num_computed.checked_add(count)).is_none() {
            return Err(InvalidField::new("num_computed", "must leave room for the slice's positions"));
        }
        let sample = message.sampling.map(TryInto::try_into).transpose();
        Ok(Self {
            sequence: SequenceId(message.sequence),
            home: rank("home", message.home)?,
            tokens,
            num_computed: message.num_computed,
            full_blocks: block_table("full_blocks", message.full_blocks)?,
            sliding_blocks: block_table("sliding_blocks", message.sliding_blocks)?,
            sample: sample.map_err(|error: InvalidField| error.within("sampling"))?,
        })
    }
}

impl From<BlockTable> for v1::BlockTable {
    fn from(BlockTable { first, blocks }: BlockTable) -> Self {
        Self { first, differences: differences(blocks.iter().map(|block| block.0)) }
    }
}

fn block_table(field: &str, message: Option<v1::BlockTable>) -> Result<BlockTable, InvalidField> {
    let v1::BlockTable { first, differences } = present(field, message)?;
    let blocks: Vec<BlockId> = sums(&differences).map(BlockId).collect();
    if u32::try_from(blocks.len()).ok().and_then(|count| first.checked_add(count)).is_none() {
        return Err(InvalidField::new(format!("{field}.first"), "must leave room for the pages"));
    }
    Ok(BlockTable { first, blocks })
}

impl From<StepOutput> for v1::StepOutput {
    fn from(StepOutput { step, samples }: StepOutput) -> Self {
        Self { step, samples: samples.into_iter().map(Into::into).collect() }
    }
}

impl TryFrom<v1::StepOutput> for StepOutput {
    type Error = InvalidField;

    fn try_from(v1::StepOutput { step, samples }: v1::StepOutput) -> Result<Self, InvalidField> {
        Ok(Self { step, samples: items("samples", samples, MAX_SLICES)? })
    }
}

impl From<Sample> for v1::Sample {
    fn from(sample: Sample) -> Self {
        let top = sample.top_logprobs.iter();
        Self {
            sequence: sample.sequence.0,
            token: sample.token,
            logprob: sample.logprob,
            top_tokens: top.clone().map(|each| each.token).collect(),
            top_logprobs: top.map(|each| each.logprob).collect(),
        }
    }
}

impl TryFrom<v1::Sample> for Sample {
    type Error = InvalidField;

    fn try_from(message: v1::Sample) -> Result<Self, InvalidField> {
        same_length("top_logprobs", message.top_logprobs.len(), message.top_tokens.len())?;
        let top = message.top_tokens.into_iter().zip(message.top_logprobs).enumerate();
        let top = top.map(|(index, (token, logprob))| {
            let logprob = number(&format!("top_logprobs[{index}]"), logprob)?;
            Ok(TokenLogprob { token, logprob })
        });
        Ok(Self {
            sequence: SequenceId(message.sequence),
            token: message.token,
            logprob: message.logprob.map(|logprob| number("logprob", logprob)).transpose()?,
            top_logprobs: top.collect::<Result<_, _>>()?,
        })
    }
}
