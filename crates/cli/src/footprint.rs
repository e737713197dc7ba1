//! What a rank takes of its GPU's memory. Nothing is estimated: weights and
//! buffers are made on paper by the code that makes them on the GPU.

use crate::serve::local::even_runs;
use bytes::Bytes;
use chorale_cuda::{Cuda, Gpu, GpuError, Paper, groups_bytes};
use chorale_device::{BatchLimits, DenseDtype, Device, KvDtype, KvShape};
use chorale_model::checkpoint::Checkpoint;
use chorale_model::config::ModelConfig;
use chorale_model::shard::{ShardSpec, Split};
use chorale_model::{LoadError, Room, Seat, Weights};
use chorale_nccl::link_bytes;
use chorale_plan::{Carrier, Epoch, ExchangeOptions, Rank, Shape};
use serde::Serialize;
use std::ops::ControlFlow;
use std::sync::Arc;

/// A rank's bytes, by what is made one after the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Footprint {
    /// Weights but the experts.
    pub(crate) dense_bytes: u64,
    /// Experts.
    pub(crate) expert_bytes: u64,
    /// What steps are computed in, without the pages of keys and values.
    pub(crate) step_bytes: u64,
    /// What is exchanged with other ranks. NCCL's own is not among it.
    pub(crate) exchange_bytes: u64,
}

impl Footprint {
    /// All of it.
    pub(crate) fn total(&self) -> u64 {
        self.dense_bytes + self.expert_bytes + self.step_bytes + self.exchange_bytes
    }
}

/// What ranks are to compute, as far as it takes memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wished {
    /// How the ranks are grouped.
    pub(crate) shape: Shape,
    /// The largest step of a home.
    pub(crate) limits: BatchLimits,
    /// Positions of a KV page.
    pub(crate) block_size: usize,
    /// The longest sequence.
    pub(crate) max_model_len: usize,
    pub(crate) dense_dtype: DenseDtype,
    pub(crate) kv_dtype: KvDtype,
    pub(crate) fast_combine: bool,
    pub(crate) overlap_min_rows: Option<u32>,
}

/// A model that is loaded on paper.
pub(crate) struct Rehearsal {
    checkpoint: Checkpoint,
}

impl Rehearsal {
    /// Of a model of this geometry.
    pub(crate) fn new(config: &ModelConfig) -> Self {
        // Nobody reads them: all weights are one run of zeros, as long as the longest.
        let mut zeros = Bytes::new();
        let checkpoint = Checkpoint::made(config.clone(), |_, len| {
            if zeros.len() < len {
                zeros = Bytes::from(vec![0; len]);
            }
            zeros.slice(..len)
        });
        Self { checkpoint }
    }

    /// What the first rank takes of its group's attention, or one that has none, without
    /// experts and as it is asked for.
    pub(crate) fn without_experts(
        &self,
        wished: &Wished,
        attention: bool,
    ) -> Result<Footprint, LoadError<GpuError>> {
        let config = self.checkpoint.config();
        let count = wished.shape.tensor_parallel_size as usize;
        let spec = ShardSpec {
            attention,
            group: if attention { Split { index: 0, count } } else { Split::WHOLE },
            experts: vec![Vec::new(); config.num_layers()],
            ..ShardSpec::whole(config)
        };
        let rank = if attention { 0 } else { wished.shape.num_ranks - 1 };
        self.count(wished, (Rank(rank), &spec), Paper::asked_bytes)
    }

    /// What each of a world's ranks takes where experts lie in even runs.
    pub(crate) fn ranks(&self, wished: &Wished) -> Result<Vec<Footprint>, LoadError<GpuError>> {
        let config = self.checkpoint.config();
        let placement = even_runs(wished.shape, config);
        let rank = |rank| self.rank(wished, rank, &ShardSpec::of(wished.shape, rank, &placement));
        wished.shape.ranks().map(rank).collect()
    }

    /// What the first of them takes; no other takes more.
    pub(crate) fn first_rank(&self, wished: &Wished) -> Result<Footprint, LoadError<GpuError>> {
        let placement = even_runs(wished.shape, self.checkpoint.config());
        self.rank(wished, Rank(0), &ShardSpec::of(wished.shape, Rank(0), &placement))
    }

    /// What a rank takes that holds these experts, as the driver gives it out.
    pub(crate) fn rank(
        &self,
        wished: &Wished,
        rank: Rank,
        spec: &ShardSpec,
    ) -> Result<Footprint, LoadError<GpuError>> {
        self.count(wished, (rank, spec), Paper::taken_bytes)
    }

    fn count(
        &self,
        wished: &Wished,
        (rank, spec): (Rank, &ShardSpec),
        bytes: fn(&Paper) -> u64,
    ) -> Result<Footprint, LoadError<GpuError>> {
        let config = self.checkpoint.config();
        let spec = ShardSpec { dense_dtype: wished.dense_dtype, ..spec.clone() };
        let paper = Paper::hopper();
        let mut device = Cuda::new(Arc::clone(&paper) as Arc<dyn Gpu>);
        let mut weights = Weights::default();
        let mut load = |device: &mut Cuda, spec: &ShardSpec| {
            weights.load(device, &self.checkpoint, spec, &mut |_| ControlFlow::Continue(()))?;
            // What was only for loading goes.
            device.wait().map_err(LoadError::Device)?;
            Ok::<u64, LoadError<GpuError>>(bytes(&paper))
        };
        let no_experts = ShardSpec { experts: vec![Vec::new(); config.num_layers()], ..spec.clone() };
        let dense_bytes = load(&mut device, &no_experts)?;
        let with_experts = load(&mut device, &spec)?;
        let room = wished.room(config);
        let seat = Seat::new(&mut device, config, &spec, &room).map_err(LoadError::Device)?;
        let pages = pages_bytes(seat.kv(), bytes).map_err(LoadError::Device)?;
        let with_steps = bytes(&paper).saturating_sub(pages);
        Ok(Footprint {
            dense_bytes,
            expert_bytes: with_experts - dense_bytes,
            step_bytes: with_steps.saturating_sub(with_experts),
            exchange_bytes: self.exchange_bytes(wished, rank, &spec).map_err(LoadError::Device)?,
        })
    }

    /// By whichever takes more.
    fn exchange_bytes(&self, wished: &Wished, rank: Rank, spec: &ShardSpec) -> Result<u64, GpuError> {
        let config = self.checkpoint.config();
        let Wished { shape, limits, .. } = *wished;
        let num_homes = shape.data_parallel_size as usize;
        let num_choices = limits.max_rows * num_homes * config.experts_per_token;
        let num_local = spec.experts.iter().map(Vec::len).max().unwrap_or(0);
        let groups = groups_bytes(num_choices, num_local, config.num_experts);
        if shape.num_ranks == 1 {
            return Ok(groups as u64);
        }
        let place = chorale_link::Place {
            epoch: Epoch(0),
            shape,
            rank,
            exchange: ExchangeOptions {
                fast_combine: wished.fast_combine,
                overlap_min_rows: wished.overlap_min_rows,
                ..ExchangeOptions::exact(0)
            },
            carrier: Carrier::Nccl,
            num_layers: config.num_layers(),
            num_experts: config.num_experts,
            top_k: config.experts_per_token,
            hidden_size: config.hidden_size,
            max_rows: limits.max_rows,
        };
        let width = config.hidden_size.max(config.num_attention_heads * config.head_dim);
        let rows = limits.max_rows * width * size_of::<u16>();
        let logits = limits.max_logit_rows * config.vocab_size * size_of::<f32>();
        // Each rank's columns are padded to 8.
        let padding =
            shape.tensor_parallel_size as usize * 8 * 4 * limits.max_rows.max(limits.max_logit_rows);
        let by_nccl = link_bytes(&place, rows.max(logits) + padding)?;
        // Rows of all homes, and a list of their choices and the sort for each layer.
        let lists = (num_choices * 2 * size_of::<u32>()).next_power_of_two();
        let by_frames = place.max_arrivals() * config.hidden_size * size_of::<u16>()
            + config.num_layers() * (groups + lists);
        Ok(by_nccl.max(by_frames as u64))
    }
}

/// Why GPUs do not compute a model with such pages, which CPUs may; `None` if they do.
pub(crate) fn refusal(config: &ModelConfig, block_size: usize) -> Option<String> {
    let heads_each = config.num_attention_heads.checked_div(config.num_key_value_heads).unwrap_or(0);
    let mut windows = config.windows.iter().flatten();
    let first = windows.next();
    if !block_size.is_power_of_two() {
        return Some(format!("--kv-block-size is {block_size}: pages on GPUs hold a power of two of tokens"));
    }
    let refused = [
        (config.head_dim != 64, "heads that are not 64 wide"),
        (!(1..=16).contains(&heads_each), "more than 16 query heads for a key and value head"),
        (windows.any(|window| Some(window) != first), "windows of several sizes"),
        (config.num_experts > 256, "more than 256 experts"),
        (
            !config.hidden_size.is_multiple_of(32) || !config.intermediate_size.is_multiple_of(32),
            "widths that are no multiple of 32",
        ),
    ];
    let found = refused.into_iter().find(|(is_so, _)| *is_so);
    found.map(|(_, what)| {
        format!("the model has {what}, which the GPU's kernels do not compute; --device cpu does")
    })
}

impl Wished {
    /// As many pages as any cache could have: they lie on paper.
    fn room(&self, config: &ModelConfig) -> Room {
        let pages = self.limits.max_slices * self.max_model_len.div_ceil(self.block_size);
        Room {
            limits: self.limits,
            num_homes: self.shape.data_parallel_size as usize,
            block_size: self.block_size,
            num_full_blocks: pages,
            num_sliding_blocks: if config.window().is_some() { pages } else { 0 },
            kv_dtype: self.kv_dtype,
            has_halves: self.overlap_min_rows.is_some() && self.shape.num_ranks > 1,
        }
    }
}

/// What the pages of a cache take.
fn pages_bytes(kv: &KvShape, bytes: fn(&Paper) -> u64) -> Result<u64, GpuError> {
    let paper = Paper::hopper();
    let mut device = Cuda::new(Arc::clone(&paper) as Arc<dyn Gpu>);
    let _cache = device.kv_cache(kv)?;
    Ok(bytes(&paper))
}

#[cfg(test)]
mod tests;
