//! Whether a rank's part fits in its device's memory, why not, and how many
//! ranks it would take. Memory goes to weights, then workspace, then KV pages.

use super::floor::BATCH_SIZES;
use super::kv::layer_bytes_per_token;
use super::tensors::{Place, Table};
use super::{BudgetError, BudgetOptions, World};
use crate::config::ModelConfig;
use serde::Serialize;
use std::convert::Infallible;

/// How a rank's part meets its device's memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fit {
    /// The device's memory.
    pub device_memory_bytes: u64,
    /// Left for KV pages after weights and workspace; 0 where these do not fit.
    pub kv_cache_bytes: u64,
    /// Pages of one sequence of the longest length, its prefill included.
    pub longest_sequence_bytes: u64,
    /// Tokens of full layers that the pages hold, beside the sliding pages of
    /// one sequence. `None` where no layer grows.
    pub num_kv_tokens: Option<u64>,
    /// Why it does not fit; `None` where it does.
    pub shortage: Option<Shortage>,
}

/// The first thing that memory does not suffice for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "of", rename_all = "snake_case")]
pub enum Shortage {
    /// The weights alone are too large.
    Weights {
        /// What they take.
        needed_bytes: u64,
        /// What is to be had of the device's memory.
        available_bytes: u64,
    },
    /// The weights fit, the activations of the largest step do not.
    Workspace {
        /// What the step takes.
        needed_bytes: u64,
        /// What the weights leave.
        available_bytes: u64,
    },
    /// Both fit, the pages of the longest sequence do not.
    Kv {
        /// What the sequence takes.
        needed_bytes: u64,
        /// What weights and workspace leave.
        available_bytes: u64,
        /// Tokens of the sequence.
        num_tokens: u64,
    },
}

/// The smallest world that fits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum RanksNeeded {
    /// This many, laid out so.
    Enough {
        /// All ranks.
        num_ranks: usize,
        /// How they form groups.
        world: World,
    },
    /// No number helps: what every rank must hold is too large.
    Never {
        /// Why the most spread world does not fit.
        shortage: Shortage,
    },
}

impl RanksNeeded {
    /// Looks for the smallest world that is short of nothing. Among worlds of a
    /// size, the largest groups hold least on each rank, so they are tried first.
    ///
    /// # Errors
    ///
    /// Those of `shortage_in`.
    pub fn find<E>(
        config: &ModelConfig,
        mut shortage_in: impl FnMut(World) -> Result<Option<Shortage>, E>,
    ) -> Result<Self, E> {
        let group_max = config.num_key_value_heads;
        // Past one expert on a rank, only whole groups of the largest size remain
        // to be tried: a larger world holds no less anywhere.
        let num_ranks_max = config.num_experts.max(1).next_multiple_of(group_max);
        for num_ranks in 1..=num_ranks_max {
            for tensor_parallel_size in (1..=group_max.min(num_ranks)).rev() {
                if num_ranks % tensor_parallel_size != 0 {
                    continue;
                }
                let world =
                    World { tensor_parallel_size, data_parallel_size: num_ranks / tensor_parallel_size };
                if shortage_in(world)?.is_none() {
                    return Ok(Self::Enough { num_ranks, world });
                }
            }
        }
        let most_spread =
            World { tensor_parallel_size: group_max, data_parallel_size: num_ranks_max / group_max };
        Ok(match shortage_in(most_spread)? {
            Some(shortage) => Self::Never { shortage },
            None => Self::Enough { num_ranks: num_ranks_max, world: most_spread },
        })
    }
}

/// What a rank takes of its device's memory, and what pages would.
#[derive(Clone, Copy, Debug)]
pub struct Demand {
    /// Its weights.
    pub weight_bytes: u64,
    /// Activations and logits of the largest step, and what else goes with it.
    pub workspace_bytes: u64,
    /// Pages of all sliding layers that there must be.
    pub sliding_bytes: u64,
    /// One page of all full layers.
    pub full_page_bytes: u64,
    /// Positions of a page.
    pub block_size: u64,
    /// The longest sequence that must fit.
    pub max_model_len: u64,
}

impl Demand {
    /// Weighs it against a device's memory, of which some is not to be had.
    pub fn fit(&self, device_memory_bytes: u64, reserved_bytes: u64) -> Fit {
        let Self { weight_bytes, workspace_bytes, sliding_bytes, full_page_bytes, block_size, max_model_len } =
            *self;
        let free = device_memory_bytes.saturating_sub(reserved_bytes);
        let after_weights = free.checked_sub(weight_bytes);
        let after_workspace = after_weights.and_then(|left| left.checked_sub(workspace_bytes));
        let left = after_workspace.unwrap_or(0);
        let longest = sliding_bytes + max_model_len.div_ceil(block_size) * full_page_bytes;
        let shortage = match (after_weights, after_workspace) {
            (None, _) => Some(Shortage::Weights { needed_bytes: weight_bytes, available_bytes: free }),
            (Some(left), None) => {
                Some(Shortage::Workspace { needed_bytes: workspace_bytes, available_bytes: left })
            }
            (Some(_), Some(left)) => (left < longest).then_some(Shortage::Kv {
                needed_bytes: longest,
                available_bytes: left,
                num_tokens: max_model_len,
            }),
        };
        Fit {
            device_memory_bytes,
            kv_cache_bytes: left,
            longest_sequence_bytes: longest,
            num_kv_tokens: left
                .saturating_sub(sliding_bytes)
                .checked_div(full_page_bytes)
                .map(|pages| pages * block_size),
            shortage,
        }
    }
}

/// What a rank needs beside its weights.
#[derive(Clone, Debug)]
pub(super) struct Need {
    /// Activations and logits of the largest step.
    pub(super) workspace_bytes: u64,
    /// Bytes of one head's keys and values of a block, in one layer.
    head_block_bytes: u64,
    block_size: u64,
    num_full_layers: u64,
    /// Blocks of all sliding layers that one sequence holds at most.
    sliding_blocks: u64,
    max_model_len: u64,
}

impl Need {
    pub(super) fn new(
        config: &ModelConfig,
        options: &BudgetOptions,
        max_model_len: usize,
    ) -> Result<Self, BudgetError> {
        let block_size = options.kv_block_size.max(1) as u64;
        let length = max_model_len as u64;
        // While a slice is computed, its own tokens lie in the pages beside the
        // window before it, and neither end need meet a page's edge.
        let sliding_blocks = config.windows.iter().flatten().map(|window| {
            let span = u64::from(*window) + options.max_batch_tokens as u64;
            (span.div_ceil(block_size) + 1).min(length.div_ceil(block_size))
        });
        let need = Self {
            workspace_bytes: workspace_bytes(config, options.max_batch_tokens)
                .ok_or(BudgetError::TooLarge)?,
            head_block_bytes: layer_bytes_per_token(config, options.kv_dtype, 1).saturating_mul(block_size),
            block_size,
            num_full_layers: config.windows.iter().filter(|window| window.is_none()).count() as u64,
            sliding_blocks: sliding_blocks.sum(),
            max_model_len: length,
        };
        let blocks = length.div_ceil(block_size).checked_mul(need.num_full_layers);
        blocks
            .and_then(|blocks| blocks.checked_add(need.sliding_blocks))
            .and_then(|blocks| blocks.checked_mul(need.head_block_bytes))
            .and_then(|bytes| bytes.checked_mul(config.num_key_value_heads as u64))
            .ok_or(BudgetError::TooLarge)?;
        Ok(need)
    }

    /// What a rank takes that holds such weights, and so many heads of each page.
    pub(super) fn of_rank(&self, weight_bytes: u64, num_kv_heads: usize) -> Demand {
        let block = self.head_block_bytes * num_kv_heads as u64;
        Demand {
            weight_bytes,
            workspace_bytes: self.workspace_bytes,
            sliding_bytes: self.sliding_blocks * block,
            full_page_bytes: self.num_full_layers * block,
            block_size: self.block_size,
            max_model_len: self.max_model_len,
        }
    }
}

/// Bytes of a number of the activations.
const ACTIVATION_BYTES: u64 = 4;

/// What a step of `rows` rows computes into: the residual, its norm, queries,
/// attention's context and its projection, the experts' outputs before they are
/// combined, routes, and the logits of the largest decode batch.
fn workspace_bytes(config: &ModelConfig, rows: usize) -> Option<u64> {
    let context = config.num_attention_heads.checked_mul(config.head_dim)?;
    let outputs = config.experts_per_token.checked_mul(config.hidden_size)?;
    let widths = [config.hidden_size.checked_mul(3)?, context.checked_mul(2)?, outputs, config.num_experts];
    let row = widths.iter().try_fold(0_usize, |sum, width| sum.checked_add(*width))?;
    let logit_rows = BATCH_SIZES.iter().fold(1, |largest, size| largest.max(*size)).min(rows.max(1));
    let logits = config.vocab_size.checked_mul(logit_rows)?;
    (row.checked_mul(rows)?.checked_add(logits)? as u64).checked_mul(ACTIVATION_BYTES)
}

/// The smallest world in which every rank fits.
pub(super) fn ranks_needed(table: &Table, config: &ModelConfig, need: &Need, memory: u64) -> RanksNeeded {
    let shortage_in = |world: World| {
        Ok::<_, Infallible>((0..world.num_ranks()).find_map(|rank| {
            let place = Place::new(rank, world);
            let heads = place.of_group(config.num_key_value_heads).len();
            need.of_rank(table.bytes_held(place).total(), heads).fit(memory, 0).shortage
        }))
    };
    let Ok(needed) = RanksNeeded::find(config, shortage_in);
    needed
}
