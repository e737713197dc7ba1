//! Pages under names: the name of a page says which tokens came up to its end,
//! so equal names are equal keys and values. What is kept and for how long is
//! the pools' business; here pages are named and the longest usable prefix is
//! found.
//!
//! A name is the SHA-256 of the name before it and the page's tokens, beginning
//! with the salt. The names are the whole proof that two pages are equal, so a
//! hash that nobody can collide is what keeps one client's prompt from being
//! answered out of another's.

use chorale_plan::{BlockId, BlockTable, TokenId};
use sha2::{Digest, Sha256};

use crate::block_pool::BlockPool;
use crate::pages::PageSize;

/// Names the tokens from a sequence's start to a page's end.
pub(crate) type PageName = [u8; 32];

/// The names of a sequence's full pages, as far as they were asked for.
#[derive(Clone, Debug)]
pub(crate) struct PageNames {
    root: PageName,
    names: Vec<PageName>,
}

impl PageNames {
    pub(crate) fn new(salt: &[u8]) -> Self {
        let root = Sha256::new().chain_update(b"chorale prefix 1").chain_update(salt).finalize();
        Self { root: root.into(), names: Vec::new() }
    }

    /// Names the first `num_pages` pages of `tokens`.
    pub(crate) fn extend(&mut self, tokens: &[TokenId], num_pages: u32, block_size: u32) {
        let first = self.names.len();
        let pages = tokens.chunks_exact(block_size as usize).take(num_pages as usize).skip(first);
        let mut bytes = Vec::new();
        for page in pages {
            bytes.clear();
            bytes.extend_from_slice(self.names.last().unwrap_or(&self.root));
            bytes.extend(page.iter().flat_map(|token| token.to_le_bytes()));
            self.names.push(Sha256::digest(&bytes).into());
        }
    }

    pub(crate) fn all(&self) -> &[PageName] {
        &self.names
    }
}

/// The computed beginning of a sequence: pages that need not be written again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Prefix {
    pub(crate) full: Vec<BlockId>,
    pub(crate) sliding: BlockTable,
}

/// The longest prefix that can be used: all its full pages are there, and the
/// sliding pages that the window before the next token covers.
pub(crate) fn longest_prefix(
    names: &[PageName],
    full: &BlockPool,
    sliding: &BlockPool,
    size: PageSize,
) -> Prefix {
    let mut found: Vec<BlockId> = names.iter().map_while(|name| full.find(name)).collect();
    loop {
        let num_pages = found.len() as u32;
        let first = size.first_sliding_page(num_pages * size.block);
        match find_all(&names[..found.len()], first, sliding) {
            Ok(blocks) => return Prefix { full: found, sliding: BlockTable { first, blocks } },
            // Whatever ends behind a missing page and before the end that
            // failed has that page in its window, too.
            Err(missing) => found.truncate(missing as usize),
        }
    }
}

/// The pages from `first` on, or the last that is missing.
fn find_all(names: &[PageName], first: u32, pool: &BlockPool) -> Result<Vec<BlockId>, u32> {
    let window = (first..names.len() as u32).rev();
    let found: Result<Vec<_>, _> = window.map(|page| pool.find(&names[page as usize]).ok_or(page)).collect();
    found.map(|mut blocks| {
        blocks.reverse();
        blocks
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(salt: &[u8], tokens: &[TokenId]) -> Vec<PageName> {
        let mut names = PageNames::new(salt);
        names.extend(tokens, tokens.len() as u32 / 2, 2);
        names.all().to_vec()
    }

    fn pool(names: &[PageName], pages: &[usize]) -> BlockPool {
        let mut pool = BlockPool::new(names.len() as u32);
        for &page in pages {
            let id = pool.take();
            pool.name(id, names[page]);
        }
        pool
    }

    #[test]
    fn a_name_depends_on_every_token_before_and_on_the_salt() {
        let plain = names(b"", &[1, 2, 3, 4]);
        let other_start = names(b"", &[9, 2, 3, 4]);
        let salted = names(b"s", &[1, 2, 3, 4]);
        assert_eq!(plain[..1], names(b"", &[1, 2, 8, 8])[..1]);
        assert!(plain[1] != other_start[1] && plain[0] != salted[0] && plain[1] != salted[1]);
    }

    #[test]
    fn names_are_extended_as_tokens_come() {
        let mut grown = PageNames::new(b"");
        grown.extend(&[1, 2, 3], 1, 2);
        grown.extend(&[1, 2, 3, 4, 5], 2, 2);
        assert_eq!(grown.all(), names(b"", &[1, 2, 3, 4]));
    }

    #[test]
    fn a_prefix_needs_all_full_pages_and_the_window_in_the_sliding_pool() {
        let names = names(b"", &[0; 12]);
        let size = PageSize { block: 2, window: Some(4) };
        let longest = |full: &[usize], sliding: &[usize]| {
            let (full, sliding) = (pool(&names, full), pool(&names, sliding));
            longest_prefix(&names, &full, &sliding, size).full.len()
        };
        let all = [0, 1, 2, 3, 4, 5];
        assert_eq!(longest(&all, &all), 6);
        assert_eq!(longest(&[0, 1, 3, 4, 5], &all), 2);
        // The token at 12 sees 9, 10, 11 and itself: pages 4 and 5.
        assert_eq!(longest(&all, &[4, 5]), 6);
        assert_eq!(longest(&all, &[5]), 0);
        assert_eq!(longest(&all, &[1, 2, 4]), 3);
        assert_eq!(longest(&all, &[0, 4]), 1);
        assert_eq!(longest(&all, &[]), 0);
    }

    #[test]
    fn without_a_window_the_full_pages_decide() {
        let names = names(b"", &[0; 4]);
        let size = PageSize { block: 2, window: None };
        let narrow = PageSize { block: 2, window: Some(1) };
        for size in [size, narrow] {
            let prefix = longest_prefix(&names, &pool(&names, &[0, 1]), &BlockPool::new(0), size);
            assert_eq!(prefix.full, [BlockId(0), BlockId(1)]);
            assert_eq!(prefix.sliding, BlockTable { first: 2, blocks: vec![] });
        }
    }
}
