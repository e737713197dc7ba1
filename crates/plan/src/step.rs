//! What one forward pass of the batch computes, and what it gives back.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::{BlockId, Rank, Sample, SamplingParams, SequenceId, Shape, TokenId};

/// Everything the workers need for one forward pass.
///
/// Workers keep no sequence state between steps: the plan names the blocks, so
/// a restarted worker needs its weights and this plan, nothing more.
#[derive(Clone, Debug, PartialEq)]
pub struct StepPlan {
    /// Counts up by one; a worker refuses a plan that skips or repeats.
    pub step: u64,
    /// Computed in two halves, one while the other's rows travel. All ranks of a
    /// step do it alike, those without rows, too.
    pub in_halves: bool,
    /// Rows of each home in the step, in the order of the homes: ranks that
    /// exchange without asking each other reckon with them. Filled in where the
    /// plan is cut; empty before.
    pub home_rows: Vec<u32>,
    /// What to compute, one slice for each scheduled sequence.
    pub slices: Vec<SequenceSlice>,
}

impl StepPlan {
    /// What a rank computes of it: the slices of its group, perhaps none.
    pub fn part_of(&self, shape: Shape, rank: Rank) -> Self {
        let home = shape.home(rank);
        let slices = self.slices.iter().filter(|slice| Some(slice.home) == home);
        Self {
            step: self.step,
            in_halves: self.in_halves,
            home_rows: self.rows_of_homes(shape),
            slices: slices.cloned().collect(),
        }
    }

    fn rows_of_homes(&self, shape: Shape) -> Vec<u32> {
        let rows_of = |home| {
            let slices = self.slices.iter().filter(|slice| slice.home == home);
            slices.map(|slice| slice.tokens.len() as u32).sum()
        };
        shape.homes().map(rows_of).collect()
    }

    /// Whether ranks that exchange rows are to compute it in halves: where there
    /// are others to wait for, and one group at least has rows enough.
    pub fn pays_in_halves(&self, shape: Shape, min_rows: Option<u32>) -> bool {
        let Some(min_rows) = min_rows.filter(|_| shape.num_ranks > 1) else { return false };
        let mut rows = BTreeMap::new();
        for slice in &self.slices {
            *rows.entry(slice.home).or_insert(0) += slice.tokens.len();
        }
        // A single row cannot be halved.
        rows.into_values().max().is_some_and(|rows| rows >= (min_rows as usize).max(2))
    }
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

    fn slice(sequence: u64, home: u32) -> SequenceSlice {
        SequenceSlice {
            sequence: SequenceId(sequence),
            home: Rank(home),
            tokens: SliceTokens::SampledBefore,
            num_computed: 1,
            full_blocks: BlockTable::default(),
            sliding_blocks: BlockTable::default(),
            sample: Some(SamplingParams::greedy()),
        }
    }

    #[test]
    fn halves_pay_where_one_group_has_rows_enough_and_there_are_others() {
        let long = SequenceSlice { tokens: SliceTokens::Known(vec![1; 6]), ..slice(4, 2) };
        let slices = vec![slice(1, 2), slice(2, 0), long];
        let plan = StepPlan { step: 9, in_halves: false, home_rows: Vec::new(), slices };
        let pays = |num_ranks, min_rows| {
            let shape = Shape { tensor_parallel_size: 1, data_parallel_size: 1, num_ranks };
            plan.pays_in_halves(shape, min_rows)
        };
        assert!(pays(2, Some(7)), "group 2 has seven rows");
        assert!(!pays(2, Some(8)));
        assert!(!pays(2, None));
        assert!(!pays(1, Some(1)), "nobody to wait for");
        let short = StepPlan { slices: vec![slice(1, 2), slice(2, 0)], ..plan.clone() };
        assert!(!short.pays_in_halves(Shape { num_ranks: 2, ..Shape::SOLO }, Some(0)), "one row each");
        assert!(StepPlan { in_halves: true, ..plan }.part_of(Shape::SOLO, Rank(0)).in_halves);
    }

    #[test]
    fn each_rank_has_the_part_of_its_group_and_the_rows_of_all() {
        let shape = Shape { tensor_parallel_size: 2, data_parallel_size: 2, num_ranks: 5 };
        let slices = vec![slice(1, 2), slice(2, 0), slice(3, 2)];
        let plan = StepPlan { step: 9, in_halves: false, home_rows: Vec::new(), slices };
        let part = |rank| plan.part_of(shape, Rank(rank)).slices;
        assert_eq!(part(0), [slice(2, 0)]);
        assert_eq!(part(3), [slice(1, 2), slice(3, 2)], "all ranks of a group get its slices");
        assert_eq!(part(4), [], "experts only");
        let rows = |rank| plan.part_of(shape, Rank(rank)).home_rows;
        assert!(shape.ranks().all(|rank| rows(rank.0) == [1, 2]), "everybody knows the rows of all homes");
    }
}
