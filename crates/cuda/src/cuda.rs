//! The device: each operation's matrices checked, and its kernels queued.

use crate::ahead::Ahead;
use crate::attention::{self, Attention, Sinks};
use crate::batch::Batch;
use crate::experts::{self, ExpertFill, ExpertRoom, ExpertTraffic, Experts, Residency};
use crate::gpu::{Facts, Gpu, GpuError};
use crate::groups::Groups;
use crate::kv_cache::KvCache;
use crate::linear::{Input, Linear, Output};
use crate::matrix::Matrix;
use crate::memory::Memory;
use crate::options::CudaOptions;
use crate::qkv::Qkv;
use crate::route::{self, Routing};
use crate::rows::{Embedding, Norm};
use crate::sample::{self, Samples};
use crate::stream::Stream;
use bytes::Bytes;
use chorale_device::Precision::{Full, Half};
use chorale_device::{
    BatchLimits, Choice, Columns, DenseDtype, DenseSource, Device, ExpertOrigin, ExpertsSource, Fetched,
    KvDtype, KvShape, Needs, Precision, RopeParams, Routed,
};
use std::sync::Arc;

/// A GPU that computes.
pub struct Cuda {
    route: route::Scratch,
    attention: attention::Scratch,
    experts: experts::Scratch,
    /// None if all experts are on the GPU.
    residency: Option<Residency>,
    sample: sample::Scratch,
    ahead: Ahead,
    /// bf16 rows whose logits are wanted.
    gathered: Option<Memory>,
    // Last, so that it outlives what was made on it.
    pub(crate) stream: Stream,
}

impl Cuda {
    /// A device over a GPU.
    pub fn new(gpu: Arc<dyn Gpu>) -> Self {
        Self::with(gpu, CudaOptions::default())
    }

    /// The same with choices.
    pub fn with(gpu: Arc<dyn Gpu>, options: CudaOptions) -> Self {
        Self {
            route: route::Scratch::default(),
            attention: attention::Scratch::default(),
            experts: experts::Scratch::default(),
            residency: None,
            sample: sample::Scratch::default(),
            ahead: Ahead::default(),
            gathered: None,
            stream: Stream::new(gpu, options),
        }
    }

    /// What the GPU is.
    pub fn facts(&self) -> &Facts {
        self.stream.facts()
    }

    /// Lets experts that are loaded from now on lie with the host, as far as there is
    /// no room for them on the GPU; gives what then tells of them. Results are the
    /// same, bit for bit.
    pub fn set_expert_room(&mut self, room: ExpertRoom) -> Arc<ExpertTraffic> {
        let residency = self.residency.insert(Residency::fixed(room));
        Arc::clone(residency.traffic())
    }

    /// As [`Self::set_expert_room`], where experts that are loaded from now on fill the
    /// memory that is left when the first of a model comes.
    pub fn fill_with_experts(&mut self, fill: ExpertFill) -> Arc<ExpertTraffic> {
        let residency = self.residency.insert(Residency::filling(fill));
        Arc::clone(residency.traffic())
    }

    /// Computes otherwise from the next step on; what it holds stays.
    pub fn set_options(&mut self, options: CudaOptions) {
        self.stream.set_options(options);
    }

    /// Bytes of its memory that are free.
    pub fn free_bytes(&self) -> Result<usize, GpuError> {
        self.stream.gpu().free_bytes()
    }

    /// Hands over what was asked for, and does not wait.
    pub fn flush(&mut self) -> Result<(), GpuError> {
        self.stream.flush()
    }

    /// Waits for all that was asked for.
    pub fn wait(&mut self) -> Result<(), GpuError> {
        self.stream.wait()
    }
}

impl Device for Cuda {
    type Error = GpuError;
    type Matrix = Matrix;
    type Linear = Linear;
    type Embedding = Embedding;
    type Norm = Norm;
    type Sinks = Sinks;
    type Experts = Experts;
    type KvCache = KvCache;
    type Batch = Batch;
    type Routing = Routing;
    type Groups = Groups;
    type Samples = Samples;

    const KV_DTYPES: &[KvDtype] = &[KvDtype::Bf16, KvDtype::Fp8];

    fn linear(&mut self, source: DenseSource, dtype: DenseDtype) -> Result<Linear, GpuError> {
        Linear::new(&mut self.stream, source, dtype)
    }

    fn embedding(&mut self, source: DenseSource) -> Result<Embedding, GpuError> {
        Embedding::new(&mut self.stream, source)
    }

    fn norm(&mut self, gain: Bytes, eps: f32) -> Result<Norm, GpuError> {
        Norm::new(&mut self.stream, &gain, eps)
    }

    fn sinks(&mut self, logits: Bytes) -> Result<Sinks, GpuError> {
        Sinks::new(&mut self.stream, &logits)
    }

    fn experts(&mut self, source: ExpertsSource) -> Result<Experts, GpuError> {
        Experts::new(&mut self.stream, self.residency.as_mut(), source)
    }

    fn regroup_experts(
        &mut self,
        held: &Experts,
        order: &[ExpertOrigin],
        added: ExpertsSource,
    ) -> Result<Experts, GpuError> {
        held.regroup(&mut self.stream, self.residency.as_mut(), order, added)
    }

    fn matrix(&mut self, max_rows: usize, cols: usize, precision: Precision) -> Result<Matrix, GpuError> {
        Matrix::new(&self.stream, max_rows, cols, precision)
    }

    fn kv_cache(&mut self, shape: &KvShape) -> Result<KvCache, GpuError> {
        KvCache::new(&self.stream, shape)
    }

    fn batch(&mut self, limits: BatchLimits, rope: &RopeParams, kv: &KvShape) -> Result<Batch, GpuError> {
        Batch::new(&mut self.stream, limits, rope, kv)
    }

    fn routing(&mut self, max_rows: usize, top_k: usize) -> Result<Routing, GpuError> {
        Routing::new(&self.stream, max_rows, top_k)
    }

    fn groups(&mut self, local: &[u32]) -> Result<Groups, GpuError> {
        Groups::new(&mut self.stream, local)
    }

    fn samples(&mut self, max_rows: usize) -> Result<Samples, GpuError> {
        Samples::new(&self.stream, max_rows)
    }

    fn reserve(&mut self, needs: &Needs<'_>) -> Result<(), GpuError> {
        let Self { route, attention, experts, sample, gathered, stream, .. } = self;
        route.reserve(stream, needs)?;
        attention.reserve(stream, needs)?;
        experts.reserve(stream, needs)?;
        sample.reserve(stream, needs)?;
        if stream.facts().is_hopper() {
            let bytes = needs.limits.max_logit_rows * needs.hidden_size * size_of::<u16>();
            stream.reserve(gathered, bytes)?;
        }
        Ok(())
    }

    fn fills_memory(&self) -> bool {
        self.residency.as_ref().is_some_and(Residency::fills)
    }

    fn is_lost(&self) -> bool {
        self.stream.gpu().bind().is_err()
    }

    fn enter<R: Send>(&mut self, run: impl FnOnce(&mut Self) -> R + Send) -> R {
        // What fails here fails again, with an error, at the next operation.
        let _ = self.stream.gpu().bind();
        run(self)
    }

    fn begin(&mut self, columns: &Columns, before: &Samples, batch: &mut Batch) -> Result<(), GpuError> {
        // First: what it queues would cut the step's list of launches in two.
        if let Some(residency) = &mut self.residency {
            residency.begin(&mut self.stream, columns.num_rows())?;
        }
        batch.begin(&mut self.stream, columns, before)
    }

    fn embed(&mut self, table: &Embedding, batch: &Batch, hidden: &mut Matrix) -> Result<(), GpuError> {
        hidden.set_rows(batch.step.num_rows);
        hidden.expect("embed: hidden", Full, hidden.cols());
        table.look_up(&mut self.stream, &batch.step, hidden);
        Ok(())
    }

    fn rms_norm(&mut self, hidden: &Matrix, norm: &Norm, normed: &mut Matrix) -> Result<(), GpuError> {
        hidden.expect("rms_norm: hidden", Full, normed.cols());
        normed.expect("rms_norm: normed", Half, hidden.cols());
        normed.set_rows(hidden.rows());
        norm.apply(&mut self.stream, hidden, normed);
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
    ) -> Result<(), GpuError> {
        normed.expect("qkv: normed", Half, weights.cols());
        queries.expect("qkv: queries", Half, queries.cols());
        assert_eq!(normed.rows(), batch.step.num_rows, "qkv: rows of the step");
        queries.set_rows(normed.rows());
        self.ahead.multiplied(weights);
        Qkv { weights, step: &batch.step, cache, layer }.run(&mut self.stream, normed, queries)
    }

    fn attention(
        &mut self,
        queries: &Matrix,
        sinks: &Sinks,
        batch: &Batch,
        cache: &KvCache,
        layer: usize,
        context: &mut Matrix,
    ) -> Result<(), GpuError> {
        queries.expect("attention: queries", Half, context.cols());
        context.expect("attention: context", Half, queries.cols());
        assert_eq!(queries.rows(), batch.step.num_rows, "attention: rows of the step");
        context.set_rows(queries.rows());
        let Self { stream, attention: scratch, .. } = self;
        Attention { sinks, step: &batch.step, cache, layer, scratch }.run(stream, queries, context)
    }

    fn project(&mut self, rows: &Matrix, weights: &Linear, out: &mut Matrix) -> Result<(), GpuError> {
        rows.expect("project: rows", Half, weights.cols());
        out.expect("project: out", Half, weights.rows());
        out.set_rows(rows.rows());
        let output = Output { address: out.address(), stride: out.stride(), precision: Half };
        weights.multiply(&mut self.stream, &Input::all(rows), &output)
    }

    fn add_rms_norm(
        &mut self,
        delta: &Matrix,
        norm: &Norm,
        hidden: &mut Matrix,
        normed: &mut Matrix,
    ) -> Result<(), GpuError> {
        delta.expect("add_rms_norm: delta", Half, hidden.cols());
        hidden.expect("add_rms_norm: hidden", Full, normed.cols());
        normed.expect("add_rms_norm: normed", Half, hidden.cols());
        assert_eq!(delta.rows(), hidden.rows(), "add_rms_norm: rows");
        normed.set_rows(hidden.rows());
        let ahead = self.ahead.lines(norm.address(), self.stream.options().ahead_bytes);
        norm.apply_after(&mut self.stream, (delta, ahead), hidden, normed);
        Ok(())
    }

    fn route(&mut self, normed: &Matrix, router: &Linear, routing: &mut Routing) -> Result<(), GpuError> {
        normed.expect("route: normed", Half, router.cols());
        routing.choose(&mut self.stream, normed, router, &mut self.route)
    }

    fn group(&mut self, routing: &Routing, groups: &mut Groups) -> Result<(), GpuError> {
        groups.sort(&mut self.stream, routing)
    }

    fn group_choices(&mut self, choices: &[Choice], groups: &mut Groups) -> Result<(), GpuError> {
        groups.sort_choices(&mut self.stream, choices)
    }

    fn run_experts(
        &mut self,
        rows: &Matrix,
        groups: &Groups,
        experts: &Experts,
        outputs: &mut Matrix,
    ) -> Result<(), GpuError> {
        rows.expect("run_experts: rows", Half, outputs.cols());
        outputs.expect("run_experts: outputs", Half, rows.cols());
        let Self { stream, experts: scratch, residency, .. } = self;
        experts.run(stream, (scratch, residency.as_mut()), rows, groups, outputs)
    }

    fn combine_rms_norm(
        &mut self,
        outputs: &Matrix,
        routing: &Routing,
        norm: &Norm,
        hidden: &mut Matrix,
        normed: &mut Matrix,
    ) -> Result<(), GpuError> {
        outputs.expect("combine_rms_norm: outputs", Half, hidden.cols());
        hidden.expect("combine_rms_norm: hidden", Full, normed.cols());
        normed.expect("combine_rms_norm: normed", Half, hidden.cols());
        assert_eq!(routing.rows, hidden.rows(), "combine_rms_norm: rows");
        assert_eq!(outputs.rows(), routing.rows * routing.top_k, "combine_rms_norm: slots");
        normed.set_rows(hidden.rows());
        norm.apply_combined(&mut self.stream, (outputs, routing), hidden, normed);
        Ok(())
    }

    fn lm_head(
        &mut self,
        normed: &Matrix,
        weights: &Linear,
        batch: &Batch,
        logits: &mut Matrix,
    ) -> Result<(), GpuError> {
        normed.expect("lm_head: normed", Half, weights.cols());
        logits.expect("lm_head: logits", Full, weights.rows());
        let rows = batch.step.num_logit_rows;
        logits.set_rows(rows);
        self.ahead.multiplied(weights);
        let picked = (&Input { rows, ..Input::all(normed) }, batch.step.logit_rows);
        let output = Output { address: logits.address(), stride: logits.stride(), precision: Full };
        weights.multiply_picked(&mut self.stream, &mut self.gathered, picked, &output)
    }

    fn sample(&mut self, logits: &Matrix, batch: &Batch, samples: &mut Samples) -> Result<(), GpuError> {
        logits.expect("sample: logits", Full, logits.cols());
        samples.draw(&mut self.stream, &mut self.sample, logits, &batch.step)
    }

    fn write(&mut self, values: &[f32], matrix: &mut Matrix) -> Result<(), GpuError> {
        matrix.write(&mut self.stream, values)
    }

    fn read(&mut self, matrix: &Matrix) -> Result<Vec<f32>, GpuError> {
        matrix.read(&mut self.stream)
    }

    fn read_routing(&mut self, routing: &Routing) -> Result<Vec<Vec<Routed>>, GpuError> {
        routing.read(&mut self.stream)
    }

    fn fetch_samples(&mut self, samples: &Samples) -> Result<Fetched<GpuError>, GpuError> {
        samples.fetch(&mut self.stream)
    }
}
