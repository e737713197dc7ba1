//! How the rows of the homes are shared out: each rank of a group gives and gets
//! as many of its home's rows as any other rank of the world, padded, so that
//! every row crosses once and what is gathered holds the homes one after another.

use chorale_plan::{Rank, Shape};

/// The rows of one half of a step, as all ranks reckon them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shares {
    /// Rows of each rank's share.
    pub(crate) share: usize,
    /// Rows of each home: the shares of its group.
    pub(crate) home_rows: usize,
    /// Rows of all homes.
    pub(crate) all_rows: usize,
    /// Rows that this rank's home has, without padding.
    pub(crate) own_rows: usize,
    /// The first of them that is in this rank's share, and how many there are.
    pub(crate) first_row: usize,
    pub(crate) num_rows: usize,
}

impl Shares {
    /// From how many rows each home has.
    pub(crate) fn new(shape: Shape, rank: Rank, rows: impl Iterator<Item = usize> + Clone) -> Self {
        let size = shape.tensor_parallel_size as usize;
        let share = rows.clone().max().unwrap_or(0).div_ceil(size);
        let home_rows = size * share;
        let own = shape.group(rank).map(|group| group.start as usize / size);
        let own_rows = own.and_then(|home| rows.clone().nth(home)).unwrap_or(0);
        let first_row = (rank.0 as usize % size * share).min(own_rows);
        Self {
            share,
            home_rows,
            all_rows: shape.data_parallel_size as usize * home_rows,
            own_rows,
            first_row,
            num_rows: (own_rows - first_row).min(share),
        }
    }

    /// Of both halves, from how many rows each home has in a step.
    pub(crate) fn halves(shape: Shape, rank: Rank, home_rows: &[u32], in_halves: bool) -> [Self; 2] {
        // The first half has the odd row.
        let first = |rows: u32| if in_halves { rows.div_ceil(2) } else { rows };
        let second = |rows: u32| rows - first(rows);
        let (first, second) = (
            home_rows.iter().map(|&rows| first(rows) as usize),
            home_rows.iter().map(|&rows| second(rows) as usize),
        );
        [Self::new(shape, rank, first), Self::new(shape, rank, second)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { tensor_parallel_size: 2, data_parallel_size: 2, num_ranks: 5 };

    #[test]
    fn shares_of_a_home_follow_each_other_and_are_all_of_it() {
        for rows in [[0, 0], [5, 0], [1, 4], [7, 7], [0, 3]] {
            let of = |rank| Shares::new(SHAPE, Rank(rank), rows.into_iter());
            for (home, &expected) in rows.iter().enumerate() {
                let (one, other) = (of(2 * home as u32), of(2 * home as u32 + 1));
                assert_eq!((one.first_row, one.first_row + one.num_rows), (0, other.first_row));
                assert_eq!(other.first_row + other.num_rows, expected);
                assert_eq!((one.own_rows, other.own_rows), (expected, expected));
                // Where the second's rows come to lie behind the first's.
                assert!(other.num_rows == 0 || other.first_row == one.share);
            }
            let experts_only = of(4);
            assert_eq!((experts_only.own_rows, experts_only.num_rows), (0, 0));
            let share = rows.into_iter().max().unwrap_or(0).div_ceil(2);
            for rank in SHAPE.ranks() {
                let shares = of(rank.0);
                assert_eq!((shares.share, shares.home_rows, shares.all_rows), (share, 2 * share, 4 * share));
            }
        }
    }

    #[test]
    fn halves_are_cut_as_steps_are() {
        let [first, second] = Shares::halves(SHAPE, Rank(2), &[4, 5], true);
        assert_eq!((first.own_rows, second.own_rows), (3, 2));
        assert_eq!((first.share, second.share), (2, 1));
        let [whole, none] = Shares::halves(SHAPE, Rank(2), &[4, 5], false);
        assert_eq!((whole.own_rows, none.own_rows, none.share), (5, 0, 0));
    }
}
