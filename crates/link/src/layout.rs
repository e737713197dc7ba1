//! Who computes what: for each row and choice the rank that runs the expert,
//! and for each pair of ranks whether rows pass between them. All ranks of a
//! group hold the same rows and reckon alike, so nothing of this is ever sent.

use chorale_plan::{Placement, Rank, Shape};
use std::ops::Range;

/// Refuses a placement that is none for a world and a model.
pub(crate) fn check(
    placement: &Placement,
    shape: Shape,
    num_layers: usize,
    num_experts: usize,
) -> Result<(), String> {
    if placement.layers.len() != num_layers {
        return Err(format!("it has {} layers, the model {num_layers}", placement.layers.len()));
    }
    for (layer, experts) in placement.layers.iter().enumerate() {
        if experts.len() != num_experts {
            return Err(format!("layer {layer} has {} experts, the model {num_experts}", experts.len()));
        }
        for (expert, ranks) in experts.iter().enumerate() {
            if ranks.is_empty() {
                return Err(format!("nobody holds expert {expert} of layer {layer}"));
            }
            if !ranks.is_sorted_by(|one, next| one < next) || ranks.last() >= Some(&Rank(shape.num_ranks)) {
                return Err(format!("expert {expert} of layer {layer} is on ranks {ranks:?}"));
            }
        }
    }
    Ok(())
}

/// Refuses a shape that is none, or that has no such rank.
pub(crate) fn check_rank(shape: Shape, rank: Rank) -> Result<(), String> {
    let Shape { tensor_parallel_size, data_parallel_size, num_ranks } = shape;
    let is_whole = tensor_parallel_size
        .checked_mul(data_parallel_size)
        .is_some_and(|num_attention_ranks| (1..=num_ranks).contains(&num_attention_ranks));
    if is_whole && rank.0 < num_ranks { Ok(()) } else { Err(format!("there is no {rank:?} in {shape:?}")) }
}

/// Who exchanges rows with whom, seen from one rank.
#[derive(Clone, Debug)]
pub struct Layout {
    pub(crate) shape: Shape,
    pub(crate) rank: Rank,
    /// The rank's group; `None` with experts only.
    pub(crate) group: Option<Range<u32>>,
}

impl Layout {
    /// As it is seen from a rank of a shape.
    pub fn new(shape: Shape, rank: Rank) -> Self {
        Self { shape, rank, group: shape.group(rank) }
    }

    /// All groups, in rank order.
    pub(crate) fn groups(&self) -> impl Iterator<Item = Range<u32>> + use<> {
        let size = self.shape.tensor_parallel_size;
        (0..self.shape.data_parallel_size).map(move |group| group * size..(group + 1) * size)
    }

    /// Which member of a group sends its rows to a rank outside of it.
    pub(crate) fn sender(group: &Range<u32>, to: Rank) -> Rank {
        Rank(group.start + to.0 % group.len() as u32)
    }

    /// The rank that runs an expert for a row of this rank's group: one that
    /// has the row already if there is one, else any, spread over the rows.
    pub fn runner(&self, holders: &[Rank], row: usize) -> Rank {
        let group = self.group.clone().unwrap_or(0..0);
        let inside = holders.iter().filter(|holder| group.contains(&holder.0));
        match inside.clone().count() {
            0 => holders[(row + group.start as usize) % holders.len()],
            count => inside.copied().nth(row % count).unwrap_or(holders[0]),
        }
    }

    /// The ranks outside of this rank's group that get rows from this very rank.
    pub(crate) fn sends_to(&self) -> impl Iterator<Item = Rank> + use<> {
        let (group, rank) = (self.group.clone(), self.rank);
        self.shape.ranks().filter(move |&to| {
            let Some(group) = &group else { return false };
            !group.contains(&to.0) && Self::sender(group, to) == rank
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { tensor_parallel_size: 2, data_parallel_size: 2, num_ranks: 5 };

    #[test]
    fn each_rank_outside_gets_a_group_s_rows_from_one_member() {
        for to in SHAPE.ranks() {
            for group in Layout::new(SHAPE, to).groups().filter(|group| !group.contains(&to.0)) {
                let senders =
                    group.filter(|&rank| Layout::new(SHAPE, Rank(rank)).sends_to().any(|other| other == to));
                assert_eq!(senders.count(), 1, "{to:?}");
            }
        }
        assert_eq!(Layout::new(SHAPE, Rank(4)).sends_to().count(), 0, "experts only");
    }

    #[test]
    fn an_expert_runs_inside_the_group_if_it_can_and_copies_share_the_rows() {
        let layout = Layout::new(SHAPE, Rank(2));
        assert_eq!(layout.runner(&[Rank(0), Rank(3), Rank(4)], 7), Rank(3));
        let both = [Rank(2), Rank(3)];
        assert_eq!([0, 1, 2].map(|row| layout.runner(&both, row)), [Rank(2), Rank(3), Rank(2)]);
        let outside = [Rank(0), Rank(1), Rank(4)];
        let runners = [0, 1, 2].map(|row| layout.runner(&outside, row));
        assert!(outside.iter().all(|rank| runners.contains(rank)));
        assert_eq!(runners, [0, 1, 2].map(|row| Layout::new(SHAPE, Rank(3)).runner(&outside, row)));
    }

    #[test]
    fn placements_that_are_none_are_refused() {
        let good = Placement::solo(2, 3);
        assert_eq!(check(&good, SHAPE, 2, 3), Ok(()));
        assert!(check(&good, SHAPE, 3, 3).is_err());
        assert!(check(&good, SHAPE, 2, 4).is_err());
        for ranks in [vec![], vec![Rank(5)], vec![Rank(1), Rank(0)], vec![Rank(1), Rank(1)]] {
            let mut bad = good.clone();
            bad.layers[1][2] = ranks;
            assert!(check(&bad, SHAPE, 2, 3).is_err());
        }
    }

    #[test]
    fn shapes_that_are_none_are_refused() {
        assert_eq!(check_rank(SHAPE, Rank(4)), Ok(()));
        assert!(check_rank(SHAPE, Rank(5)).is_err());
        for (tensor_parallel_size, data_parallel_size) in [(0, 2), (2, 0), (3, 2), (1 << 16, 1 << 16)] {
            let shape = Shape { tensor_parallel_size, data_parallel_size, num_ranks: 5 };
            assert!(check_rank(shape, Rank(0)).is_err());
        }
    }
}
