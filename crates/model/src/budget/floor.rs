//! The least that a decode step reads from memory, and so the most tokens a
//! second that bandwidth allows. Caches, compute and the network are left out.

use super::BudgetOptions;
use super::kv::read_bytes;
use super::tensors::{Place, Table};
use crate::config::ModelConfig;
use serde::Serialize;

/// Batch sizes that a budget states the floor for.
pub const BATCH_SIZES: [usize; 8] = [1, 4, 8, 16, 32, 64, 128, 256];

/// The floor of one decode step: each sequence of the batch gets a token.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct StepFloor {
    /// Sequences in the step, spread evenly over the groups.
    pub batch_size: usize,
    /// Different experts of a layer that the batch is expected to meet, if
    /// every token chose uniformly: real routing is skewed and meets fewer.
    pub distinct_experts: f64,
    /// Bytes that the busiest rank reads.
    pub bytes_per_step: f64,
    /// Tokens of the whole batch, as fast as that rank can read; only with a
    /// bandwidth.
    pub tokens_per_s: Option<f64>,
}

pub(super) fn floors(table: &Table, config: &ModelConfig, options: &BudgetOptions) -> Vec<StepFloor> {
    BATCH_SIZES.iter().map(|batch_size| floor(table, config, options, *batch_size)).collect()
}

pub(super) fn floor(
    table: &Table,
    config: &ModelConfig,
    options: &BudgetOptions,
    batch_size: usize,
) -> StepFloor {
    let world = options.world;
    let busiest = (0..world.num_ranks())
        .map(|rank| bytes_read(table, config, options, Place::new(rank, world), batch_size))
        .fold(0.0, f64::max);
    StepFloor {
        batch_size,
        distinct_experts: config.num_experts as f64 * share_of_experts_met(config, batch_size),
        bytes_per_step: busiest,
        tokens_per_s: options
            .memory_bandwidth_bytes_per_s
            .map(|bandwidth| batch_size as f64 * bandwidth / busiest),
    }
}

/// `1 - (1 - k/E)^B`: how likely at least one of `B` tokens chooses an expert.
fn share_of_experts_met(config: &ModelConfig, batch_size: usize) -> f64 {
    let chosen = config.experts_per_token as f64 / config.num_experts as f64;
    1.0 - (1.0 - chosen).powf(batch_size as f64)
}

fn bytes_read(
    table: &Table,
    config: &ModelConfig,
    options: &BudgetOptions,
    place: Place,
    batch_size: usize,
) -> f64 {
    let held = table.bytes_held(place);
    let sequences = batch_size.div_ceil(options.world.data_parallel_size) as u64;
    let kv_heads = place.of_group(config.num_key_value_heads).len();

    let dense = held.attention + held.router + held.vectors + held.head;
    let embedding_rows = sequences * table.embedding_row_bytes();
    let kv = sequences as f64 * read_bytes(config, options.kv_dtype, kv_heads, options.context_tokens) as f64;
    (dense + embedding_rows) as f64 + kv + held.experts as f64 * share_of_experts_met(config, batch_size)
}
