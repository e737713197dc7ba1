//! The one table of tensors that every figure of a budget is summed from. It
//! knows sizes and splits; names serve as comments, files are read elsewhere.

use super::{BudgetError, World};
use crate::config::ModelConfig;
use crate::shard::{ShardSpec, Split, split};
use chorale_device::DenseDtype;
use serde::Serialize;
use std::ops::Range;

/// A part of the model that a budget states on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The table of token embeddings.
    Embedding,
    /// The matrices of q, k, v and o.
    Attention,
    /// The routers' matrices.
    Router,
    /// MXFP4 blocks and scales, and the experts' bf16 biases.
    Experts,
    /// Norms, sinks, and the biases of attention and routers.
    Vectors,
    /// The output matrix; nothing where it is the embedding table.
    Head,
}

impl Part {
    /// All parts, in the order in which a token meets them.
    pub const ALL: [Self; 6] =
        [Self::Embedding, Self::Attention, Self::Router, Self::Experts, Self::Vectors, Self::Head];
}

/// A figure for each part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ByPart {
    /// See [`Part::Embedding`].
    pub embedding: u64,
    /// See [`Part::Attention`].
    pub attention: u64,
    /// See [`Part::Router`].
    pub router: u64,
    /// See [`Part::Experts`].
    pub experts: u64,
    /// See [`Part::Vectors`].
    pub vectors: u64,
    /// See [`Part::Head`].
    pub head: u64,
}

impl ByPart {
    /// The sum of all parts.
    pub fn total(&self) -> u64 {
        Part::ALL.iter().map(|part| self.get(*part)).sum()
    }

    /// One part's figure.
    pub fn get(&self, part: Part) -> u64 {
        match part {
            Part::Embedding => self.embedding,
            Part::Attention => self.attention,
            Part::Router => self.router,
            Part::Experts => self.experts,
            Part::Vectors => self.vectors,
            Part::Head => self.head,
        }
    }

    fn add(&mut self, part: Part, amount: u64) {
        let figure = match part {
            Part::Embedding => &mut self.embedding,
            Part::Attention => &mut self.attention,
            Part::Router => &mut self.router,
            Part::Experts => &mut self.experts,
            Part::Vectors => &mut self.vectors,
            Part::Head => &mut self.head,
        };
        *figure += amount;
    }
}

/// Who holds which units of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holders {
    /// Every rank holds all.
    Everywhere,
    /// The ranks of a group hold a run of units each; every group holds all.
    Group,
    /// The ranks of the world hold a run of units each.
    World,
}

/// A tensor that occurs `copies` times, cut in units that are never split.
#[derive(Clone, Copy, Debug)]
struct Tensor {
    part: Part,
    holders: Holders,
    copies: u64,
    units: u64,
    parameters_per_unit: u64,
    /// As ranks keep it.
    bytes_per_unit: u64,
}

/// Where a rank stands in the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    rank: usize,
    world: World,
}

impl Place {
    pub(super) fn new(rank: usize, world: World) -> Self {
        debug_assert!(rank < world.num_ranks());
        Self { rank, world }
    }

    /// The rank's group.
    pub(super) fn group(self) -> usize {
        self.rank / self.world.tensor_parallel_size
    }

    /// This rank's run of what a group splits.
    pub(super) fn of_group(self, units: usize) -> Range<usize> {
        self.split().range(units)
    }

    /// This rank's run of what the world splits.
    pub(super) fn of_world(self, units: usize) -> Range<usize> {
        split(units, self.world.num_ranks(), self.rank)
    }

    /// What the rank asks a checkpoint for.
    pub(super) fn spec(self, config: &ModelConfig) -> ShardSpec {
        let experts: Vec<u32> = self.of_world(config.num_experts).map(|expert| expert as u32).collect();
        ShardSpec {
            group: self.split(),
            experts: vec![experts; config.num_layers()],
            attention: true,
            dense_dtype: DenseDtype::Bf16,
        }
    }

    fn split(self) -> Split {
        let count = self.world.tensor_parallel_size;
        Split { index: self.rank % count, count }
    }
}

/// All tensors of a model. Its sums were checked to fit 64 bits.
#[derive(Clone, Debug)]
pub(super) struct Table {
    tensors: Vec<Tensor>,
    num_experts: u64,
    experts_per_token: u64,
    /// Bytes of a row of the output matrix where that is the embedding table.
    tied_head_row: Option<u64>,
}

impl Table {
    pub(super) fn new(config: &ModelConfig, dense_dtype: DenseDtype) -> Result<Self, BudgetError> {
        let tensors = tensors(config, dense_dtype).ok_or(BudgetError::TooLarge)?;
        let mut total = 0_u64;
        for tensor in &tensors {
            let bytes = product(&[tensor.copies, tensor.units, tensor.bytes_per_unit]);
            let parameters = product(&[tensor.copies, tensor.units, tensor.parameters_per_unit]);
            let larger = bytes.zip(parameters).map(|(bytes, parameters)| bytes.max(parameters));
            total = larger.and_then(|amount| total.checked_add(amount)).ok_or(BudgetError::TooLarge)?;
        }
        Ok(Self {
            tensors,
            num_experts: config.num_experts as u64,
            experts_per_token: config.experts_per_token as u64,
            tied_head_row: match config.tie_word_embeddings {
                true => Some(row_bytes(dense_dtype, config.hidden_size).ok_or(BudgetError::TooLarge)?),
                false => None,
            },
        })
    }

    /// Parameters of the checkpoint.
    pub(super) fn parameters(&self) -> ByPart {
        self.sum(|tensor| tensor.copies * tensor.units * tensor.parameters_per_unit)
    }

    /// Bytes of all tensors, each once.
    pub(super) fn bytes(&self) -> ByPart {
        self.sum(|tensor| tensor.copies * tensor.units * tensor.bytes_per_unit)
    }

    /// Bytes that a rank holds. A tied output matrix counts beside the table
    /// that it is a view of, for a device packs the two in different ways.
    pub(super) fn bytes_held(&self, place: Place) -> ByPart {
        let mut held = self.sum(|tensor| {
            let units = tensor.units as usize;
            let held = match tensor.holders {
                Holders::Everywhere => units,
                Holders::Group => place.of_group(units).len(),
                Holders::World => place.of_world(units).len(),
            };
            tensor.copies * held as u64 * tensor.bytes_per_unit
        });
        if let Some(row_bytes) = self.tied_head_row {
            let tables = self.tensors.iter().filter(|tensor| tensor.part == Part::Embedding);
            held.head += tables
                .map(|table| place.of_group(table.units as usize).len() as u64 * row_bytes)
                .sum::<u64>();
        }
        held
    }

    /// Parameters that one token meets.
    pub(super) fn active_parameters(&self) -> u64 {
        let all = self.parameters();
        let chosen = all.experts / self.num_experts * self.experts_per_token;
        let head = if self.tied_head_row.is_some() { all.embedding } else { all.head };
        all.attention + all.router + chosen + all.vectors + head
    }

    /// Bytes of one row of the embedding table.
    pub(super) fn embedding_row_bytes(&self) -> u64 {
        self.tensors
            .iter()
            .filter(|tensor| tensor.part == Part::Embedding)
            .map(|tensor| tensor.bytes_per_unit)
            .sum()
    }

    fn sum(&self, amount: impl Fn(&Tensor) -> u64) -> ByPart {
        let mut sum = ByPart::default();
        for tensor in &self.tensors {
            sum.add(tensor.part, amount(tensor));
        }
        sum
    }
}

/// Bytes of a bf16 number.
const BF16: u64 = 2;
/// Elements that share one byte of scale.
const MXFP4_BLOCK: u64 = 32;

/// Bytes of a row of dense weights; `None` where they overflow.
fn row_bytes(dtype: DenseDtype, cols: usize) -> Option<u64> {
    cols.checked_mul(BF16 as usize)?.checked_add(size_of::<f32>())?;
    Some(dtype.row_bytes(cols) as u64)
}

/// The table itself; `None` where a product overflows.
fn tensors(config: &ModelConfig, dense_dtype: DenseDtype) -> Option<Vec<Tensor>> {
    let layers = config.windows.len() as u64;
    let hidden = config.hidden_size as u64;
    let kv_heads = config.num_key_value_heads as u64;
    let queries_per_kv_head = (config.num_attention_heads as u64).checked_div(kv_heads)?;
    let head_dim = config.head_dim as u64;
    let context = config.num_attention_heads.checked_mul(config.head_dim)?;
    let num_experts = config.num_experts as u64;
    let vocabulary = config.vocab_size as u64;
    let gate_up = config.intermediate_size.checked_mul(2)? as u64;

    // Keys, values and the queries that read them stay together on a rank, so
    // a unit of what attention takes in is a key/value head.
    let qkv_rows = product(&[queries_per_kv_head.checked_add(2)?, head_dim])?;
    let dense = |part, holders, copies, units, per_unit: u64| {
        let bytes_per_unit = per_unit.checked_mul(BF16)?;
        Some(Tensor { part, holders, copies, units, parameters_per_unit: per_unit, bytes_per_unit })
    };
    // What is multiplied with `rows` for each unit.
    let product_of = |part, copies, units, rows: u64, cols: usize| {
        let parameters_per_unit = product(&[rows, cols as u64])?;
        let bytes_per_unit = product(&[rows, row_bytes(dense_dtype, cols)?])?;
        Some(Tensor { part, holders: Holders::Group, copies, units, parameters_per_unit, bytes_per_unit })
    };
    let mxfp4 = |rows: u64, cols: u64| {
        let weights = product(&[rows, cols])?;
        let parameters_per_unit = weights.checked_add(rows)?;
        let bytes_per_unit = (weights / 2 + weights / MXFP4_BLOCK).checked_add(product(&[rows, BF16])?)?;
        let (part, holders) = (Part::Experts, Holders::World);
        Some(Tensor {
            part,
            holders,
            copies: layers,
            units: num_experts,
            parameters_per_unit,
            bytes_per_unit,
        })
    };

    let mut tensors = vec![
        // model.embed_tokens
        dense(Part::Embedding, Holders::Everywhere, 1, vocabulary, hidden)?,
        // q_proj, k_proj, v_proj
        product_of(Part::Attention, layers, kv_heads, qkv_rows, config.hidden_size)?,
        // o_proj, by output rows
        product_of(Part::Attention, layers, hidden, 1, context)?,
        // sinks, one for each query head
        dense(Part::Vectors, Holders::Group, layers, kv_heads, queries_per_kv_head)?,
        // input_layernorm, post_attention_layernorm
        dense(Part::Vectors, Holders::Everywhere, layers.checked_mul(2)?, 1, hidden)?,
        // mlp.router
        dense(Part::Router, Holders::Everywhere, layers, 1, product(&[num_experts, hidden])?)?,
        dense(Part::Vectors, Holders::Everywhere, layers, 1, num_experts)?,
        // mlp.experts.gate_up_proj, down_proj
        mxfp4(gate_up, hidden)?,
        mxfp4(hidden, config.intermediate_size as u64)?,
        // model.norm
        dense(Part::Vectors, Holders::Everywhere, 1, 1, hidden)?,
    ];
    if config.attention_bias {
        tensors.push(dense(Part::Vectors, Holders::Group, layers, kv_heads, qkv_rows)?);
        tensors.push(dense(Part::Vectors, Holders::Group, layers, hidden, 1)?);
    }
    if !config.tie_word_embeddings {
        // lm_head, by vocabulary rows
        tensors.push(product_of(Part::Head, 1, vocabulary, 1, config.hidden_size)?);
    }
    Some(tensors)
}

fn product(factors: &[u64]) -> Option<u64> {
    factors.iter().try_fold(1_u64, |product, factor| product.checked_mul(*factor))
}
