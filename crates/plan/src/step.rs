//! What one forward pass of the batch computes, and what it gives back.

use std::ops::Range;

use crate::{BlockId, Rank, Sample, SamplingParams, SequenceId, TokenId};

/// Everything the workers need for one forward pass.
///
/// Workers keep no sequence state between steps: the plan names the blocks, so
/// a restarted worker needs its weights and this plan, nothing more.
#[derive(Clone, Debug, PartialEq)]
pub struct StepPlan {
    /// Counts up by one; a worker refuses a plan that skips or repeats.
    pub step: u64,
    /// What to compute, one slice for each scheduled sequence.
    pub slices: Vec<SequenceSlice>,
}

/// The tokens of one sequence that this step computes.
///
/// A long slice is what others call prefill and a slice of one token is
/// decode; the model does not care which.
#[derive(Clone, Debug, PartialEq)]
pub struct SequenceSlice {
    /// Whose tokens these are.
    pub sequence: SequenceId,
    /// The group that keeps the sequence's KV cache and runs its attention,
    /// named by its first rank.
    pub home: Rank,
    /// Tokens whose keys and values are computed now. Never empty.
    pub tokens: SliceTokens,
    /// Tokens of the sequence that the KV cache holds already: the position
    /// of the slice's first token.
    pub num_computed: u32,
    /// Pages of the full-attention layers, from position 0 to the slice's end.
    pub full_blocks: BlockTable,
    /// Pages of the sliding layers. They start at or before the oldest key in
    /// the window of the slice's first token; older pages are given back.
    pub sliding_blocks: BlockTable,
    /// Set when the slice ends at the last known token, so a next one is wanted.
    pub sample: Option<SamplingParams>,
}

/// The tokens of a slice, perhaps one that the coordinator has not seen yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SliceTokens {
    /// Tokens that the coordinator knows.
    Known(Vec<TokenId>),
    /// One token: what this sequence sampled in the step just before, which
    /// the device still holds. So a step is planned before the last one ends.
    SampledBefore,
}

impl SliceTokens {
    /// How many tokens the slice computes.
    pub fn len(&self) -> usize {
        match self {
            Self::Known(tokens) => tokens.len(),
            Self::SampledBefore => 1,
        }
    }

    /// True for a slice that breaks the contract: slices are never empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Where a sequence's keys and values lie in one pool of pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockTable {
    /// Pages before this one are not held: `blocks[i]` keeps the positions
    /// `(first + i) * block_size .. (first + i + 1) * block_size`.
    pub first: u32,
    /// The pages, in the order of their positions.
    pub blocks: Vec<BlockId>,
}

impl BlockTable {
    /// The pages that computing `positions` of a sequence reads and writes, in
    /// pages from position 0: from the oldest key in the window of the first
    /// position (from 0 without a window) to the last position.
    pub fn span(positions: Range<u32>, window: Option<u32>, block_size: u32) -> Range<u32> {
        let oldest = window.map_or(0, |window| (positions.start + 1).saturating_sub(window));
        oldest / block_size..positions.end.div_ceil(block_size)
    }
}

/// What one step gives back: a sample for each slice that asked for one, in
/// the order of the plan's slices.
#[derive(Clone, Debug, PartialEq)]
pub struct StepOutput {
    /// The plan's number.
    pub step: u64,
    /// The sampled tokens.
    pub samples: Vec<Sample>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_window_all_pages_are_needed() {
        assert_eq!(BlockTable::span(0..1, None, 16), 0..1);
        assert_eq!(BlockTable::span(100..117, None, 16), 0..8);
    }

    #[test]
    fn a_window_counts_the_query_itself() {
        // Position 128 sees 1..=128; position 127 still sees 0.
        assert_eq!(BlockTable::span(127..128, Some(128), 1), 0..128);
        assert_eq!(BlockTable::span(128..129, Some(128), 1), 1..129);
        assert_eq!(BlockTable::span(128..129, Some(1), 16), 8..9);
    }
}
