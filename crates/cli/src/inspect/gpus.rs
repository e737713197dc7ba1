//! What a model takes of GPUs, by the plan that serving makes, too: the table and
//! the word on whether it fits come from the same numbers.

use crate::config::Config;
use crate::device::{DeviceChoice, DeviceKind, reserved_bytes};
use crate::footprint::{self, Footprint, Rehearsal, Wished};
use crate::serve::local::shape;
use crate::serve::room::Wanted;
use crate::setup::Setup;
use anyhow::Context;
use chorale_device::{BatchLimits, KvDtype};
use chorale_model::budget::{
    Budget, BudgetOptions, Demand, Fit, RanksNeeded, Shortage, World, num_kv_tokens,
};
use chorale_model::config::ModelConfig;
use serde::Serialize;

/// What each rank takes of a GPU, without the pages of its cache.
#[derive(Serialize)]
pub(super) struct Gpus {
    pub(super) max_num_seqs: usize,
    pub(super) max_batch_tokens: usize,
    /// Of each GPU's memory, what is left to the driver, graphs and NCCL.
    pub(super) reserved_bytes: u64,
    /// In rank order.
    pub(super) ranks: Vec<Footprint>,
}

/// A model that is loaded on GPUs of paper.
struct Paper<'a> {
    config: &'a ModelConfig,
    settings: &'a Config,
    rehearsal: Rehearsal,
    /// The pages that a home must have at least.
    wanted: Wanted,
}

/// Whether `inspect` speaks of GPUs: not if the settings or the model leave no choice.
pub(super) fn is_for_gpus(config: &ModelConfig, setup: &Setup) -> bool {
    let is_asked = setup.device_options().choice != DeviceChoice::Cpu;
    is_asked && footprint::refusal(config, setup.config.kv_block_size).is_none()
}

impl Gpus {
    /// Plans the budget's world, and has the budget say what the plan does.
    pub(super) fn plan(
        config: &ModelConfig,
        (budget, options): (&mut Budget, &BudgetOptions),
        setup: &Setup,
    ) -> anyhow::Result<Self> {
        let settings = &setup.config;
        let wanted = Wanted {
            kv_cache_bytes: 0,
            max_model_len: budget.max_model_len,
            max_num_seqs: settings.max_num_seqs(DeviceKind::Gpu),
            max_batch_tokens: settings.max_batch_tokens(DeviceKind::Gpu),
            block_size: settings.kv_block_size,
            kv_dtype: budget.kv.dtype,
        };
        let paper = Paper { config, settings, rehearsal: Rehearsal::new(config), wanted };
        let num_ranks = budget.world.num_ranks();
        let wished = paper.wished(budget.world, budget.kv.dtype);
        let ranks = paper.rehearsal.ranks(&wished).context("no plan of a GPU's memory")?;
        for (rank, taken) in budget.ranks.iter_mut().zip(&ranks) {
            rank.workspace_bytes = taken.step_bytes + taken.exchange_bytes;
            let fit = |memory| paper.fit(taken, (memory, num_ranks), rank.kv_heads.len());
            rank.fit = options.device_memory_bytes.map(fit);
        }
        budget.num_kv_tokens = num_kv_tokens(&budget.ranks);
        budget.ranks_needed = match options.device_memory_bytes {
            // No rank holds more than the first.
            Some(memory) => {
                Some(RanksNeeded::find(config, |world| paper.shortage_in(world, memory, options))?)
            }
            None => None,
        };
        Ok(Self {
            max_num_seqs: wanted.max_num_seqs,
            max_batch_tokens: wanted.max_batch_tokens,
            reserved_bytes: reserved_bytes(num_ranks > 1),
            ranks,
        })
    }
}

impl Paper<'_> {
    fn wished(&self, world: World, kv_dtype: KvDtype) -> Wished {
        let Wanted { max_num_seqs, max_batch_tokens, max_model_len, block_size, .. } = self.wanted;
        let limits = BatchLimits {
            max_rows: max_batch_tokens,
            max_slices: max_num_seqs,
            max_logit_rows: max_num_seqs,
        };
        Wished {
            shape: shape(world.tensor_parallel_size, world.data_parallel_size),
            limits,
            block_size,
            max_model_len,
            dense_dtype: self.settings.dense_dtype,
            kv_dtype,
            fast_combine: self.settings.fast_combine,
            overlap_min_rows: self.settings.overlap_min_rows,
        }
    }

    /// Weighs what a rank takes, with so many heads of each page, against a GPU's memory.
    fn fit(&self, taken: &Footprint, (memory, num_ranks): (u64, usize), num_kv_heads: usize) -> Fit {
        let num_sliding_layers = self.config.windows.iter().flatten().count() as u64;
        let num_full_layers = self.config.windows.len() as u64 - num_sliding_layers;
        let page = self.wanted.page_bytes(self.config, num_kv_heads);
        let demand = Demand {
            weight_bytes: taken.dense_bytes + taken.expert_bytes,
            workspace_bytes: taken.step_bytes + taken.exchange_bytes,
            sliding_bytes: self.wanted.num_sliding_pages(self.config) * num_sliding_layers * page,
            full_page_bytes: num_full_layers * page,
            block_size: self.wanted.block_size as u64,
            max_model_len: self.wanted.max_model_len as u64,
        };
        demand.fit(memory, reserved_bytes(num_ranks > 1))
    }

    fn shortage_in(
        &self,
        world: World,
        memory: u64,
        options: &BudgetOptions,
    ) -> anyhow::Result<Option<Shortage>> {
        // Arithmetic first: worlds whose weights alone are too large need no plan.
        let options = BudgetOptions { world, device_memory_bytes: None, ..*options };
        let budget = Budget::new(self.config, &options)?;
        let rank = budget.ranks.first().context("a world has ranks")?;
        let free = memory.saturating_sub(reserved_bytes(world.num_ranks() > 1));
        if rank.weight_bytes.total > free {
            let needed_bytes = rank.weight_bytes.total;
            return Ok(Some(Shortage::Weights { needed_bytes, available_bytes: free }));
        }
        let wished = self.wished(world, options.kv_dtype);
        let taken = self.rehearsal.first_rank(&wished).context("no plan of a GPU's memory")?;
        Ok(self.fit(&taken, (memory, world.num_ranks()), rank.kv_heads.len()).shortage)
    }
}
