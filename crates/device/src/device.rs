//! The contract: what the layer loop asks of an accelerator.
//!
//! Operations are cut where fast kernels want them: QKV with RoPE and the KV
//! write, experts with SwiGLU, a combine that adds the residual and norms for
//! the next block. A device may run them asynchronously on a stream of its
//! own: only `write`, `read`, `read_routing` and what `fetch_samples` gives wait.

use crate::columns::Columns;
use crate::dtype::{DenseDtype, KvDtype};
use crate::rope::RopeParams;
use crate::weights::{DenseSource, ExpertsSource};
use bytes::Bytes;

/// An accelerator.
///
/// Buffers are made once, with room for the largest step; each step then sets
/// their number of rows, which may be none. Misshapen arguments are the caller's mistake and
/// panic; what the hardware refuses is an `Error`.
pub trait Device: Send + Sized {
    /// What the hardware refuses.
    type Error: std::error::Error + Send + Sync + 'static;
    /// Activations `[rows, cols]` in the device's own type.
    type Matrix: Send + Sync;
    /// A dense matrix with its bias, packed for this device.
    type Linear: Send + Sync;
    /// A table of rows to look up.
    type Embedding: Send + Sync;
    /// The gain of an RMSNorm, with its epsilon.
    type Norm: Send + Sync;
    /// One sink logit for each query head.
    type Sinks: Send + Sync;
    /// The MXFP4 experts of one layer, packed for this device.
    type Experts: Send + Sync;
    /// Paged keys and values of all layers.
    type KvCache: Send + Sync;
    /// One step's [`Columns`], on the device.
    type Batch: Send + Sync;
    /// The chosen experts of each row, with their weights.
    type Routing: Send + Sync;
    /// Rows grouped by local expert.
    type Groups: Send + Sync;
    /// Drawn tokens.
    type Samples: Send + Sync;

    /// In what it can keep keys and values; by default, as the first says.
    const KV_DTYPES: &[KvDtype];

    /// Packs a dense matrix in numbers of a type.
    fn linear(&mut self, source: DenseSource, dtype: DenseDtype) -> Result<Self::Linear, Self::Error>;
    /// Packs an embedding table.
    fn embedding(&mut self, source: DenseSource) -> Result<Self::Embedding, Self::Error>;
    /// Packs a norm's bf16 gain.
    fn norm(&mut self, gain: Bytes, eps: f32) -> Result<Self::Norm, Self::Error>;
    /// Packs bf16 sink logits.
    fn sinks(&mut self, logits: Bytes) -> Result<Self::Sinks, Self::Error>;
    /// Packs the experts of a layer, perhaps none. Weights stay MXFP4.
    fn experts(&mut self, source: ExpertsSource) -> Result<Self::Experts, Self::Error>;
    /// The experts of a layer anew, in another order and with others: those
    /// that are held are not packed again, and stay usable through `held`.
    fn regroup_experts(
        &mut self,
        held: &Self::Experts,
        order: &[ExpertOrigin],
        added: ExpertsSource,
    ) -> Result<Self::Experts, Self::Error>;

    /// Room for activations; no rows yet.
    fn matrix(
        &mut self,
        max_rows: usize,
        cols: usize,
        precision: Precision,
    ) -> Result<Self::Matrix, Self::Error>;
    /// Room for keys and values, of a type that [`Self::KV_DTYPES`] names.
    fn kv_cache(&mut self, shape: &KvShape) -> Result<Self::KvCache, Self::Error>;
    /// Room for a step's columns: with the rotary embedding that its positions
    /// take, and for pages of a cache of the shape `kv`.
    fn batch(
        &mut self,
        limits: BatchLimits,
        rope: &RopeParams,
        kv: &KvShape,
    ) -> Result<Self::Batch, Self::Error>;
    /// Room for routes; no rows yet.
    fn routing(&mut self, max_rows: usize, top_k: usize) -> Result<Self::Routing, Self::Error>;
    /// Room for rows grouped by the experts named in `local`, in that order.
    fn groups(&mut self, local: &[u32]) -> Result<Self::Groups, Self::Error>;
    /// Room for drawn tokens.
    fn samples(&mut self, max_rows: usize) -> Result<Self::Samples, Self::Error>;
    /// Makes room for whatever else steps of this size need, so that they find it and
    /// none asks for memory. Nothing to do where memory is got when it is needed.
    fn reserve(&mut self, _needs: &Needs<'_>) -> Result<(), Self::Error> {
        Ok(())
    }

    /// Whether experts take what memory is left when they are loaded: then all else
    /// is to be made first.
    fn fills_memory(&self) -> bool {
        false
    }

    /// True once the device has failed in a way that only a new process mends: all
    /// that is asked of it from then on fails.
    fn is_lost(&self) -> bool {
        false
    }

    /// Runs `run` where the device's operations are called with the least
    /// delay: on its own threads, or with its context bound.
    fn enter<R: Send>(&mut self, run: impl FnOnce(&mut Self) -> R + Send) -> R;
    /// Starts a step: copies its columns to the device. Tokens that the step
    /// before sampled are taken from `before`.
    fn begin(
        &mut self,
        columns: &Columns,
        before: &Self::Samples,
        batch: &mut Self::Batch,
    ) -> Result<(), Self::Error>;
    /// `hidden[r] = table[token[r]]`.
    fn embed(
        &mut self,
        table: &Self::Embedding,
        batch: &Self::Batch,
        hidden: &mut Self::Matrix,
    ) -> Result<(), Self::Error>;
    /// `normed[r] = hidden[r] / rms(hidden[r]) * gain`, in f32.
    fn rms_norm(
        &mut self,
        hidden: &Self::Matrix,
        norm: &Self::Norm,
        normed: &mut Self::Matrix,
    ) -> Result<(), Self::Error>;
    /// Projects to queries, keys and values (the rows of `weights` in that
    /// order), rotates queries and keys, and writes keys and values to the
    /// pages of the layer. `queries` is `[rows, heads * head_dim]`.
    fn qkv(
        &mut self,
        normed: &Self::Matrix,
        weights: &Self::Linear,
        batch: &Self::Batch,
        cache: &mut Self::KvCache,
        layer: usize,
        queries: &mut Self::Matrix,
    ) -> Result<(), Self::Error>;
    /// Causal attention over the layer's pages, scaled by `1 / sqrt(head_dim)`,
    /// within the layer's window if it has one. The head's sink joins the
    /// softmax's denominator, unscaled and without a value.
    fn attention(
        &mut self,
        queries: &Self::Matrix,
        sinks: &Self::Sinks,
        batch: &Self::Batch,
        cache: &Self::KvCache,
        layer: usize,
        context: &mut Self::Matrix,
    ) -> Result<(), Self::Error>;
    /// `out[r] = weights * rows[r] + bias`.
    fn project(
        &mut self,
        rows: &Self::Matrix,
        weights: &Self::Linear,
        out: &mut Self::Matrix,
    ) -> Result<(), Self::Error>;
    /// `hidden += delta`, then norms `hidden` into `normed`.
    fn add_rms_norm(
        &mut self,
        delta: &Self::Matrix,
        norm: &Self::Norm,
        hidden: &mut Self::Matrix,
        normed: &mut Self::Matrix,
    ) -> Result<(), Self::Error>;
    /// Chooses each row's experts: the largest router logits in descending
    /// order (the lowest number among equals), softmax over the chosen.
    fn route(
        &mut self,
        normed: &Self::Matrix,
        router: &Self::Linear,
        routing: &mut Self::Routing,
    ) -> Result<(), Self::Error>;
    /// Groups routed rows by local expert, in row order; rows that went to
    /// other experts are left out. Row `r`'s `j`-th choice has slot `r * top_k + j`.
    fn group(&mut self, routing: &Self::Routing, groups: &mut Self::Groups) -> Result<(), Self::Error>;
    /// Groups rows by local expert as an explicit list says: choice `i` has
    /// slot `i`. Every expert of the list is a local one.
    fn group_choices(&mut self, choices: &[Choice], groups: &mut Self::Groups) -> Result<(), Self::Error>;
    /// Runs each grouped row through its expert: gate and up, clamped SwiGLU,
    /// down with bias. `outputs[slot]` is the expert's output, unweighted.
    fn run_experts(
        &mut self,
        rows: &Self::Matrix,
        groups: &Self::Groups,
        experts: &Self::Experts,
        outputs: &mut Self::Matrix,
    ) -> Result<(), Self::Error>;
    /// `hidden[r] += sum over j of weight[r, j] * outputs[r * top_k + j]`, added
    /// in the order of the choices, then norms `hidden` into `normed`.
    fn combine_rms_norm(
        &mut self,
        outputs: &Self::Matrix,
        routing: &Self::Routing,
        norm: &Self::Norm,
        hidden: &mut Self::Matrix,
        normed: &mut Self::Matrix,
    ) -> Result<(), Self::Error>;
    /// Logits of the batch's `logit_rows`.
    fn lm_head(
        &mut self,
        normed: &Self::Matrix,
        weights: &Self::Linear,
        batch: &Self::Batch,
        logits: &mut Self::Matrix,
    ) -> Result<(), Self::Error>;
    /// Draws a token from each row of logits, as the batch's draws say.
    fn sample(
        &mut self,
        logits: &Self::Matrix,
        batch: &Self::Batch,
        samples: &mut Self::Samples,
    ) -> Result<(), Self::Error>;

    /// Sets a matrix, number of rows and all, from row-major f32 of the host.
    fn write(&mut self, values: &[f32], matrix: &mut Self::Matrix) -> Result<(), Self::Error>;
    /// Waits, and copies activations to the host as f32, row-major.
    fn read(&mut self, matrix: &Self::Matrix) -> Result<Vec<f32>, Self::Error>;
    /// Waits, and copies each row's choices to the host.
    fn read_routing(&mut self, routing: &Self::Routing) -> Result<Vec<Vec<Routed>>, Self::Error>;
    /// Starts to copy drawn tokens to the host. What is drawn into `samples`
    /// later does not change what arrives.
    fn fetch_samples(&mut self, samples: &Self::Samples) -> Result<Fetched<Self::Error>, Self::Error>;
}

/// How exactly activations are kept. Operations name it for each of their
/// matrices by what they are: `hidden` and `logits` are [`Precision::Full`],
/// all others [`Precision::Half`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// In 32 bits: what is added to layer by layer, and what is drawn from.
    Full,
    /// In 16 bits, where the device likes it: what matrices are multiplied with.
    Half,
}

/// Drawn tokens, here or on their way to the host.
pub enum Fetched<E> {
    /// The device has them at hand.
    Here(Vec<Drawn>),
    /// Waits for them, on any thread.
    Coming(Box<dyn FnOnce() -> Result<Vec<Drawn>, E> + Send>),
}

impl<E> Fetched<E> {
    /// The tokens, waited for if need be.
    pub fn wait(self) -> Result<Vec<Drawn>, E> {
        match self {
            Self::Here(drawn) => Ok(drawn),
            Self::Coming(wait) => wait(),
        }
    }
}

/// The largest step that buffers have room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    /// Rows of a step.
    pub max_rows: usize,
    /// Sequences in a step.
    pub max_slices: usize,
    /// Rows of logits in a step.
    pub max_logit_rows: usize,
}

/// The most that is asked of a device in a step.
#[derive(Clone, Copy, Debug)]
pub struct Needs<'a> {
    /// The largest step of the rank's own rows.
    pub limits: BatchLimits,
    /// The pages of its cache.
    pub kv: &'a KvShape,
    /// Width of the residual.
    pub hidden_size: usize,
    /// Width between an expert's matrices.
    pub intermediate_size: usize,
    /// Experts of a layer.
    pub num_experts: usize,
    /// Choices that may come to the rank's experts at a time.
    pub num_choices: usize,
    /// Tokens that there are.
    pub vocab_size: usize,
}

/// The pages of a rank's KV cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// For each layer its window: how many keys a query sees, its own
    /// included. `None` sees all.
    pub windows: Vec<Option<u32>>,
    /// Query heads on this rank; consecutive ones share a key and value head.
    pub num_query_heads: usize,
    /// Key and value heads on this rank.
    pub num_kv_heads: usize,
    /// Width of a head, even.
    pub head_dim: usize,
    /// What keys and values are kept in.
    pub dtype: KvDtype,
    /// Positions of a page.
    pub block_size: usize,
    /// Pages of each layer without a window.
    pub num_full_blocks: usize,
    /// Pages of each layer with one.
    pub num_sliding_blocks: usize,
}

/// One choice of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Routed {
    /// The expert's number in the model.
    pub expert: u32,
    /// Its weight; a row's weights sum to 1.
    pub weight: f32,
}

/// A row and an expert that it goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The row.
    pub row: u32,
    /// The expert's number in the model.
    pub expert: u32,
}

/// Where an expert of a regrouped layer comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpertOrigin {
    /// It is held, under this local index.
    Held(usize),
    /// It is added: the index into the source.
    Added(usize),
}

/// A drawn token.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawn {
    /// The token.
    pub token: u32,
    /// Its natural log-probability under the untouched logits, if asked for.
    pub logprob: Option<f32>,
    /// The most probable tokens with theirs, best first.
    pub top_logprobs: Vec<(u32, f32)>,
}
