//! One home: its two pools, who holds pages of them, and what is left of the
//! step that is being planned. It takes and returns pages; whose turn it is, and
//! who loses them, is decided elsewhere.

use std::collections::BTreeSet;

use crate::block_pool::BlockPool;
use crate::config::HomeConfig;
use crate::pages::PageSize;
use crate::prefix_cache::Prefix;
use crate::progress::HomeStats;
use crate::queue::Place;
use crate::sequence::{Phase, Sequence};

#[derive(Clone, Debug)]
pub(crate) struct Home {
    pub(crate) config: HomeConfig,
    pub(crate) full: BlockPool,
    pub(crate) sliding: BlockPool,
    /// Its sequences, the last to lose its pages first.
    pub(crate) running: BTreeSet<Place>,
    /// Sequences that are leaving or over, and hold pages until a commit.
    pub(crate) num_leaving: u32,
    /// Full pages that sequences which are filling will take for the tokens
    /// they have. Two half-filled sequences could otherwise wait for each other.
    pub(crate) promised_full: u32,
    /// Sliding pages that the sequences here need at the most when each takes
    /// one token at a time. Held back at admission, so that windows never
    /// compete: only a long slice takes more, and for one step.
    pub(crate) reserved_sliding: u32,
    /// Rows left in the step that is being planned.
    pub(crate) budget: u32,
    /// Sequences that sample and may yet take a page each.
    pub(crate) num_growing: u32,
    /// A sequence lost its pages, or lacks them: nobody new comes in this step.
    pub(crate) is_closed: bool,
    /// Pages are on their way back to a sequence that lacks them: nobody takes
    /// them first.
    pub(crate) is_short: bool,
}

/// What letting a sequence in takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Demand {
    /// Full pages to be written for the tokens that the sequence has.
    pub(crate) num_new: u32,
    /// Found pages that nobody holds, in each pool: they stop being available.
    pub(crate) num_idle_full: u32,
    pub(crate) num_idle_sliding: u32,
    /// Sliding pages that it needs at the most.
    pub(crate) num_sliding: u32,
}

impl Home {
    pub(crate) fn new(config: HomeConfig) -> Self {
        Self {
            config,
            full: BlockPool::new(config.num_full_blocks),
            sliding: BlockPool::new(config.num_sliding_blocks),
            running: BTreeSet::new(),
            num_leaving: 0,
            promised_full: 0,
            reserved_sliding: 0,
            budget: 0,
            num_growing: 0,
            is_closed: false,
            is_short: false,
        }
    }

    pub(crate) fn stats(&self) -> HomeStats {
        HomeStats {
            rank: self.config.rank,
            num_running: self.running.len() as u32,
            full: self.full.stats(),
            sliding: self.sliding.stats(),
        }
    }

    pub(crate) fn open_step(&mut self) {
        self.budget = self.config.max_step_tokens;
        self.num_growing = 0;
        self.is_closed = false;
        self.is_short = false;
    }

    pub(crate) fn can_fill(&self) -> bool {
        self.budget > 0 && !self.is_short
    }

    pub(crate) fn can_admit(&self) -> bool {
        self.can_fill() && !self.is_closed && (self.running.len() as u32) < self.config.max_step_slices
    }

    /// True if a sequence of that many positions fits if it is alone here.
    pub(crate) fn can_hold(&self, num_positions: u32, size: PageSize) -> bool {
        self.config.max_step_slices > 0
            && self.config.num_full_blocks >= size.pages(num_positions)
            && self.config.num_sliding_blocks >= size.sliding_pages(num_positions, 1)
    }

    /// True if there is room beside what the others hold, are promised, and may
    /// take before any of it comes back.
    pub(crate) fn has_room(&self, demand: Demand, size: PageSize) -> bool {
        let full = demand.num_idle_full + self.promised_full + demand.num_new + self.num_growing;
        if size.window.is_none() {
            return full <= self.full.num_available();
        }
        let nobody = self.running.is_empty() && self.num_leaving == 0;
        let reserved = self.reserved_sliding + demand.num_sliding;
        full <= self.full.num_available()
            && demand.num_idle_sliding < self.sliding.num_available()
            && (nobody || reserved <= self.sliding.num_blocks())
    }

    /// Full pages that nobody holds or is promised.
    pub(crate) fn num_spare(&self) -> u32 {
        self.full.num_available().saturating_sub(self.promised_full)
    }

    /// Holds the pages of the prefix that was found, and keeps room for the rest.
    pub(crate) fn admit(&mut self, sequence: &mut Sequence, prefix: Prefix, demand: Demand, size: PageSize) {
        prefix.full.iter().for_each(|&id| self.full.hold(id));
        prefix.sliding.blocks.iter().for_each(|&id| self.sliding.hold(id));
        sequence.num_named = prefix.full.len() as u32;
        sequence.skip(sequence.num_named * size.block);
        sequence.full.blocks = prefix.full;
        sequence.sliding = prefix.sliding;
        self.promised_full += demand.num_new;
        self.reserved_sliding += demand.num_sliding;
    }

    /// Tokens that a filling sequence's next slice may have at the most.
    pub(crate) fn slice_room(&self, sequence: &Sequence, num_sliding: u32, size: PageSize) -> u32 {
        let mut num_pages = self.full.num_available();
        if size.window.is_some() {
            let available = self.sliding.num_available();
            let own = num_sliding.saturating_sub(sequence.sliding.blocks.len() as u32);
            num_pages = num_pages.min(available.saturating_sub(self.num_growing).max(own.min(available)));
        }
        // Pages there are fewer than 2^32, positions may be more.
        let end = (sequence.full.blocks.len() as u64 + u64::from(num_pages)) * u64::from(size.block);
        (end - u64::from(sequence.num_planned)).min(u64::from(self.budget)) as u32
    }

    /// Pages that the pools lack for the sequence's next token: full, sliding.
    pub(crate) fn lacks(&self, sequence: &Sequence, size: PageSize) -> (bool, bool) {
        let grows = size.pages(sequence.num_planned + 1) > sequence.full.blocks.len() as u32;
        let sliding = size.window.is_some() && self.sliding.num_available() == 0;
        (grows && self.full.num_available() == 0, grows && sliding)
    }

    /// Takes pages until the tables cover the next `count` tokens.
    pub(crate) fn extend(&mut self, sequence: &mut Sequence, count: u32, size: PageSize) {
        self.budget -= count;
        let num_held = sequence.full.blocks.len() as u32;
        let num_new = size.pages(sequence.num_planned + count).saturating_sub(num_held);
        for _ in 0..num_new {
            sequence.full.blocks.push(self.full.take());
            if size.window.is_some() {
                sequence.sliding.blocks.push(self.sliding.take());
            }
        }
        if sequence.phase == Phase::Filling {
            self.promised_full -= num_new;
        }
    }

    /// Names the pages that are computed to their end, so that they can be found.
    pub(crate) fn publish(&mut self, sequence: &mut Sequence, size: PageSize) {
        let num_full = sequence.num_computed / size.block;
        sequence.names.extend(&sequence.tokens, num_full, size.block);
        for page in sequence.num_named..num_full {
            let name = sequence.names.all()[page as usize];
            self.full.name(sequence.full.blocks[page as usize], name);
            if size.window.is_some() {
                self.sliding.name(sequence.sliding.blocks[(page - sequence.sliding.first) as usize], name);
            }
        }
        sequence.num_named = num_full;
    }

    /// Returns the sliding pages that no later slice reads.
    ///
    /// Those of the prompt are kept to be found again, as long as there is room:
    /// the next turn of a conversation repeats the prompt but often not the
    /// reasoning after it. Inside an output nobody resumes.
    pub(crate) fn return_behind_window(&mut self, sequence: &mut Sequence, size: PageSize) {
        let first = size.first_sliding_page(sequence.num_computed);
        let num_behind = first.saturating_sub(sequence.sliding.first) as usize;
        if size.window.is_none() || num_behind == 0 {
            return;
        }
        let num_prompt_pages = size.pages(sequence.num_prompt());
        let behind = sequence.sliding.first..first;
        for (page, id) in behind.zip(sequence.sliding.blocks.drain(..num_behind)) {
            if page < num_prompt_pages {
                self.sliding.release(id);
            } else {
                self.sliding.discard(id);
            }
        }
        sequence.sliding.first = first;
    }

    /// Returns all pages: the last first, so that of what stays to be found a
    /// prefix survives longer than what follows it.
    pub(crate) fn return_all(&mut self, sequence: &mut Sequence, num_sliding: u32) {
        for id in std::mem::take(&mut sequence.full).blocks.into_iter().rev() {
            self.full.release(id);
        }
        for id in std::mem::take(&mut sequence.sliding).blocks.into_iter().rev() {
            self.sliding.release(id);
        }
        self.reserved_sliding -= num_sliding;
    }
}
