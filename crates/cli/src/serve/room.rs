//! How much memory the KV cache takes, and what fits into it. Pure arithmetic;
//! what the machine has is asked for once, by [`available_bytes`].

use crate::config::Config;
use crate::device::DeviceKind;
use crate::exit::UsageError;
use crate::footprint::Footprint;
use chorale_device::{BatchLimits, KvDtype};
use chorale_model::Room;
use chorale_model::config::ModelConfig;

/// Without a setting, the share of the memory that is left beside the weights.
const SHARE_OF_AVAILABLE: f64 = 0.5;

/// Without a setting, never more: nobody expects a trial to take all there is.
pub(crate) const BYTES_MAX_DEFAULT: u64 = 8 << 30;

/// If the system does not tell what it has.
const BYTES_DEFAULT: u64 = 1 << 30;

/// What the cache is sized by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) kv_cache_bytes: u64,
    pub(crate) max_model_len: usize,
    pub(crate) max_num_seqs: usize,
    pub(crate) max_batch_tokens: usize,
    pub(crate) block_size: usize,
    /// What keys and values are kept in.
    pub(crate) kv_dtype: KvDtype,
}

/// Pages of both pools for what is wanted. Sliding layers hold a window for
/// each sequence and the slices of a step, and as much again for prefixes that
/// may come back; full layers take the rest.
pub(super) fn room(config: &ModelConfig, wanted: &Wanted) -> Result<Room, UsageError> {
    let Wanted { max_num_seqs, block_size, .. } = *wanted;
    let num_sliding_layers = config.windows.iter().flatten().count() as u64;
    let num_full_layers = config.windows.len() as u64 - num_sliding_layers;
    let page_bytes = wanted.page_bytes(config, config.num_key_value_heads);

    let (pages_max, num_sliding) = (wanted.num_pages_max(), wanted.num_sliding_pages(config));
    let sliding_bytes = num_sliding * num_sliding_layers * page_bytes;

    let needed = wanted.needed_bytes(config);
    if needed > wanted.kv_cache_bytes {
        let needed_mib = needed.div_ceil(1 << 20);
        return Err(UsageError(format!(
            "--kv-cache-memory is {} MiB: one sequence of {} tokens with {max_num_seqs} windows needs \
             {needed_mib} MiB; raise it, or lower --max-model-len, --max-num-seqs or --max-batch-tokens",
            wanted.kv_cache_bytes >> 20,
            wanted.max_model_len,
        )));
    }
    let num_full = match num_full_layers {
        0 => 0,
        layers => ((wanted.kv_cache_bytes - sliding_bytes) / (layers * page_bytes)).min(pages_max),
    };
    Ok(Room {
        limits: BatchLimits {
            max_rows: wanted.max_batch_tokens,
            max_slices: max_num_seqs,
            max_logit_rows: max_num_seqs,
        },
        num_homes: 1,
        block_size,
        num_full_blocks: num_full as usize,
        num_sliding_blocks: num_sliding as usize,
        kv_dtype: wanted.kv_dtype,
        has_halves: false,
    })
}

impl Wanted {
    /// What the sequences' windows and one sequence of full length take.
    pub(crate) fn needed_bytes(&self, config: &ModelConfig) -> u64 {
        let num_sliding_layers = config.windows.iter().flatten().count() as u64;
        let num_full_layers = config.windows.len() as u64 - num_sliding_layers;
        let longest = self.max_model_len.div_ceil(self.block_size) as u64;
        let pages = self.num_sliding_pages(config) * num_sliding_layers + longest * num_full_layers;
        pages * self.page_bytes(config, config.num_key_value_heads)
    }

    /// A page of so many heads in one layer.
    pub(crate) fn page_bytes(&self, config: &ModelConfig, num_kv_heads: usize) -> u64 {
        (2 * num_kv_heads * self.block_size * self.kv_dtype.row_bytes(config.head_dim)) as u64
    }

    /// Pages that all sequences take when each is as long as it may be.
    pub(crate) fn num_pages_max(&self) -> u64 {
        (self.max_num_seqs * self.max_model_len.div_ceil(self.block_size)) as u64
    }

    /// Pages of the sliding layers.
    pub(crate) fn num_sliding_pages(&self, config: &ModelConfig) -> u64 {
        let Some(window) = config.window() else { return 0 };
        let window_pages = (window as usize).div_ceil(self.block_size) + 1;
        let slices = self.max_batch_tokens.div_ceil(self.block_size) + self.max_num_seqs;
        let span = self.max_num_seqs * window_pages + slices;
        (2 * span as u64).min(self.num_pages_max())
    }
}

/// The default size of the cache: half of what is free beside the weights.
pub(super) fn kv_cache_bytes_default(weight_bytes: u64) -> u64 {
    let Some(available) = available_bytes() else { return BYTES_DEFAULT };
    let free = available.saturating_sub(weight_bytes) as f64;
    ((free * SHARE_OF_AVAILABLE) as u64).min(BYTES_MAX_DEFAULT)
}

/// The cache of a world of GPUs, all ranks together: what weights and steps leave of
/// the least memory, or what the user asked for.
pub(super) fn gpu_kv_cache_bytes(
    settings: &Config,
    ranks: &[Footprint],
    free_bytes: u64,
) -> Result<u64, UsageError> {
    let Some(rank) = ranks.iter().max_by_key(|rank| rank.total()) else { return Ok(0) };
    let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
    let plan = || {
        format!(
            "{:.1} GiB of weights, {:.1} GiB of them experts, {:.1} GiB for steps of {} tokens and {} \
             sequences{}, where {:.1} GiB are free",
            gib(rank.dense_bytes + rank.expert_bytes),
            gib(rank.expert_bytes),
            gib(rank.step_bytes),
            settings.max_batch_tokens(DeviceKind::Gpu),
            settings.max_num_seqs(DeviceKind::Gpu),
            match ranks.len() {
                1 => String::new(),
                _ => format!(" and {:.1} GiB for exchanges", gib(rank.exchange_bytes)),
            },
            gib(free_bytes),
        )
    };
    let Some(left) = free_bytes.checked_sub(rank.total()) else {
        return Err(UsageError(format!(
            "the model does not fit its GPU: {}; take more ranks with --tensor-parallel-size or \
             --data-parallel-size, or lower --max-batch-tokens or --max-num-seqs",
            plan()
        )));
    };
    tracing::info!(
        weights_mib = (rank.dense_bytes + rank.expert_bytes) >> 20,
        steps_mib = rank.step_bytes >> 20,
        exchanges_mib = rank.exchange_bytes >> 20,
        left_mib = left >> 20,
        "the memory of each GPU is planned"
    );
    let num_ranks = ranks.len() as u64;
    match settings.kv_cache_memory_bytes {
        Some(asked) if asked / num_ranks > left => Err(UsageError(format!(
            "--kv-cache-memory is {:.1} GiB, {:.1} GiB on each GPU: {:.1} GiB are left beside {}",
            gib(asked),
            gib(asked / num_ranks),
            gib(left),
            plan()
        ))),
        Some(asked) => Ok(asked),
        None => Ok(left.saturating_mul(num_ranks)),
    }
}

/// Memory that can be had without swapping, where the kernel tells.
pub(crate) fn available_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// The longest sequence that the default cache has room for beside the windows
/// of all sequences: a context that does not fit is cut rather than refused,
/// unless the user asked for it.
pub(crate) fn max_model_len_that_fits(config: &ModelConfig, wanted: &Wanted) -> usize {
    let mut len = wanted.max_model_len;
    while len > wanted.block_size && room(config, &Wanted { max_model_len: len, ..*wanted }).is_err() {
        len /= 2;
    }
    len
}
