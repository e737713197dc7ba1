//! The forward pass. The layer loop is written once, over `Device` and `Link`:
//! one rank or many, CPU or GPU, one token or a long slice, it is this code.

use crate::batch::{self, Bounds, PlanError};
use crate::checkpoint::Checkpoint;
use crate::config::ModelConfig;
use crate::observe::{Observer, Stage};
use crate::shard::ShardSpec;
use crate::weights::{LoadError, LoadProgress, Loader, Weights};
use chorale_device::{BatchLimits, Columns, Device, Drawn, KvShape};
use chorale_link::{Link, LinkError};
use chorale_plan::{Sample, SequenceId, SequenceSlice, StepOutput, StepPlan, TokenLogprob};
use std::collections::HashMap;

/// The room that a rank keeps for steps and for keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// The largest step.
    pub limits: BatchLimits,
    /// Positions of a KV page.
    pub block_size: usize,
    /// Pages of the layers without a window.
    pub num_full_blocks: usize,
    /// Pages of the sliding layers.
    pub num_sliding_blocks: usize,
}

/// Why a step gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum StepError<E> {
    /// The plan breaks the contract; nothing was computed.
    #[error("plan refused: {0}")]
    Plan(#[from] PlanError),
    /// The device or another rank failed; the step is lost.
    #[error(transparent)]
    Lost(#[from] LinkError<E>),
}

/// A rank's share of a gpt-oss model, ready to compute steps.
pub struct GptOss<D: Device, L: Link<D>> {
    config: ModelConfig,
    bounds: Bounds,
    link: L,
    weights: Weights<D>,
    cache: D::KvCache,
    workspace: Workspace<D>,
    /// Where the samples of the step before lie, by sequence.
    sampled: HashMap<SequenceId, u32>,
    // Last, so that it outlives what was made on it.
    device: D,
}

/// Buffers of one step, made once.
struct Workspace<D: Device> {
    batch: D::Batch,
    hidden: D::Matrix,
    normed: D::Matrix,
    queries: D::Matrix,
    /// This rank's heads, then all of the group's.
    context: D::Matrix,
    heads: D::Matrix,
    /// This rank's rows of the output projection, then all of them.
    projected: D::Matrix,
    attended: D::Matrix,
    routing: D::Routing,
    /// What this rank's experts answer, then what all experts answer this rank's rows.
    outputs: D::Matrix,
    answers: D::Matrix,
    /// This rank's part of the vocabulary, then all of it.
    logits_part: D::Matrix,
    logits: D::Matrix,
    samples: D::Samples,
}

impl<D: Device, L: Link<D>> GptOss<D, L> {
    /// Loads the rank's shard and makes room for steps.
    pub fn load(
        mut device: D,
        link: L,
        checkpoint: &Checkpoint,
        spec: &ShardSpec,
        room: &Room,
        on_progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Self, LoadError<D::Error>> {
        let config = checkpoint.config().clone();
        let weights = Loader { device: &mut device, checkpoint, spec, on_progress }.load()?;
        let kv = KvShape {
            windows: config.windows.clone(),
            num_kv_heads: spec.key_value_heads(&config).len(),
            head_dim: config.head_dim,
            block_size: room.block_size,
            num_full_blocks: room.num_full_blocks,
            num_sliding_blocks: room.num_sliding_blocks,
        };
        let cache = device.kv_cache(&kv).map_err(LoadError::Device)?;
        let workspace = Workspace::new(&mut device, &config, spec, room.limits).map_err(LoadError::Device)?;
        let bounds = Bounds {
            limits: room.limits,
            kv,
            window: config.window(),
            vocab_size: config.vocab_size,
            context: config.max_position_embeddings,
        };
        Ok(Self { config, bounds, link, weights, cache, workspace, sampled: HashMap::new(), device })
    }

    /// The model's geometry.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Computes a plan and samples the slices that ask for it.
    pub fn step(&mut self, plan: &StepPlan) -> Result<StepOutput, StepError<D::Error>> {
        let columns = batch::columns(&plan.slices, &self.sampled, &self.bounds)?;
        self.run(&columns, &mut ())?;
        let drawn = self.draw(&columns)?;
        let wanted = plan.slices.iter().filter(|slice| slice.sample.is_some());
        let wanted: Vec<SequenceId> = wanted.map(|slice| slice.sequence).collect();
        self.sampled = wanted.iter().copied().zip(0..).collect();
        let samples = wanted.into_iter().zip(drawn).map(|(sequence, drawn)| sample(sequence, drawn));
        Ok(StepOutput { step: plan.step, samples: samples.collect() })
    }

    /// Computes slices and gives the logits of the last `last` rows of the
    /// step, `[last, vocab]`; nothing is sampled. For comparing engines.
    pub fn logits(
        &mut self,
        slices: &[SequenceSlice],
        last: usize,
        observer: &mut impl Observer<D>,
    ) -> Result<Vec<f32>, StepError<D::Error>> {
        let mut columns = batch::columns(slices, &self.sampled, &self.bounds)?;
        self.sampled.clear();
        columns.draws.clear();
        self.run(&columns, observer)?;
        let rows: Vec<u32> = (0..columns.num_rows() as u32).collect();
        let rows = &rows[rows.len() - last.min(rows.len())..];
        let mut logits = Vec::with_capacity(rows.len() * self.config.vocab_size);
        // All rows at once would need room for rows × vocabulary on the device.
        for rows in rows.chunks(self.bounds.limits.max_logit_rows) {
            columns.logit_rows = rows.to_vec();
            logits.extend(self.head(&columns)?);
        }
        Ok(logits)
    }

    /// The layers: from the columns to `normed`, the final norm of every row.
    fn run(&mut self, columns: &Columns, observer: &mut impl Observer<D>) -> Result<(), LinkError<D::Error>> {
        let Self { device, link, weights, cache, workspace: w, .. } = self;
        device.enter(|device| {
            device.begin(columns, &w.samples, &mut w.batch)?;
            device.embed(&weights.embedding, &w.batch, &mut w.hidden)?;
            observer.hidden(device, Stage::Embedding, &w.hidden)?;
            device.rms_norm(&w.hidden, &weights.layers[0].input_norm, &mut w.normed)?;
            for (index, layer) in weights.layers.iter().enumerate() {
                device.qkv(&w.normed, &layer.qkv, &w.batch, cache, index, &mut w.queries)?;
                device.attention(&w.queries, &layer.sinks, &w.batch, cache, index, &mut w.context)?;
                link.all_gather(device, &mut w.context, &mut w.heads)?;
                device.project(&w.heads, &layer.output, &mut w.projected)?;
                link.all_gather(device, &mut w.projected, &mut w.attended)?;
                device.add_rms_norm(&w.attended, &layer.post_norm, &mut w.hidden, &mut w.normed)?;
                observer.hidden(device, Stage::Attention(index), &w.hidden)?;

                device.route(&w.normed, &layer.router, &mut w.routing)?;
                observer.routing(device, index, &w.routing)?;
                let arrived = link.dispatch(device, &w.normed, &w.routing)?;
                device.run_experts(arrived.rows, arrived.groups, &layer.experts, &mut w.outputs)?;
                link.combine(device, &mut w.outputs, &mut w.answers)?;
                // The norm for what comes next is fused into the combine.
                let next = weights.layers.get(index + 1).map_or(&weights.norm, |next| &next.input_norm);
                device.combine_rms_norm(&w.answers, &w.routing, next, &mut w.hidden, &mut w.normed)?;
                observer.hidden(device, Stage::Layer(index), &w.hidden)?;
            }
            Ok(observer.hidden(device, Stage::FinalNorm, &w.normed)?)
        })
    }

    /// Samples the rows that `run` left in `normed`.
    fn draw(&mut self, columns: &Columns) -> Result<Vec<Drawn>, LinkError<D::Error>> {
        let Self { device, link, weights, workspace: w, .. } = self;
        if columns.draws.is_empty() {
            return Ok(Vec::new());
        }
        device.enter(|device| {
            device.lm_head(&w.normed, &weights.head, &w.batch, &mut w.logits_part)?;
            link.all_gather(device, &mut w.logits_part, &mut w.logits)?;
            device.sample(&w.logits, &w.batch, &mut w.samples)?;
            Ok(device.read_samples(&w.samples)?)
        })
    }

    /// The logits of the columns' `logit_rows`.
    fn head(&mut self, columns: &Columns) -> Result<Vec<f32>, LinkError<D::Error>> {
        let Self { device, link, weights, workspace: w, .. } = self;
        device.enter(|device| {
            device.begin(columns, &w.samples, &mut w.batch)?;
            device.lm_head(&w.normed, &weights.head, &w.batch, &mut w.logits_part)?;
            link.all_gather(device, &mut w.logits_part, &mut w.logits)?;
            Ok(device.read(&w.logits)?)
        })
    }
}

impl<D: Device> Workspace<D> {
    fn new(
        device: &mut D,
        config: &ModelConfig,
        spec: &ShardSpec,
        limits: BatchLimits,
    ) -> Result<Self, D::Error> {
        let BatchLimits { max_rows, max_logit_rows, .. } = limits;
        let local_width = spec.query_rows(config).len();
        let width = config.num_attention_heads * config.head_dim;
        let (hidden, slots) = (config.hidden_size, max_rows * config.experts_per_token);
        Ok(Self {
            batch: device.batch(limits, &config.rope)?,
            hidden: device.matrix(max_rows, hidden)?,
            normed: device.matrix(max_rows, hidden)?,
            queries: device.matrix(max_rows, local_width)?,
            context: device.matrix(max_rows, local_width)?,
            heads: device.matrix(max_rows, width)?,
            projected: device.matrix(max_rows, spec.output_rows(config).len())?,
            attended: device.matrix(max_rows, hidden)?,
            routing: device.routing(max_rows, config.experts_per_token)?,
            outputs: device.matrix(slots, hidden)?,
            answers: device.matrix(slots, hidden)?,
            logits_part: device.matrix(max_logit_rows, spec.vocab_rows(config).len())?,
            logits: device.matrix(max_logit_rows, config.vocab_size)?,
            samples: device.samples(max_logit_rows)?,
        })
    }
}

fn sample(sequence: SequenceId, drawn: Drawn) -> Sample {
    let top = drawn.top_logprobs.into_iter();
    Sample {
        sequence,
        token: drawn.token,
        logprob: drawn.logprob,
        top_logprobs: top.map(|(token, logprob)| TokenLogprob { token, logprob }).collect(),
    }
}
