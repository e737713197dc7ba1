//! The pages of one pool: who holds them, which can be found again, which is
//! given away next. It knows pages by number and name only, neither what they
//! keep nor who asks.
//!
//! A page is *held* while its reference count is above zero; else it is *idle*
//! if it has a name, by which it can be found again, and *blank* if not. Blank
//! pages are given away first, then the page that has been idle the longest.

use std::collections::HashMap;

use chorale_plan::BlockId;

use crate::prefix_cache::PageName;
use crate::progress::PoolStats;

/// All pages of one pool.
#[derive(Clone, Debug)]
pub(crate) struct BlockPool {
    blocks: Vec<Block>,
    /// Blank pages, the next to be given away last.
    blank: Vec<BlockId>,
    named: HashMap<PageName, BlockId>,
    num_idle: u32,
    /// The ends of the chain of idle pages.
    oldest: Option<BlockId>,
    newest: Option<BlockId>,
}

#[derive(Clone, Debug, Default)]
struct Block {
    num_references: u32,
    name: Option<PageName>,
    /// Neighbours in the chain of idle pages.
    older: Option<BlockId>,
    newer: Option<BlockId>,
}

impl BlockPool {
    pub(crate) fn new(num_blocks: u32) -> Self {
        Self {
            blocks: vec![Block::default(); num_blocks as usize],
            blank: (0..num_blocks).rev().map(BlockId).collect(),
            named: HashMap::new(),
            num_idle: 0,
            oldest: None,
            newest: None,
        }
    }

    pub(crate) fn num_blocks(&self) -> u32 {
        self.blocks.len() as u32
    }

    /// Pages that can be taken now, blank or idle.
    pub(crate) fn num_available(&self) -> u32 {
        self.blank.len() as u32 + self.num_idle
    }

    pub(crate) fn stats(&self) -> PoolStats {
        PoolStats {
            num_blocks: self.num_blocks(),
            num_held: self.num_blocks() - self.num_available(),
            num_cached: self.num_idle,
        }
    }

    /// A page to write to, held once. The caller has asked whether there is one.
    pub(crate) fn take(&mut self) -> BlockId {
        let id = self.blank.pop().unwrap_or_else(|| self.evict());
        let block = self.block(id);
        debug_assert!(block.num_references == 0 && block.name.is_none());
        block.num_references = 1;
        id
    }

    /// The page of that name, held or idle.
    pub(crate) fn find(&self, name: &PageName) -> Option<BlockId> {
        self.named.get(name).copied()
    }

    pub(crate) fn is_idle(&self, id: BlockId) -> bool {
        self.blocks[id.0 as usize].num_references == 0
    }

    /// Holds a page that was found.
    pub(crate) fn hold(&mut self, id: BlockId) {
        if self.is_idle(id) {
            self.unlink(id);
        }
        self.block(id).num_references += 1;
    }

    /// Lets go of a page: the last to do so leaves it idle or blank.
    pub(crate) fn release(&mut self, id: BlockId) {
        let block = self.block(id);
        assert!(block.num_references > 0, "page {} is released but not held", id.0);
        block.num_references -= 1;
        if block.num_references > 0 {
            return;
        }
        if block.name.is_some() {
            self.link_newest(id);
        } else {
            self.blank.push(id);
        }
    }

    /// Lets go of a page that nobody will look for: it is blank at once, unless
    /// others hold it still.
    pub(crate) fn discard(&mut self, id: BlockId) {
        if self.block(id).num_references == 1
            && let Some(name) = self.block(id).name.take()
        {
            self.named.remove(&name);
        }
        self.release(id);
    }

    /// Names a held page, so that it can be found. Of pages with the same
    /// tokens the first keeps the name.
    pub(crate) fn name(&mut self, id: BlockId, name: PageName) {
        debug_assert!(!self.is_idle(id) && self.block(id).name.is_none());
        if let std::collections::hash_map::Entry::Vacant(entry) = self.named.entry(name) {
            entry.insert(id);
            self.block(id).name = Some(name);
        }
    }

    fn block(&mut self, id: BlockId) -> &mut Block {
        &mut self.blocks[id.0 as usize]
    }

    fn evict(&mut self) -> BlockId {
        let id = self.oldest.expect("the caller asked for no more pages than are available");
        self.unlink(id);
        if let Some(name) = self.block(id).name.take() {
            self.named.remove(&name);
        }
        id
    }

    fn link_newest(&mut self, id: BlockId) {
        let before = self.newest.replace(id);
        self.block(id).older = before;
        match before {
            Some(before) => self.block(before).newer = Some(id),
            None => self.oldest = Some(id),
        }
        self.num_idle += 1;
    }

    fn unlink(&mut self, id: BlockId) {
        let block = self.block(id);
        let (older, newer) = (block.older.take(), block.newer.take());
        match older {
            Some(older) => self.block(older).newer = newer,
            None => self.oldest = newer,
        }
        match newer {
            Some(newer) => self.block(newer).older = older,
            None => self.newest = older,
        }
        self.num_idle -= 1;
    }

    /// Panics unless every page is in exactly one place, and held as often as
    /// `held` says.
    pub(crate) fn check(&self, held: &[u32]) {
        let counts: Vec<u32> = self.blocks.iter().map(|block| block.num_references).collect();
        assert_eq!(counts, held, "references that pages have, and that tables make");
        let mut idle = Vec::new();
        let mut next = self.oldest;
        while let Some(id) = next {
            assert!(self.is_idle(id) && self.blocks[id.0 as usize].name.is_some());
            idle.push(id);
            next = self.blocks[id.0 as usize].newer;
        }
        assert_eq!(idle.last().copied(), self.newest);
        assert_eq!(idle.len() as u32, self.num_idle);
        for &id in &self.blank {
            let block = &self.blocks[id.0 as usize];
            assert!(block.num_references == 0 && block.name.is_none(), "page {} is not blank", id.0);
        }
        let num_held = counts.iter().filter(|&&count| count > 0).count();
        assert_eq!(idle.len() + self.blank.len() + num_held, self.blocks.len(), "pages are conserved");
        let num_named = self.blocks.iter().filter(|block| block.name.is_some()).count();
        assert_eq!(num_named, self.named.len());
        for (name, id) in &self.named {
            assert_eq!(self.blocks[id.0 as usize].name.as_ref(), Some(name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prefix_cache::PageNames;

    fn name(number: u32) -> PageName {
        let mut names = PageNames::new(&[]);
        names.extend(&[number], 1, 1);
        names.all()[0]
    }

    #[test]
    fn blank_pages_go_before_idle_ones_and_the_longest_idle_first() {
        let mut pool = BlockPool::new(3);
        let taken = [pool.take(), pool.take()];
        assert_eq!(taken, [BlockId(0), BlockId(1)]);
        pool.name(BlockId(0), name(0));
        pool.name(BlockId(1), name(1));
        pool.release(BlockId(1));
        pool.release(BlockId(0));
        assert_eq!([pool.take(), pool.take()], [BlockId(2), BlockId(1)]);
        assert_eq!((pool.find(&name(1)), pool.find(&name(0))), (None, Some(BlockId(0))));
        pool.check(&[0, 1, 1]);
    }

    #[test]
    fn a_found_page_is_idle_again_when_the_last_lets_go() {
        let mut pool = BlockPool::new(1);
        let id = pool.take();
        pool.name(id, name(7));
        pool.hold(id);
        pool.release(id);
        assert_eq!(pool.num_available(), 0);
        pool.release(id);
        assert_eq!(pool.stats(), PoolStats { num_blocks: 1, num_held: 0, num_cached: 1 });
        pool.hold(id);
        pool.check(&[1]);
    }

    #[test]
    fn the_first_of_two_equal_pages_keeps_the_name() {
        let mut pool = BlockPool::new(2);
        let (first, second) = (pool.take(), pool.take());
        pool.name(first, name(1));
        pool.name(second, name(1));
        assert_eq!(pool.find(&name(1)), Some(first));
        pool.release(second);
        assert_eq!(pool.stats().num_cached, 0);
        pool.check(&[1, 0]);
    }

    #[test]
    fn a_discarded_page_keeps_its_name_while_others_hold_it() {
        let mut pool = BlockPool::new(1);
        let id = pool.take();
        pool.name(id, name(1));
        pool.hold(id);
        pool.discard(id);
        assert_eq!(pool.find(&name(1)), Some(id));
        pool.discard(id);
        assert_eq!(pool.find(&name(1)), None);
        pool.check(&[0]);
    }

    #[test]
    #[should_panic(expected = "released but not held")]
    fn a_page_cannot_be_released_twice() {
        let mut pool = BlockPool::new(1);
        let id = pool.take();
        pool.release(id);
        pool.release(id);
    }
}
