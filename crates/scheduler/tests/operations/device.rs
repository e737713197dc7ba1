//! The simulated device: pages that remember for which tokens they were
//! written. It samples nothing and checks everything that it is asked to read.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use chorale_plan::{BlockId, BlockTable, Rank, SequenceId, SequenceSlice, StepPlan};
use chorale_scheduler::{Config, Pool};

/// A page of one pool of one home.
type Page = (Rank, bool, BlockId);

pub(crate) struct Device {
    block_size: u32,
    window: Option<u32>,
    /// What was last written at each place of a page: the tokens up to there.
    written: HashMap<(Page, u32), u64>,
}

/// The pages that a plan's sequences read and write.
pub(crate) struct Touched {
    reads: HashSet<(Page, SequenceId)>,
    writes: HashSet<(Page, SequenceId)>,
}

impl Device {
    pub(crate) fn new(config: &Config) -> Self {
        Self { block_size: config.block_size_tokens, window: config.window_tokens, written: HashMap::new() }
    }

    /// All pages are lost.
    pub(crate) fn lose(&mut self) {
        self.written.clear();
    }

    /// Writes the slice's positions, then reads what its queries see. `prefixes`
    /// names the sequence's tokens up to and including each position.
    pub(crate) fn run(&mut self, slice: &SequenceSlice, prefixes: &[u64]) {
        let start = slice.num_computed;
        let end = start + slice.tokens.len() as u32;
        for pool in self.pools() {
            for position in start..end {
                let place = self.place(slice, pool, position);
                self.written.insert(place, prefixes[position as usize]);
            }
            for position in self.first_read(pool, start)..end {
                let place = self.place(slice, pool, position);
                let found = self.written.get(&place);
                assert_eq!(
                    found,
                    Some(&prefixes[position as usize]),
                    "sequence {} reads position {position} of the {pool} pool from {:?}",
                    slice.sequence.0,
                    place.0
                );
            }
        }
    }

    pub(crate) fn touched(&self, plan: &StepPlan) -> Touched {
        let mut touched = Touched { reads: HashSet::new(), writes: HashSet::new() };
        for slice in &plan.slices {
            let start = slice.num_computed;
            let end = start + slice.tokens.len() as u32;
            for pool in self.pools() {
                let pages = |positions: Range<u32>| {
                    positions.map(|position| (self.place(slice, pool, position).0, slice.sequence))
                };
                touched.reads.extend(pages(self.first_read(pool, start)..end));
                touched.writes.extend(pages(start..end));
            }
        }
        touched
    }

    fn pools(&self) -> impl Iterator<Item = Pool> + use<> {
        [Pool::Full, Pool::Sliding].into_iter().take(if self.window.is_some() { 2 } else { 1 })
    }

    fn first_read(&self, pool: Pool, position: u32) -> u32 {
        match (pool, self.window) {
            (Pool::Sliding, Some(window)) => (position + 1).saturating_sub(window),
            _ => 0,
        }
    }

    fn place(&self, slice: &SequenceSlice, pool: Pool, position: u32) -> (Page, u32) {
        let table: &BlockTable = match pool {
            Pool::Full => &slice.full_blocks,
            Pool::Sliding => &slice.sliding_blocks,
        };
        let block = table.blocks[(position / self.block_size - table.first) as usize];
        ((slice.home, pool == Pool::Sliding, block), position % self.block_size)
    }
}

impl Touched {
    /// Panics if one plan writes what the other touches for another sequence:
    /// both are in flight, or one and the same.
    pub(crate) fn check_beside(&self, other: &Touched) {
        for (one, two) in [(self, other), (other, self)] {
            for (page, writer) in &one.writes {
                let reader = two.reads.iter().find(|(read, reader)| read == page && reader != writer);
                assert!(reader.is_none(), "{writer:?} writes {page:?} which {reader:?} touches in flight");
            }
        }
    }
}
