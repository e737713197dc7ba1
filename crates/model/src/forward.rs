//! The forward pass. The layer loop is written once, over `Device` and `Link`:
//! one rank or many, CPU or GPU, one token or a long slice, it is this code.

use crate::batch::PlanError;
use crate::checkpoint::Checkpoint;
use crate::config::ModelConfig;
use crate::observe::{Observer, Stage};
use crate::seat::{ExchangeRoom, Room, Seat};
use crate::shard::ShardSpec;
use crate::weights::{HeldExperts, LoadError, LoadProgress, Weights};
use chorale_device::{Columns, Device, Drawn};
use chorale_link::{Home, Link, LinkError};
use chorale_plan::{Sample, SequenceId, SequenceSlice, StepOutput, StepPlan, TokenLogprob};
use std::collections::HashMap;
use std::ops::ControlFlow;

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
    pub(crate) link: L,
    pub(crate) weights: Weights<D>,
    seat: Seat<D>,
    /// Where the samples of the step before lie, by sequence.
    sampled: HashMap<SequenceId, u32>,
    // Last, so that it outlives what was made on it.
    pub(crate) device: D,
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
        let mut weights = Weights::default();
        weights.load(&mut device, checkpoint, spec, &mut |progress| {
            on_progress(progress);
            ControlFlow::Continue(())
        })?;
        let seat = Seat::new(&mut device, checkpoint.config(), spec, room).map_err(LoadError::Device)?;
        Ok(Self::new(device, link, weights, seat))
    }

    /// Puts together what was made on the device for one shard.
    pub fn new(device: D, link: L, weights: Weights<D>, seat: Seat<D>) -> Self {
        assert!(weights.hold(seat.spec()), "the shard is loaded");
        Self { link, weights, seat, sampled: HashMap::new(), device }
    }

    /// Gives back what outlives the rank's place.
    pub fn take_apart(self) -> (D, Weights<D>) {
        (self.device, self.weights)
    }

    /// The model's geometry.
    pub fn config(&self) -> &ModelConfig {
        self.seat.config()
    }

    pub(crate) fn set_experts(&mut self, experts: Vec<Vec<u32>>) {
        self.seat.set_experts(experts);
    }

    /// What connects this rank with others.
    pub fn link(&self) -> &L {
        &self.link
    }

    /// What connects this rank with others.
    pub fn link_mut(&mut self) -> &mut L {
        &mut self.link
    }

    /// Computes a plan, perhaps an empty one, and samples the slices that ask
    /// for it. All ranks of the world compute the step together.
    pub fn step(&mut self, plan: &StepPlan) -> Result<StepOutput, StepError<D::Error>> {
        let columns = self.seat.columns(&plan.slices, &self.sampled)?;
        self.link.begin(plan.step);
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
        let mut columns = self.seat.columns(slices, &self.sampled)?;
        self.sampled.clear();
        columns.draws.clear();
        // Such steps have no numbers: ranks that compute them together call alike.
        self.link.begin(0);
        self.run(&columns, observer)?;
        let rows: Vec<u32> = (0..columns.num_rows() as u32).collect();
        let rows = &rows[rows.len() - last.min(rows.len())..];
        let mut logits = Vec::with_capacity(rows.len() * self.config().vocab_size);
        // All rows at once would need room for rows × vocabulary on the device.
        for rows in rows.chunks(self.seat.max_logit_rows()) {
            columns.logit_rows = rows.to_vec();
            logits.extend(self.head(&columns)?);
        }
        Ok(logits)
    }

    /// The layers: from the columns to `normed`, the final norm of every row.
    fn run(&mut self, columns: &Columns, observer: &mut impl Observer<D>) -> Result<(), LinkError<D::Error>> {
        let Self { device, link, weights, seat, .. } = self;
        let Seat { attention, exchange: x, .. } = seat;
        device.enter(|device| {
            let (Some(dense), Some(w)) = (weights.dense(), attention) else {
                return weights.experts().iter().try_for_each(|experts| {
                    run_experts(device, link, experts, x)?;
                    Ok(())
                });
            };
            device.begin(columns, &w.samples, &mut w.batch)?;
            device.embed(&dense.embedding, &w.batch, &mut w.hidden)?;
            observer.hidden(device, Stage::Embedding, &w.hidden)?;
            device.rms_norm(&w.hidden, &dense.layers[0].input_norm, &mut x.normed)?;
            for (index, (layer, experts)) in dense.layers.iter().zip(weights.experts()).enumerate() {
                device.qkv(&x.normed, &layer.qkv, &w.batch, &mut w.cache, index, &mut w.queries)?;
                device.attention(&w.queries, &layer.sinks, &w.batch, &w.cache, index, &mut w.context)?;
                link.all_gather(device, &w.cols.context, &mut w.context, &mut w.heads)?;
                device.project(&w.heads, &layer.output, &mut w.projected)?;
                link.all_gather(device, &w.cols.projected, &mut w.projected, &mut w.attended)?;
                device.add_rms_norm(&w.attended, &layer.post_norm, &mut w.hidden, &mut x.normed)?;
                observer.hidden(device, Stage::Attention(index), &w.hidden)?;

                device.route(&x.normed, &layer.router, &mut x.routing)?;
                observer.routing(device, index, &x.routing)?;
                // The norm for what comes next is fused into the combine.
                let next = dense.layers.get(index + 1).map_or(&dense.norm, |next| &next.input_norm);
                match run_experts(device, link, experts, x)? {
                    Home::Choices => {
                        device.combine_rms_norm(
                            &x.answers,
                            &x.routing,
                            next,
                            &mut w.hidden,
                            &mut x.normed,
                        )?;
                    }
                    Home::Sums => device.add_rms_norm(&x.answers, next, &mut w.hidden, &mut x.normed)?,
                }
                observer.hidden(device, Stage::Layer(index), &w.hidden)?;
            }
            Ok(observer.hidden(device, Stage::FinalNorm, &x.normed)?)
        })
    }

    /// Samples the rows that `run` left in `normed`.
    fn draw(&mut self, columns: &Columns) -> Result<Vec<Drawn>, LinkError<D::Error>> {
        let Self { device, link, weights, seat, .. } = self;
        let Seat { attention, exchange: x, .. } = seat;
        let (Some(dense), Some(w), false) = (weights.dense(), attention, columns.draws.is_empty()) else {
            return Ok(Vec::new());
        };
        device.enter(|device| {
            device.lm_head(&x.normed, &dense.head, &w.batch, &mut w.logits_part)?;
            link.all_gather(device, &w.cols.logits, &mut w.logits_part, &mut w.logits)?;
            device.sample(&w.logits, &w.batch, &mut w.samples)?;
            Ok(device.read_samples(&w.samples)?)
        })
    }

    /// The logits of the columns' `logit_rows`.
    fn head(&mut self, columns: &Columns) -> Result<Vec<f32>, LinkError<D::Error>> {
        let Self { device, link, weights, seat, .. } = self;
        let Seat { attention, exchange: x, .. } = seat;
        let (Some(dense), Some(w)) = (weights.dense(), attention) else { return Ok(Vec::new()) };
        device.enter(|device| {
            device.begin(columns, &w.samples, &mut w.batch)?;
            device.lm_head(&x.normed, &dense.head, &w.batch, &mut w.logits_part)?;
            link.all_gather(device, &w.cols.logits, &mut w.logits_part, &mut w.logits)?;
            Ok(device.read(&w.logits)?)
        })
    }
}

/// The rows of `normed` out to the experts of all ranks, those of all ranks
/// through the experts that are here, and the answers home.
fn run_experts<D: Device, L: Link<D>>(
    device: &mut D,
    link: &mut L,
    experts: &HeldExperts<D>,
    x: &mut ExchangeRoom<D>,
) -> Result<Home, LinkError<D::Error>> {
    let arrived = link.dispatch(device, &x.normed, &x.routing)?;
    device.run_experts(arrived.rows, arrived.groups, &experts.packed, &mut x.outputs)?;
    link.combine(device, &mut x.outputs, &mut x.answers)
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
