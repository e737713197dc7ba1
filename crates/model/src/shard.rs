//! Which part of the model a rank holds. Pure arithmetic on the geometry: no
//! file is read here, and where the parts travel is the link's business.
//!
//! Attention is split by key-value head, in contiguous runs that may be uneven:
//! query heads follow the head that serves them, sinks follow query heads. The
//! output projection is split by its output rows and the head by vocabulary
//! rows: whoever multiplies has gathered whole inputs, so no partial sum
//! crosses ranks and the answer does not depend on how many there are.

use crate::checkpoint::CheckpointError;
use crate::config::ModelConfig;
use chorale_device::DenseDtype;
use chorale_plan::{Placement, Rank, Shape};
use std::collections::HashSet;
use std::ops::Range;

/// A rank's place in the group that splits the attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// The rank's number in its group, from 0.
    pub index: usize,
    /// Ranks of the group.
    pub count: usize,
}

impl Split {
    /// A group of one.
    pub const WHOLE: Self = Self { index: 0, count: 1 };

    /// This rank's run of `n` things.
    pub fn range(self, n: usize) -> Range<usize> {
        split(n, self.count, self.index)
    }
}

/// The `index`-th of `count` contiguous runs of `n` things. The first
/// `n % count` runs are longer by one.
pub fn split(n: usize, count: usize, index: usize) -> Range<usize> {
    assert!(index < count, "run {index} of {count}");
    let longer = n % count;
    let start = |run: usize| run * (n / count) + run.min(longer);
    start(index)..start(index + 1)
}

/// What one rank holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardSpec {
    /// Which part of the attention and of the head.
    pub group: Split,
    /// For each layer its experts, by their number in the model, in the order
    /// in which the rank numbers them.
    pub experts: Vec<Vec<u32>>,
    /// Whether the rank runs attention. One that does holds embedding, norms and
    /// router whole; one that does not holds experts only.
    pub attention: bool,
    /// In what the attention's products and the head are kept; the router stays
    /// as it is, since what it chooses is not to be rounded.
    pub dense_dtype: DenseDtype,
}

impl ShardSpec {
    /// Everything, for a rank that is alone.
    pub fn whole(config: &ModelConfig) -> Self {
        let all = (0..config.num_experts as u32).collect();
        Self {
            group: Split::WHOLE,
            experts: vec![all; config.num_layers()],
            attention: true,
            dense_dtype: DenseDtype::Bf16,
        }
    }

    /// The part of a rank in a world.
    pub fn of(shape: Shape, rank: Rank, placement: &Placement) -> Self {
        let group = shape.group(rank);
        let split = |group: Range<u32>| Split { index: (rank.0 - group.start) as usize, count: group.len() };
        let layers = 0..placement.layers.len();
        Self {
            dense_dtype: DenseDtype::Bf16,
            attention: group.is_some(),
            group: group.map_or(Split::WHOLE, split),
            experts: layers.map(|layer| placement.experts_of(rank, layer)).collect(),
        }
    }

    /// Refuses what the model cannot be split into, with the reason.
    pub fn check(&self, config: &ModelConfig) -> Result<(), CheckpointError> {
        let Split { index, count } = self.group;
        if index >= count {
            return Err(refuse(format!("rank {index} is outside of its group of {count}")));
        }
        for (limit, what) in [
            (config.num_key_value_heads, "key-value heads, and attention is split by whole ones"),
            (config.hidden_size, "rows of the output projection"),
            (config.vocab_size, "entries of the vocabulary"),
        ] {
            if self.attention && count > limit {
                return Err(refuse(format!(
                    "a group of {count} ranks is too large: the model has {limit} {what}; use at most \
                     {limit} ranks for each group"
                )));
            }
        }
        let (found, num_layers) = (self.experts.len(), config.num_layers());
        if found != num_layers {
            return Err(refuse(format!(
                "experts of {found} layers are asked for, the model has {num_layers}"
            )));
        }
        self.experts.iter().try_for_each(|experts| check_experts(experts, config))?;
        Ok(())
    }

    /// The rank's key and value heads.
    pub fn key_value_heads(&self, config: &ModelConfig) -> Range<usize> {
        self.group.range(config.num_key_value_heads)
    }

    /// The rank's query heads, and its sinks: those that its key-value heads serve.
    pub fn query_heads(&self, config: &ModelConfig) -> Range<usize> {
        let heads_each = config.num_attention_heads / config.num_key_value_heads;
        scale(self.key_value_heads(config), heads_each)
    }

    /// The rank's rows of the query projection, and columns of the gathered context.
    pub fn query_rows(&self, config: &ModelConfig) -> Range<usize> {
        scale(self.query_heads(config), config.head_dim)
    }

    /// The rank's rows of the key projection, and of the value projection.
    pub fn key_value_rows(&self, config: &ModelConfig) -> Range<usize> {
        scale(self.key_value_heads(config), config.head_dim)
    }

    /// The rank's output rows of the attention's last projection.
    pub fn output_rows(&self, config: &ModelConfig) -> Range<usize> {
        self.group.range(config.hidden_size)
    }

    /// The rank's entries of the vocabulary in the head.
    pub fn vocab_rows(&self, config: &ModelConfig) -> Range<usize> {
        self.group.range(config.vocab_size)
    }
}

/// Refuses experts that the model does not have, or twice the same.
pub(crate) fn check_experts(experts: &[u32], config: &ModelConfig) -> Result<(), CheckpointError> {
    let mut seen = HashSet::with_capacity(experts.len());
    for &expert in experts {
        if expert as usize >= config.num_experts {
            let count = config.num_experts;
            return Err(refuse(format!("expert {expert} is asked for, the model has {count}")));
        }
        if !seen.insert(expert) {
            return Err(refuse(format!("expert {expert} is asked for twice")));
        }
    }
    Ok(())
}

fn scale(range: Range<usize>, by: usize) -> Range<usize> {
    range.start * by..range.end * by
}

fn refuse(reason: String) -> CheckpointError {
    CheckpointError::Shard { reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_runs_are_longer() {
        let runs: Vec<_> = (0..3).map(|index| split(8, 3, index)).collect();
        assert_eq!(runs, [0..3, 3..6, 6..8]);
    }

    #[test]
    fn runs_cover_everything_once() {
        for n in 0..40 {
            for count in 1..10 {
                let mut end = 0;
                for index in 0..count {
                    let run = split(n, count, index);
                    assert_eq!(run.start, end);
                    assert!(run.len().abs_diff(n / count) <= 1);
                    end = run.end;
                }
                assert_eq!(end, n);
            }
        }
    }
}
