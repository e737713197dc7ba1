//! Byte-pair merging of one piece. It knows ranks, not text.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use chorale_plan::TokenId;

/// Merges neighbouring parts of `piece`, the pair of the lowest rank first and
/// the leftmost among equals, until no pair is in the vocabulary; calls `emit`
/// with the rank of every part that is left.
///
/// `rank` must know every single byte. A heap keeps it at `n log n`, where the
/// textbook loop is quadratic: a piece has no bound, a megabyte of one letter
/// is one piece.
pub(crate) fn merge(piece: &[u8], rank: impl Fn(&[u8]) -> Option<TokenId>, mut emit: impl FnMut(TokenId)) {
    let mut parts = Parts::of_bytes(piece.len());
    let mut pairs = BinaryHeap::with_capacity(piece.len());
    let pair_at = |parts: &Parts, start: usize| {
        let end = parts.end_of_pair(start)?;
        rank(&piece[start..end]).map(|rank| Reverse((rank, start, end)))
    };

    pairs.extend((0..piece.len()).filter_map(|start| pair_at(&parts, start)));
    while let Some(Reverse((_, start, end))) = pairs.pop() {
        // A pair whose parts have been merged otherwise stays in the heap;
        // where the same bytes are a pair again, its rank is the same, too.
        if parts.end_of_pair(start) != Some(end) {
            continue;
        }
        parts.join(start);
        pairs.extend(pair_at(&parts, start));
        if let Some(before) = parts.before(start) {
            pairs.extend(pair_at(&parts, before));
        }
    }

    let mut start = 0;
    while start < piece.len() {
        let end = parts.ends[start];
        emit(rank(&piece[start..end]).expect("bytes and merged pairs have ranks"));
        start = end;
    }
}

/// The parts of a piece as a linked list, indexed by their first byte.
struct Parts {
    /// Where the part that starts here ends; 0 where no part starts.
    ends: Vec<usize>,
    /// Where the part before the one that starts here starts.
    starts_before: Vec<usize>,
}

impl Parts {
    fn of_bytes(len: usize) -> Self {
        Self { ends: (1..=len).collect(), starts_before: (0..len).map(|i| i.saturating_sub(1)).collect() }
    }

    /// The end of the part at `start` and its neighbour, if there are both.
    fn end_of_pair(&self, start: usize) -> Option<usize> {
        match self.ends[start] {
            0 => None,
            middle => self.ends.get(middle).copied(),
        }
    }

    fn before(&self, start: usize) -> Option<usize> {
        (start > 0).then(|| self.starts_before[start])
    }

    /// Joins the part at `start` and its neighbour.
    fn join(&mut self, start: usize) {
        let middle = self.ends[start];
        let end = std::mem::take(&mut self.ends[middle]);
        self.ends[start] = end;
        if let Some(before) = self.starts_before.get_mut(end) {
            *before = start;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::merge;

    fn check(piece: &str, expected: &[&str]) {
        let vocabulary = ["a", "b", "c", "ab", "bc", "aa", "abc", "aaaa"];
        let rank = |bytes: &[u8]| vocabulary.iter().position(|v| v.as_bytes() == bytes).map(|at| at as u32);
        let mut parts = Vec::new();
        merge(piece.as_bytes(), rank, |rank| parts.push(vocabulary[rank as usize]));
        assert_eq!(parts, expected, "{piece}");
    }

    #[test]
    fn the_lowest_rank_goes_first() {
        check("abc", &["abc"]);
        check("bcab", &["bc", "ab"]);
    }

    #[test]
    fn equal_pairs_merge_from_the_left() {
        check("aaa", &["aa", "a"]);
        check("aaaaa", &["aaaa", "a"]);
    }

    #[test]
    fn a_merge_may_undo_the_chance_of_another() {
        check("abbc", &["ab", "bc"]);
        check("aabc", &["a", "abc"]);
    }

    #[test]
    fn nothing_and_one_byte_are_themselves() {
        check("", &[]);
        check("c", &["c"]);
    }
}
