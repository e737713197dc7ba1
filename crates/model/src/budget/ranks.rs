//! What each rank of the world holds: its shard of the weights and its heads'
//! part of the KV cache. Whether that fits is `fit`'s to say.

use super::fit::{Fit, Need};
use super::tensors::{Place, Table};
use super::{BudgetOptions, KvBudget, Sum};
use crate::config::ModelConfig;
use serde::Serialize;
use std::ops::Range;

/// What one rank holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RankBudget {
    /// The rank's number in the world.
    pub rank: usize,
    /// The group whose attention it takes part in.
    pub group: usize,
    /// Its key/value heads.
    pub kv_heads: Range<usize>,
    /// Its experts, the same of every layer.
    pub experts: Range<usize>,
    /// Its shard of the weights.
    pub weight_bytes: Sum,
    /// Its heads' keys and values.
    pub kv: KvBudget,
    /// Activations and logits of the largest step.
    pub workspace_bytes: u64,
    /// Whether all of it fits, if device memory was given.
    pub fit: Option<Fit>,
}

pub(super) fn ranks(
    table: &Table,
    config: &ModelConfig,
    options: &BudgetOptions,
    need: &Need,
) -> Vec<RankBudget> {
    let world = options.world;
    (0..world.num_ranks())
        .map(|rank| {
            let place = Place::new(rank, world);
            let weights = table.bytes_held(place);
            let kv_heads = place.of_group(config.num_key_value_heads);
            RankBudget {
                rank,
                group: place.group(),
                kv: KvBudget::new(config, options.kv_dtype, kv_heads.len()),
                experts: place.of_world(config.num_experts),
                weight_bytes: weights.into(),
                workspace_bytes: need.workspace_bytes,
                fit: options
                    .device_memory_bytes
                    .map(|memory| need.of_rank(weights.total(), kv_heads.len()).fit(memory, 0)),
                kv_heads,
            }
        })
        .collect()
}

/// What all groups hold together; `None` without device memory, or where no
/// layer grows.
pub fn num_kv_tokens(ranks: &[RankBudget]) -> Option<u64> {
    let groups = ranks.chunk_by(|one, next| one.group == next.group);
    groups
        .map(|group| {
            let tokens = group.iter().map(|rank| rank.fit.as_ref()?.num_kv_tokens);
            tokens.min().flatten()
        })
        .sum()
}
