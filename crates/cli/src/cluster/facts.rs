//! The model in the numbers that a cluster is planned with. They come from the
//! budget's own table, so a worker that fits here fits on its device.

use crate::config::Config;
use crate::exit::UsageError;
use crate::footprint::{self, Rehearsal, Wished};
use crate::serve::room::{BYTES_MAX_DEFAULT, Wanted};
use anyhow::Context;
use chorale_coordinator::cluster::{ModelFacts, PageBytes, RoomRule, SplitFacts};
use chorale_cuda::packed_expert_bytes;
use chorale_device::{BatchLimits, DenseDtype, KvDtype};
use chorale_model::budget::{Budget, BudgetOptions, World};
use chorale_model::config::ModelConfig;
use chorale_plan::Shape;

/// What ranks hold of the model, in groups of any size. Workers may be CPUs or GPUs:
/// each number is that of whichever takes more.
pub(super) fn model(
    config: &ModelConfig,
    wanted: &Wanted,
    (settings, dense_dtype): (&Config, DenseDtype),
) -> anyhow::Result<ModelFacts> {
    let sizes = 1..=config.num_key_value_heads;
    let mut splits = Vec::with_capacity(config.num_key_value_heads);
    let mut experts_only_bytes = 0;
    let mut all_experts_bytes = 0;
    let rehearsal = Rehearsal::new(config);
    for tensor_parallel_size in sizes {
        let budget = Budget::new(config, &options(tensor_parallel_size, wanted, dense_dtype))?;
        // The first rank of a group holds the most.
        let rank = budget.ranks.first().context("a world has ranks")?;
        let weights = rank.weight_bytes;
        all_experts_bytes = budget.weight_bytes.by_part.experts;
        let wished = wished(tensor_parallel_size, wanted, (settings, dense_dtype));
        // Where GPUs cannot join, their memory does not matter.
        let (on_gpu, alone) = match footprint::refusal(config, wanted.block_size) {
            Some(_) => (0, 0),
            None => (
                rehearsal.without_experts(&wished, true)?.total(),
                rehearsal.without_experts(&wished, false)?.total(),
            ),
        };
        experts_only_bytes = experts_only_bytes.max(rank.workspace_bytes).max(alone);
        splits.push(SplitFacts {
            dense_bytes: (weights.total - weights.by_part.experts + rank.workspace_bytes).max(on_gpu),
            full_page_bytes: page_bytes(config, rank.kv_heads.len(), wanted, Option::is_none),
            sliding_page_bytes: page_bytes(config, rank.kv_heads.len(), wanted, Option::is_some),
        });
    }
    let num_experts = config.num_layers() as u64 * config.num_experts as u64;
    let packed = match footprint::refusal(config, wanted.block_size) {
        Some(_) => 0,
        None => packed_expert_bytes(config.hidden_size, config.intermediate_size) as u64,
    };
    Ok(ModelFacts {
        checkpoint: None,
        num_layers: config.num_layers() as u32,
        num_experts: config.num_experts as u32,
        expert_bytes: all_experts_bytes.div_ceil(num_experts).max(packed),
        splits,
        experts_only_bytes,
    })
}

/// A world of as many groups as are wanted, with one rank more, which has no attention.
fn wished(
    tensor_parallel_size: usize,
    wanted: &Wanted,
    (settings, dense_dtype): (&Config, DenseDtype),
) -> Wished {
    let (size, groups) = (tensor_parallel_size as u32, settings.data_parallel_size as u32);
    Wished {
        shape: Shape { tensor_parallel_size: size, data_parallel_size: groups, num_ranks: size * groups + 1 },
        limits: BatchLimits {
            max_rows: wanted.max_batch_tokens,
            max_slices: wanted.max_num_seqs,
            max_logit_rows: wanted.max_num_seqs,
        },
        block_size: wanted.block_size,
        max_model_len: wanted.max_model_len,
        dense_dtype,
        kv_dtype: KvDtype::Bf16,
        fast_combine: settings.fast_combine,
        overlap_min_rows: settings.overlap_min_rows,
    }
}

fn options(tensor_parallel_size: usize, wanted: &Wanted, dense_dtype: DenseDtype) -> BudgetOptions {
    BudgetOptions {
        world: World { tensor_parallel_size, data_parallel_size: 1 },
        dense_dtype,
        kv_dtype: wanted.kv_dtype,
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
) -> PageBytes {
    let num_layers = config.windows.iter().filter(|window| is_kind(window)).count() as u64;
    let bytes = |kv_dtype| num_layers * Wanted { kv_dtype, ..*wanted }.page_bytes(config, num_kv_heads);
    PageBytes { f32: bytes(KvDtype::F32), bf16: bytes(KvDtype::Bf16), fp8: bytes(KvDtype::Fp8) }
}

/// How many pages a rank gets.
pub(super) fn room(
    config: &ModelConfig,
    wanted: &Wanted,
    kv_cache_bytes: Option<u64>,
) -> Result<RoomRule, UsageError> {
    let num_sliding = wanted.num_sliding_pages(config);
    let has_full = config.windows.iter().any(Option::is_none);
    let min_full = if has_full { wanted.max_model_len.div_ceil(wanted.block_size) as u64 } else { 0 };
    let max_full = wanted.num_pages_max();
    let count = |pages: u64| {
        u32::try_from(pages).map_err(|_| {
            UsageError(format!(
                "{pages} pages are too many to be counted: lower --max-num-seqs or --max-model-len, or raise \
                 --kv-block-size"
            ))
        })
    };
    Ok(RoomRule {
        max_sequence_tokens: count(wanted.max_model_len as u64)?,
        block_size_tokens: wanted.block_size as u32,
        max_step_tokens: wanted.max_batch_tokens as u32,
        max_step_slices: wanted.max_num_seqs as u32,
        num_sliding_blocks: count(num_sliding)?,
        min_full_blocks: count(min_full)?,
        max_full_blocks: count(if has_full { max_full.max(min_full) } else { 0 })?,
        kv_cache_bytes,
        // Nobody expects a trial to take all there is.
        max_bytes_by_default: BYTES_MAX_DEFAULT,
    })
}
