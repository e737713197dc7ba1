//! Who the ranks are: the shape of the world, and which rank holds which experts.

use crate::Rank;
use std::ops::Range;

/// One agreed membership. Epochs count up; what belongs to an older one is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Epoch(pub u64);

/// How the ranks of a world are grouped: groups of `tensor_parallel_size` ranks
/// first, in rank order, then ranks that hold experts only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Ranks that split a sequence's attention; at least 1.
    pub tensor_parallel_size: u32,
    /// Groups, each the home of its own sequences; at least 1.
    pub data_parallel_size: u32,
    /// All ranks: those of the groups, and those with experts only.
    pub num_ranks: u32,
}

impl Shape {
    /// A world of one rank.
    pub const SOLO: Self = Self { tensor_parallel_size: 1, data_parallel_size: 1, num_ranks: 1 };

    /// Ranks that run attention; the others hold experts only.
    pub fn num_attention_ranks(self) -> u32 {
        self.tensor_parallel_size * self.data_parallel_size
    }

    /// The ranks of a rank's group, itself among them; `None` for one with experts only.
    pub fn group(self, rank: Rank) -> Option<Range<u32>> {
        let size = self.tensor_parallel_size;
        let first = rank.0 / size * size;
        (rank.0 < self.num_attention_ranks()).then_some(first..first + size)
    }

    /// The first rank of a rank's group: the name of its home. `None` for one with
    /// experts only.
    pub fn home(self, rank: Rank) -> Option<Rank> {
        self.group(rank).map(|group| Rank(group.start))
    }

    /// The groups, each by its first rank: the name that plans give to a home.
    pub fn homes(self) -> impl Iterator<Item = Rank> {
        (0..self.data_parallel_size).map(move |group| Rank(group * self.tensor_parallel_size))
    }

    /// All ranks.
    pub fn ranks(self) -> impl Iterator<Item = Rank> {
        (0..self.num_ranks).map(Rank)
    }
}

/// Which ranks hold which experts, layer by layer. An expert may have copies on
/// several ranks; any of them gives the same answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Counts up within an epoch, from 0: ranks move to a new one between two steps.
    pub version: u32,
    /// For each layer, for each expert: the ranks that hold it, ascending, at least one.
    pub layers: Vec<Vec<Vec<Rank>>>,
}

impl Placement {
    /// Rank 0 holds everything.
    pub fn solo(num_layers: usize, num_experts: usize) -> Self {
        Self { version: 0, layers: vec![vec![vec![Rank(0)]; num_experts]; num_layers] }
    }

    /// The experts that a rank holds of a layer, ascending.
    pub fn experts_of(&self, rank: Rank, layer: usize) -> Vec<u32> {
        let holders = self.layers[layer].iter().zip(0..);
        holders.filter(|(ranks, _)| ranks.contains(&rank)).map(|(_, expert)| expert).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_come_first_and_name_their_home() {
        let shape = Shape { tensor_parallel_size: 2, data_parallel_size: 2, num_ranks: 5 };
        assert_eq!(shape.group(Rank(1)), Some(0..2));
        assert_eq!(shape.group(Rank(2)), Some(2..4));
        assert_eq!(shape.group(Rank(4)), None, "experts only");
        assert_eq!((shape.home(Rank(3)), shape.home(Rank(4))), (Some(Rank(2)), None));
        assert_eq!(shape.homes().collect::<Vec<_>>(), [Rank(0), Rank(2)]);
    }

    #[test]
    fn a_rank_knows_its_experts() {
        let mut placement = Placement::solo(2, 3);
        placement.layers[1][2] = vec![Rank(0), Rank(1)];
        assert_eq!(placement.experts_of(Rank(1), 0), [] as [u32; 0]);
        assert_eq!(placement.experts_of(Rank(1), 1), [2]);
        assert_eq!(placement.experts_of(Rank(0), 1), [0, 1, 2]);
    }
}
