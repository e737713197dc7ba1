//! One step over several ranks: what the groups sampled is checked and joined in
//! the plan's order, as the answers come. Nothing here waits.

use crate::{Rank, Sample, SequenceId, Shape, StepOutput, StepPlan};
use std::collections::{BTreeMap, BTreeSet};

/// A step that ranks compute.
#[derive(Debug)]
pub struct StepJoin {
    shape: Shape,
    step: u64,
    /// Whose sample is wanted, and from which home, in the plan's order.
    wanted: Vec<(Rank, SequenceId)>,
    left: BTreeSet<Rank>,
    /// What the first rank of each group sampled.
    samples: BTreeMap<Rank, Vec<Sample>>,
    /// What other ranks say that their group sampled.
    echoes: BTreeMap<Rank, Vec<Sample>>,
}

/// A rank's answer cannot be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrongAnswer {
    /// Whose.
    pub rank: Rank,
    /// What is wrong with it.
    pub reason: String,
}

impl StepJoin {
    /// `None` if the plan names a home that the world has not.
    pub fn new(shape: Shape, plan: &StepPlan) -> Option<Self> {
        let is_home = |home: Rank| shape.home(home) == Some(home);
        if !plan.slices.iter().all(|slice| is_home(slice.home)) {
            return None;
        }
        let sampled = plan.slices.iter().filter(|slice| slice.sample.is_some());
        Some(Self {
            shape,
            step: plan.step,
            wanted: sampled.map(|slice| (slice.home, slice.sequence)).collect(),
            left: shape.ranks().collect(),
            samples: BTreeMap::new(),
            echoes: BTreeMap::new(),
        })
    }

    /// The plan's number.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// A rank is done. Gives the step's output when it was the last.
    pub fn done(&mut self, rank: Rank, output: StepOutput) -> Result<Option<StepOutput>, WrongAnswer> {
        let wrong = |reason: &str| Err(WrongAnswer { rank, reason: reason.to_owned() });
        if output.step != self.step {
            return wrong("it answered another step");
        }
        if !self.left.remove(&rank) {
            return wrong("it answered a step twice");
        }
        let home = self.shape.home(rank);
        if home == Some(rank) {
            let of_home = self.wanted.iter().filter(|(home, _)| *home == rank);
            let wanted = of_home.map(|(_, sequence)| *sequence);
            if !wanted.eq(output.samples.iter().map(|sample| sample.sequence)) {
                return wrong("it sampled for other sequences than it was asked to");
            }
            self.samples.insert(rank, output.samples);
        } else if !output.samples.is_empty() {
            if home.is_none() {
                return wrong("it has experts only, and sampled");
            }
            self.echoes.insert(rank, output.samples);
        }
        if self.left.is_empty() { self.finish().map(Some) } else { Ok(None) }
    }

    fn finish(&mut self) -> Result<StepOutput, WrongAnswer> {
        for (&rank, echo) in &self.echoes {
            let first = self.shape.home(rank).and_then(|home| self.samples.get(&home));
            if first != Some(echo) {
                let reason = "it sampled other tokens than the first rank of its group".to_owned();
                return Err(WrongAnswer { rank, reason });
            }
        }
        let mut by_home: BTreeMap<Rank, std::vec::IntoIter<Sample>> = std::mem::take(&mut self.samples)
            .into_iter()
            .map(|(home, samples)| (home, samples.into_iter()))
            .collect();
        let next = |(home, _): &(Rank, _)| by_home.get_mut(home).and_then(Iterator::next);
        Ok(StepOutput { step: self.step, samples: self.wanted.iter().filter_map(next).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BlockTable, SamplingParams, SequenceSlice, SliceTokens};

    const SHAPE: Shape = Shape { tensor_parallel_size: 2, data_parallel_size: 2, num_ranks: 5 };

    fn plan(slices: &[(u64, u32, bool)]) -> StepPlan {
        let slice = |&(sequence, home, is_sampled): &(u64, u32, bool)| SequenceSlice {
            sequence: SequenceId(sequence),
            home: Rank(home),
            tokens: SliceTokens::Known(vec![1]),
            num_computed: 0,
            full_blocks: BlockTable::default(),
            sliding_blocks: BlockTable::default(),
            sample: is_sampled.then(SamplingParams::greedy),
        };
        StepPlan {
            step: 7,
            in_halves: false,
            home_rows: Vec::new(),
            slices: slices.iter().map(slice).collect(),
        }
    }

    fn output(samples: &[(u64, u32)]) -> StepOutput {
        let sample = |&(sequence, token)| Sample {
            sequence: SequenceId(sequence),
            token,
            logprob: None,
            top_logprobs: Vec::new(),
        };
        StepOutput { step: 7, samples: samples.iter().map(sample).collect() }
    }

    #[test]
    fn samples_come_in_the_plans_order_from_the_first_rank_of_each_group() {
        let plan = plan(&[(1, 0, true), (2, 2, true), (3, 0, false), (4, 0, true)]);
        assert_eq!(plan.part_of(SHAPE, Rank(0)).slices.len(), 3);
        assert_eq!(plan.part_of(SHAPE, Rank(4)).slices.len(), 0);
        let mut join = StepJoin::new(SHAPE, &plan).unwrap();
        assert_eq!(join.done(Rank(2), output(&[(2, 20)])), Ok(None));
        assert_eq!(join.done(Rank(1), output(&[(1, 10), (4, 40)])), Ok(None), "ranks of a group may agree");
        assert_eq!(join.done(Rank(3), output(&[])), Ok(None), "or say nothing");
        assert_eq!(join.done(Rank(4), output(&[])), Ok(None));
        let whole = join.done(Rank(0), output(&[(1, 10), (4, 40)]));
        assert_eq!(whole, Ok(Some(output(&[(1, 10), (2, 20), (4, 40)]))));
    }

    #[test]
    fn answers_that_cannot_be_right_name_their_rank() {
        let plan = plan(&[(1, 0, true)]);
        let wrong = |answers: &[(u32, StepOutput)]| {
            let mut join = StepJoin::new(SHAPE, &plan).unwrap();
            answers.iter().find_map(|(rank, output)| join.done(Rank(*rank), output.clone()).err())
        };
        let found = |answers: &[(u32, StepOutput)]| wrong(answers).map(|wrong| wrong.rank.0);
        assert_eq!(found(&[(0, output(&[]))]), Some(0), "a sample is missing");
        assert_eq!(found(&[(0, output(&[(1, 5), (1, 6)]))]), Some(0), "there is one more");
        assert_eq!(found(&[(0, output(&[(2, 5)]))]), Some(0), "it is another's");
        assert_eq!(found(&[(1, output(&[])), (1, output(&[]))]), Some(1), "twice");
        assert_eq!(found(&[(4, output(&[(1, 5)]))]), Some(4), "experts only");
        assert_eq!(found(&[(9, output(&[]))]), Some(9), "there is no such rank");
        assert_eq!(found(&[(0, StepOutput { step: 8, samples: Vec::new() })]), Some(0));
        let all = [
            (0, output(&[(1, 5)])),
            (1, output(&[(1, 6)])),
            (2, output(&[])),
            (3, output(&[])),
            (4, output(&[])),
        ];
        assert_eq!(found(&all), Some(1), "ranks of a group disagree");
    }

    #[test]
    fn plans_for_other_homes_are_not_begun() {
        assert!(StepJoin::new(SHAPE, &plan(&[(1, 1, true)])).is_none());
        assert!(StepJoin::new(SHAPE, &plan(&[(1, 4, true)])).is_none());
    }
}
