//! How many pages positions take: the arithmetic of page size and window. No
//! page is held or given here.

use chorale_plan::BlockTable;

/// The size of pages, and the window of the sliding layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageSize {
    /// Positions of a page.
    pub(crate) block: u32,
    /// Keys that a query of the sliding layers sees, itself included.
    pub(crate) window: Option<u32>,
}

impl PageSize {
    /// Pages that hold the first `num_tokens` positions.
    pub(crate) fn pages(self, num_tokens: u32) -> u32 {
        num_tokens.div_ceil(self.block)
    }

    /// The first sliding page that a slice from `position` on reads; without
    /// sliding layers none is, so this is behind all that came before.
    pub(crate) fn first_sliding_page(self, position: u32) -> u32 {
        match self.window {
            Some(_) => BlockTable::span(position..position + 1, self.window, self.block).start,
            None => self.pages(position),
        }
    }

    /// The most sliding pages that a sequence of `num_tokens` positions needs
    /// for slices of one token, when pages come back only after
    /// `max_steps_in_flight` steps.
    pub(crate) fn sliding_pages(self, num_tokens: u32, max_steps_in_flight: u32) -> u32 {
        let Some(window) = self.window else { return 0 };
        // A run of n positions touches ceil((n - 1) / block) + 1 pages at most.
        let run = u64::from(window) + u64::from(max_steps_in_flight) - 1;
        let most = (run - 1).div_ceil(u64::from(self.block)) + 1;
        most.min(u64::from(self.pages(num_tokens))) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_sliding_pages_are_the_most_of_any_position() {
        for (block, window) in [(1, 1), (16, 1), (16, 2), (4, 5), (4, 8), (16, 128), (3, 7)] {
            let size = PageSize { block, window: Some(window) };
            let at = |position| BlockTable::span(position..position + 1, Some(window), block).len() as u32;
            let most = (0..1000).map(at).max().unwrap();
            assert_eq!(size.sliding_pages(1000, 1), most, "block {block}, window {window}");
            assert!(size.sliding_pages(1000, 2) <= most + 1);
        }
    }

    #[test]
    fn a_short_sequence_needs_no_more_sliding_pages_than_it_has() {
        assert_eq!(PageSize { block: 4, window: Some(128) }.sliding_pages(9, 1), 3);
        assert_eq!(PageSize { block: 4, window: None }.sliding_pages(9, 1), 0);
    }
}
