//! The model in the numbers that a cluster is planned with. They come from the
//! budget's own table, so a worker that fits here fits on its device.

use crate::exit::UsageError;
use crate::serve::room::{BYTES_MAX_DEFAULT, Wanted};
use anyhow::Context;
use chorale_coordinator::cluster::{ModelFacts, RoomRule, SplitFacts};
use chorale_model::budget::{Budget, BudgetOptions, KvDtype, World};
use chorale_model::config::ModelConfig;

/// What ranks hold of the model, in groups of any size.
pub(super) fn model(config: &ModelConfig, wanted: &Wanted) -> anyhow::Result<ModelFacts> {
    let sizes = 1..=config.num_key_value_heads;
    let mut splits = Vec::with_capacity(config.num_key_value_heads);
    let mut workspace_bytes = 0;
    let mut all_experts_bytes = 0;
    for tensor_parallel_size in sizes {
        let budget = Budget::new(config, &options(tensor_parallel_size, wanted))?;
        // The first rank of a group holds the most.
        let rank = budget.ranks.first().context("a world has ranks")?;
        let weights = rank.weight_bytes;
        workspace_bytes = rank.workspace_bytes;
        all_experts_bytes = budget.weight_bytes.by_part.experts;
        splits.push(SplitFacts {
            dense_bytes: weights.total - weights.by_part.experts + rank.workspace_bytes,
            full_page_bytes: page_bytes(config, rank.kv_heads.len(), wanted, Option::is_none),
            sliding_page_bytes: page_bytes(config, rank.kv_heads.len(), wanted, Option::is_some),
        });
    }
    let num_experts = config.num_layers() as u64 * config.num_experts as u64;
    Ok(ModelFacts {
        checkpoint: None,
        num_layers: config.num_layers() as u32,
        num_experts: config.num_experts as u32,
        expert_bytes: all_experts_bytes.div_ceil(num_experts),
        splits,
        experts_only_bytes: workspace_bytes,
    })
}

fn options(tensor_parallel_size: usize, wanted: &Wanted) -> BudgetOptions {
    BudgetOptions {
        world: World { tensor_parallel_size, data_parallel_size: 1 },
        kv_dtype: KvDtype::F32,
        kv_block_size: wanted.block_size,
        max_model_len: Some(wanted.max_model_len),
        max_batch_tokens: wanted.max_batch_tokens,
        device_memory_bytes: None,
        memory_bandwidth_bytes_per_s: None,
        context_tokens: 0,
    }
}

/// A page of all layers of a kind.
fn page_bytes(
    config: &ModelConfig,
    num_kv_heads: usize,
    wanted: &Wanted,
    is_kind: impl Fn(&Option<u32>) -> bool,
) -> u64 {
    let num_layers = config.windows.iter().filter(|window| is_kind(window)).count();
    (2 * num_kv_heads * config.head_dim * wanted.block_size * num_layers) as u64 * wanted.bytes_per_value
}

/// How many pages a rank gets.
pub(super) fn room(
    config: &ModelConfig,
    wanted: &Wanted,
    kv_cache_bytes: Option<u64>,
    model: &ModelFacts,
) -> Result<RoomRule, UsageError> {
    let num_sliding = wanted.num_sliding_pages(config);
    let has_full = config.windows.iter().any(Option::is_none);
    let min_full = if has_full { wanted.max_model_len.div_ceil(wanted.block_size) as u64 } else { 0 };
    let alone = &model.splits[0];
    // Nobody expects a trial to take all there is.
    let by_default = BYTES_MAX_DEFAULT.saturating_sub(num_sliding * alone.sliding_page_bytes);
    let by_default = by_default.checked_div(alone.full_page_bytes).unwrap_or(0).max(min_full);
    let max_full = match kv_cache_bytes {
        Some(_) => wanted.num_pages_max(),
        None => wanted.num_pages_max().min(by_default),
    };
    let count = |pages: u64| {
        u32::try_from(pages).map_err(|_| {
            UsageError(format!(
                "{pages} pages are too many to be counted: lower --max-num-seqs or --max-model-len, or raise \
                 --kv-block-size"
            ))
        })
    };
    Ok(RoomRule {
        block_size_tokens: wanted.block_size as u32,
        max_step_tokens: wanted.max_batch_tokens as u32,
        max_step_slices: wanted.max_num_seqs as u32,
        num_sliding_blocks: count(num_sliding)?,
        min_full_blocks: count(min_full)?,
        max_full_blocks: count(if has_full { max_full.max(min_full) } else { 0 })?,
        kv_cache_bytes,
    })
}
