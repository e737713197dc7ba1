//! What a model costs: parameters, bytes on every rank, KV cache, and the least
//! that a decode step must read. Pure arithmetic on a [`ModelConfig`]; no file
//! is opened and no device asked.
//!
//! Everything is summed from one table of tensors (`tensors`), which says for
//! each how many bytes it has and how it is split, so the figures are those of
//! the checkpoint, block scales included, and not an estimate.

mod fit;
mod floor;
mod kv;
mod ranks;
mod tensors;

pub use fit::{Demand, Fit, RanksNeeded, Shortage};
pub use floor::{BATCH_SIZES, StepFloor};
pub use kv::KvBudget;
pub use ranks::{RankBudget, num_kv_tokens};
pub use tensors::{ByPart, Part};

use crate::config::ModelConfig;
use crate::shard::ShardSpec;
use chorale_device::{DenseDtype, KvDtype};
use serde::Serialize;
use tensors::{Place, Table};

/// All ranks, and how they form groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct World {
    /// Ranks of a group: they split the attention of its sequences.
    pub tensor_parallel_size: usize,
    /// Groups; the experts are spread over all ranks of all of them.
    pub data_parallel_size: usize,
}

impl World {
    /// All ranks of all groups.
    pub fn num_ranks(self) -> usize {
        self.tensor_parallel_size * self.data_parallel_size
    }

    /// What a rank asks a checkpoint for: its heads of its group's attention,
    /// and its run of the experts.
    pub fn shard(self, rank: usize, config: &ModelConfig, dense_dtype: DenseDtype) -> ShardSpec {
        ShardSpec { dense_dtype, ..Place::new(rank, self).spec(config) }
    }
}

/// What to budget for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BudgetOptions {
    /// How many ranks, in which groups.
    pub world: World,
    /// What the attention's matrices and the output matrix are kept in.
    pub dense_dtype: DenseDtype,
    /// The type of cached keys and values.
    pub kv_dtype: KvDtype,
    /// Positions of a KV page.
    pub kv_block_size: usize,
    /// The longest sequence that must fit; the model's own limit if `None`.
    pub max_model_len: Option<usize>,
    /// Rows of the largest step: decides the workspace.
    pub max_batch_tokens: usize,
    /// Memory of each rank's device.
    pub device_memory_bytes: Option<u64>,
    /// What each rank's memory delivers.
    pub memory_bandwidth_bytes_per_s: Option<f64>,
    /// Cached tokens that each sequence of a decode step reads.
    pub context_tokens: usize,
}

/// Why there is no budget.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BudgetError {
    /// The model cannot be split into such groups.
    #[error(
        "tensor parallel size {tensor_parallel_size} is more than the model's {num_kv_heads} key/value heads: \
         attention is split by whole heads, so use at most {num_kv_heads}, and more groups instead"
    )]
    GroupTooLarge {
        /// What was asked for.
        tensor_parallel_size: usize,
        /// The most that it can be.
        num_kv_heads: usize,
    },
    /// A world without ranks.
    #[error("tensor and data parallel size must be 1 or more")]
    NoRanks,
    /// The configuration's sizes, multiplied, leave the range of 64 bits.
    #[error("the model's sizes are too large to be multiplied")]
    TooLarge,
    /// A sequence longer than the model's positions.
    #[error(
        "a sequence of {max_model_len} tokens is longer than the model's {max_position_embeddings} positions: use at most as many"
    )]
    TooLong {
        /// What was asked for.
        max_model_len: usize,
        /// The most that it can be.
        max_position_embeddings: usize,
    },
}

/// What a model costs in a given world.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Budget {
    /// The world that the figures hold for.
    pub world: World,
    /// Weights and biases; MXFP4 scales are none.
    pub parameters: Parameters,
    /// What dense weights are kept in.
    #[serde(serialize_with = "dense_name")]
    pub dense_dtype: DenseDtype,
    /// Bytes of the checkpoint's tensors, as ranks keep them.
    pub weight_bytes: Sum,
    /// Keys and values of a whole sequence, over all ranks of its group.
    pub kv: KvBudget,
    /// The longest sequence that must fit.
    pub max_model_len: usize,
    /// What each rank holds, in rank order.
    pub ranks: Vec<RankBudget>,
    /// Tokens of full layers that all groups' pages hold, if device memory was
    /// given. A group holds what the fullest of its ranks has room for.
    pub num_kv_tokens: Option<u64>,
    /// The smallest world that fits, if device memory was given.
    pub ranks_needed: Option<RanksNeeded>,
    /// What decode steps must read, by batch size.
    pub decode: Vec<StepFloor>,
}

/// How many parameters, and how many of them one token meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Parameters {
    /// In the checkpoint.
    pub total: u64,
    /// Read for one token: its experts, and of the embedding nothing but a row
    /// (which is not counted).
    pub active: u64,
    /// The total by part.
    pub by_part: ByPart,
}

/// A total and its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Sum {
    /// All parts.
    pub total: u64,
    /// The same by part.
    pub by_part: ByPart,
}

impl From<ByPart> for Sum {
    fn from(by_part: ByPart) -> Self {
        Self { total: by_part.total(), by_part }
    }
}

impl Budget {
    /// Works out what `config` costs.
    pub fn new(config: &ModelConfig, options: &BudgetOptions) -> Result<Self, BudgetError> {
        let World { tensor_parallel_size, data_parallel_size } = options.world;
        if tensor_parallel_size == 0 || data_parallel_size == 0 {
            return Err(BudgetError::NoRanks);
        }
        if tensor_parallel_size > config.num_key_value_heads {
            return Err(BudgetError::GroupTooLarge {
                tensor_parallel_size,
                num_kv_heads: config.num_key_value_heads,
            });
        }
        let max_model_len = options.max_model_len.unwrap_or(config.max_position_embeddings);
        if max_model_len > config.max_position_embeddings {
            return Err(BudgetError::TooLong {
                max_model_len,
                max_position_embeddings: config.max_position_embeddings,
            });
        }

        let table = Table::new(config, options.dense_dtype)?;
        let need = fit::Need::new(config, options, max_model_len)?;
        let ranks = ranks::ranks(&table, config, options, &need);
        let decode = floor::floors(&table, config, options);
        let ranks_needed =
            options.device_memory_bytes.map(|memory| fit::ranks_needed(&table, config, &need, memory));
        Ok(Self {
            world: options.world,
            parameters: Parameters {
                total: table.parameters().total(),
                active: table.active_parameters(),
                by_part: table.parameters(),
            },
            dense_dtype: options.dense_dtype,
            weight_bytes: table.bytes().into(),
            kv: KvBudget::new(config, options.kv_dtype, config.num_key_value_heads),
            max_model_len,
            num_kv_tokens: ranks::num_kv_tokens(&ranks),
            ranks,
            ranks_needed,
            decode,
        })
    }

    /// The least that a decode step of any batch size reads.
    pub fn step_floor(
        config: &ModelConfig,
        options: &BudgetOptions,
        batch_size: usize,
    ) -> Result<StepFloor, BudgetError> {
        Ok(floor::floor(&Table::new(config, options.dense_dtype)?, config, options, batch_size))
    }
}

/// A type by its word in settings.
fn dense_name<S: serde::Serializer>(dtype: &DenseDtype, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(dtype.name())
}

#[cfg(test)]
mod tests;
