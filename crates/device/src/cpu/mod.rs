//! The portable device: every operation in plain Rust, on threads.
//!
//! Written to be read; it is the oracle for all faster implementations. It
//! computes in f32 from the checkpoint's own bytes, and each row's result is
//! the same bits whatever else is in the batch and however its sequence is cut
//! into slices: what is an option of GPUs holds here always.

mod attention;
mod experts;
mod kv_cache;
mod lanes;
mod matmul;
mod rope;
mod route;
mod sample;
mod weights;

use crate::columns::Columns;
use crate::device::{BatchLimits, Choice, Device, Drawn, ExpertOrigin, Fetched, KvShape, Precision, Routed};
use crate::dtype::{DenseDtype, KvDtype};
use crate::rope::RopeParams;
use crate::weights::{DenseSource, ExpertsSource};
use attention::Attention;
use bytes::Bytes;
use kv_cache::KvCache;
use lanes::Inputs;
use rayon::prelude::*;
use rope::Rope;
use route::{Groups, Routing};
use std::num::NonZeroUsize;
use std::sync::Arc;
use weights::{Experts, Linear};

/// What the host refuses.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// There is not enough memory; ask for less.
    #[error("{bytes} bytes of memory could not be had")]
    OutOfMemory {
        /// How much was asked for at once.
        bytes: usize,
    },
    /// The operating system gives no more threads.
    #[error("{count} threads could not be started: {source}")]
    Threads {
        /// How many were asked for.
        count: usize,
        /// Why.
        source: rayon::ThreadPoolBuildError,
    },
}

/// The host's processors.
pub struct Cpu {
    pool: Arc<rayon::ThreadPool>,
    products: Vec<f32>,
    projected: Vec<f32>,
    experts: experts::Scratch,
}

impl Cpu {
    /// A device with its own threads; `None` takes one for each processor.
    pub fn new(num_threads: Option<NonZeroUsize>) -> Result<Self, CpuError> {
        let available = || std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let count = num_threads.unwrap_or_else(available).get();
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(count)
            .thread_name(|index| format!("cpu-{index}"))
            .build()
            .map_err(|source| CpuError::Threads { count, source })?;
        let experts = experts::Scratch::default();
        Ok(Self { pool: Arc::new(pool), products: Vec::new(), projected: Vec::new(), experts })
    }

    /// How many threads compute.
    pub fn num_threads(&self) -> usize {
        self.pool.current_num_threads()
    }
}

/// Activations `[rows, cols]` in f32.
#[derive(Debug)]
pub struct Matrix {
    cols: usize,
    max_rows: usize,
    values: Vec<f32>,
}

impl Matrix {
    /// Sets the number of rows; what they hold is to be overwritten.
    fn set_rows(&mut self, rows: usize) -> &mut [f32] {
        assert!(rows <= self.max_rows, "{rows} rows in a matrix for {}", self.max_rows);
        self.values.resize(rows * self.cols, 0.0);
        &mut self.values
    }

    fn inputs(&self) -> Inputs<'_> {
        Inputs { values: &self.values, cols: self.cols, picked: None }
    }

    fn num_rows(&self) -> usize {
        self.values.len() / self.cols
    }
}

/// The gain of an RMSNorm.
#[derive(Debug)]
pub struct Norm {
    gain: Vec<f32>,
    eps: f32,
}

/// One step's columns.
#[derive(Debug)]
pub struct Batch {
    limits: BatchLimits,
    columns: Columns,
    rope: Rope,
}

/// Zeroed room, or an error where the allocator has none.
fn zeros<T: Copy + Default>(len: usize) -> Result<Vec<T>, CpuError> {
    let mut values: Vec<T> = Vec::new();
    let bytes = len.saturating_mul(size_of::<T>());
    values.try_reserve_exact(len).map_err(|_| CpuError::OutOfMemory { bytes })?;
    drop(values);
    // Zeroed pages come from the kernel as they are touched.
    Ok(vec![T::default(); len])
}

impl Device for Cpu {
    type Error = CpuError;
    type Matrix = Matrix;
    type Linear = Linear;
    type Embedding = Linear;
    type Norm = Norm;
    type Sinks = Vec<f32>;
    type Experts = Experts;
    type KvCache = KvCache;
    type Batch = Batch;
    type Routing = Routing;
    type Groups = Groups;
    type Samples = Vec<Drawn>;

    const KV_DTYPES: &[KvDtype] = &[KvDtype::F32, KvDtype::Bf16, KvDtype::Fp8];

    fn linear(&mut self, source: DenseSource, dtype: DenseDtype) -> Result<Linear, CpuError> {
        self.pool.install(|| Linear::new(source, dtype))
    }

    fn embedding(&mut self, source: DenseSource) -> Result<Linear, CpuError> {
        Linear::new(source, DenseDtype::Bf16)
    }

    fn norm(&mut self, gain: Bytes, eps: f32) -> Result<Norm, CpuError> {
        Ok(Norm { gain: weights::decode_bf16(&gain), eps })
    }

    fn sinks(&mut self, logits: Bytes) -> Result<Vec<f32>, CpuError> {
        Ok(weights::decode_bf16(&logits))
    }

    fn experts(&mut self, source: ExpertsSource) -> Result<Experts, CpuError> {
        Ok(Experts::new(source))
    }

    fn regroup_experts(
        &mut self,
        held: &Experts,
        order: &[ExpertOrigin],
        added: ExpertsSource,
    ) -> Result<Experts, CpuError> {
        Ok(held.regroup(order, Experts::new(added)))
    }

    fn matrix(&mut self, max_rows: usize, cols: usize, _precision: Precision) -> Result<Matrix, CpuError> {
        assert!(cols > 0, "a matrix has columns");
        Ok(Matrix { cols, max_rows, values: Vec::new() })
    }

    fn kv_cache(&mut self, shape: &KvShape) -> Result<KvCache, CpuError> {
        KvCache::new(shape)
    }

    fn batch(&mut self, limits: BatchLimits, rope: &RopeParams, _kv: &KvShape) -> Result<Batch, CpuError> {
        Ok(Batch { limits, columns: Columns::default(), rope: Rope::new(rope) })
    }

    fn routing(&mut self, max_rows: usize, top_k: usize) -> Result<Routing, CpuError> {
        Ok(Routing::new(max_rows, top_k))
    }

    fn groups(&mut self, local: &[u32]) -> Result<Groups, CpuError> {
        Ok(Groups::new(local))
    }

    fn samples(&mut self, max_rows: usize) -> Result<Vec<Drawn>, CpuError> {
        Ok(Vec::with_capacity(max_rows))
    }

    fn enter<R: Send>(&mut self, run: impl FnOnce(&mut Self) -> R + Send) -> R {
        let pool = Arc::clone(&self.pool);
        pool.install(|| run(self))
    }

    fn begin(&mut self, columns: &Columns, before: &Vec<Drawn>, batch: &mut Batch) -> Result<(), CpuError> {
        let BatchLimits { max_rows, max_slices, max_logit_rows } = batch.limits;
        assert!(columns.num_rows() <= max_rows && columns.slices.len() <= max_slices);
        assert!(columns.logit_rows.len() <= max_logit_rows);
        assert_eq!(columns.positions.len(), columns.num_rows(), "a position for each row");
        batch.columns.clone_from(columns);
        for feed in &columns.feeds {
            batch.columns.tokens[feed.row as usize] = before[feed.sample as usize].token;
        }
        batch.rope.set_positions(&columns.positions);
        Ok(())
    }

    fn embed(&mut self, table: &Linear, batch: &Batch, hidden: &mut Matrix) -> Result<(), CpuError> {
        let cols = hidden.cols;
        let rows = hidden.set_rows(batch.columns.num_rows()).chunks_exact_mut(cols);
        for (row, &token) in rows.zip(&batch.columns.tokens) {
            table.row(token as usize, row);
        }
        Ok(())
    }

    fn rms_norm(&mut self, hidden: &Matrix, norm: &Norm, normed: &mut Matrix) -> Result<(), CpuError> {
        self.pool.install(|| norm_rows(hidden, norm, normed));
        Ok(())
    }

    fn qkv(
        &mut self,
        normed: &Matrix,
        weights: &Linear,
        batch: &Batch,
        cache: &mut KvCache,
        layer: usize,
        queries: &mut Matrix,
    ) -> Result<(), CpuError> {
        let Self { pool, products, projected, .. } = self;
        let (num_rows, width) = (normed.num_rows(), weights.num_rows());
        projected.resize(num_rows * width, 0.0);
        pool.install(|| matmul::matmul(weights, &normed.inputs(), products, projected));

        let head_dim = cache.shape.head_dim;
        let kv_width = cache.shape.num_kv_heads * head_dim;
        let q_width = queries.cols;
        assert_eq!(width, q_width + 2 * kv_width, "rows for queries, keys and values");
        let queries = queries.set_rows(num_rows);
        for slice in &batch.columns.slices {
            for row in slice.rows.start as usize..slice.rows.end as usize {
                let (query, key_value) = projected[row * width..][..width].split_at_mut(q_width);
                let (keys, values) = key_value.split_at_mut(kv_width);
                query.chunks_exact_mut(head_dim).for_each(|head| batch.rope.rotate(row, head));
                keys.chunks_exact_mut(head_dim).for_each(|head| batch.rope.rotate(row, head));
                queries[row * q_width..][..q_width].copy_from_slice(query);
                let position = batch.columns.positions[row] as usize;
                let heads = keys.chunks_exact(head_dim).zip(values.chunks_exact(head_dim));
                for (head, (key, value)) in heads.enumerate() {
                    let place = cache.place(layer, head, cache.table(layer, slice), position);
                    cache.write(place, key, value);
                }
            }
        }
        Ok(())
    }

    fn attention(
        &mut self,
        queries: &Matrix,
        sinks: &Vec<f32>,
        batch: &Batch,
        cache: &KvCache,
        layer: usize,
        context: &mut Matrix,
    ) -> Result<(), CpuError> {
        let attention = Attention { columns: &batch.columns, cache, layer, sinks };
        let context = context.set_rows(queries.num_rows());
        self.pool.install(|| attention.run(&queries.values, context));
        Ok(())
    }

    fn project(&mut self, rows: &Matrix, weights: &Linear, out: &mut Matrix) -> Result<(), CpuError> {
        let Self { pool, products, .. } = self;
        let out = out.set_rows(rows.num_rows());
        pool.install(|| matmul::matmul(weights, &rows.inputs(), products, out));
        Ok(())
    }

    fn add_rms_norm(
        &mut self,
        delta: &Matrix,
        norm: &Norm,
        hidden: &mut Matrix,
        normed: &mut Matrix,
    ) -> Result<(), CpuError> {
        for (hidden, delta) in hidden.values.iter_mut().zip(&delta.values) {
            *hidden += delta;
        }
        self.rms_norm(hidden, norm, normed)
    }

    fn route(&mut self, normed: &Matrix, router: &Linear, routing: &mut Routing) -> Result<(), CpuError> {
        let Self { pool, products, projected, .. } = self;
        projected.resize(normed.num_rows() * router.num_rows(), 0.0);
        pool.install(|| matmul::matmul(router, &normed.inputs(), products, projected));
        routing.choose(projected, router.num_rows());
        Ok(())
    }

    fn group(&mut self, routing: &Routing, groups: &mut Groups) -> Result<(), CpuError> {
        groups.sort(routing);
        Ok(())
    }

    fn group_choices(&mut self, choices: &[Choice], groups: &mut Groups) -> Result<(), CpuError> {
        groups.sort_choices(choices);
        Ok(())
    }

    fn run_experts(
        &mut self,
        rows: &Matrix,
        groups: &Groups,
        experts: &Experts,
        outputs: &mut Matrix,
    ) -> Result<(), CpuError> {
        let Self { pool, experts: scratch, .. } = self;
        let outputs = outputs.set_rows(groups.num_slots());
        pool.install(|| experts::run(&rows.inputs(), groups, experts, scratch, outputs));
        Ok(())
    }

    fn combine_rms_norm(
        &mut self,
        outputs: &Matrix,
        routing: &Routing,
        norm: &Norm,
        hidden: &mut Matrix,
        normed: &mut Matrix,
    ) -> Result<(), CpuError> {
        let cols = hidden.cols;
        let mut outputs = outputs.values.chunks_exact(cols);
        for (hidden, choices) in hidden.values.chunks_exact_mut(cols).zip(routing.rows()) {
            for (choice, output) in choices.iter().zip(&mut outputs) {
                lanes::add_scaled(hidden, choice.weight, output);
            }
        }
        self.rms_norm(hidden, norm, normed)
    }

    fn lm_head(
        &mut self,
        normed: &Matrix,
        weights: &Linear,
        batch: &Batch,
        logits: &mut Matrix,
    ) -> Result<(), CpuError> {
        let Self { pool, products, .. } = self;
        let picked = &batch.columns.logit_rows;
        let out = logits.set_rows(picked.len());
        if !picked.is_empty() {
            let inputs = Inputs { picked: Some(picked), ..normed.inputs() };
            pool.install(|| matmul::matmul(weights, &inputs, products, out));
        }
        Ok(())
    }

    fn sample(&mut self, logits: &Matrix, batch: &Batch, samples: &mut Vec<Drawn>) -> Result<(), CpuError> {
        let draws = &batch.columns.draws;
        assert_eq!(draws.len(), logits.num_rows(), "a draw for each row of logits");
        let rows = logits.values.par_chunks_exact(logits.cols);
        let draw = || rows.zip(draws).map(|(row, draw)| sample::draw(row, draw)).collect();
        *samples = self.pool.install(draw);
        Ok(())
    }

    fn write(&mut self, values: &[f32], matrix: &mut Matrix) -> Result<(), CpuError> {
        assert_eq!(values.len() % matrix.cols, 0, "whole rows of {} values", matrix.cols);
        matrix.set_rows(values.len() / matrix.cols).copy_from_slice(values);
        Ok(())
    }

    fn read(&mut self, matrix: &Matrix) -> Result<Vec<f32>, CpuError> {
        Ok(matrix.values.clone())
    }

    fn read_routing(&mut self, routing: &Routing) -> Result<Vec<Vec<Routed>>, CpuError> {
        Ok(routing.rows().map(<[Routed]>::to_vec).collect())
    }

    fn fetch_samples(&mut self, samples: &Vec<Drawn>) -> Result<Fetched<CpuError>, CpuError> {
        Ok(Fetched::Here(samples.clone()))
    }
}

fn norm_rows(hidden: &Matrix, norm: &Norm, normed: &mut Matrix) {
    let cols = hidden.cols;
    let normed = normed.set_rows(hidden.num_rows()).par_chunks_exact_mut(cols);
    normed.zip(hidden.values.par_chunks_exact(cols)).for_each(|(normed, hidden)| {
        lanes::rms_norm(hidden, &norm.gain, norm.eps, normed);
    });
}
