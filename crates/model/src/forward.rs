//! A step of a model: from a plan through the layers to samples.

use crate::batch::{PlanError, Sampled};
use crate::checkpoint::Checkpoint;
use crate::config::ModelConfig;
use crate::layers::{self, Layers};
use crate::observe::Observer;
use crate::seat::{AttentionRoom, Room, Seat};
use crate::shard::ShardSpec;
use crate::weights::{LoadError, LoadProgress, Weights};
use chorale_device::{Columns, Device, Drawn, Fetched};
use chorale_link::{Half, Link, LinkError};
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
    /// What the step before sampled, by sequence.
    sampled: HashMap<SequenceId, Sampled>,
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
        let config = checkpoint.config();
        let mut seat = match device.fills_memory() {
            true => Some(Seat::new(&mut device, config, spec, room).map_err(LoadError::Device)?),
            false => None,
        };
        let mut weights = Weights::default();
        weights.load(&mut device, checkpoint, spec, &mut |progress| {
            on_progress(progress);
            ControlFlow::Continue(())
        })?;
        let seat = match seat.take() {
            Some(seat) => seat,
            None => Seat::new(&mut device, config, spec, room).map_err(LoadError::Device)?,
        };
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

    /// What computes, between two steps.
    pub fn device_mut(&mut self) -> &mut D {
        &mut self.device
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
        Ok(self.submit(plan)?.finish().map_err(LinkError::Device)?)
    }

    /// Begins a step: what it samples may still be on its way when this
    /// returns, and the next step may begin.
    pub fn submit(&mut self, plan: &StepPlan) -> Result<Submitted<D::Error>, StepError<D::Error>> {
        let parts = self.seat.parts(plan, &self.sampled)?;
        self.link.begin(plan.step);
        self.link.expect(&plan.home_rows, plan.in_halves);
        self.run(&parts, &mut ())?;
        let mut drawn = self.draw(&parts)?;
        let wanted = plan.slices.iter().filter(|slice| slice.sample.is_some());
        let wanted: Vec<SequenceId> = wanted.map(|slice| slice.sequence).collect();
        let places: Vec<Sampled> = match &mut drawn[..] {
            // The second half's tokens took the place of the first's on the device.
            [_, _] => {
                let mut here = Vec::new();
                for drawn in drawn.drain(..) {
                    here.extend(drawn.wait().map_err(LinkError::Device)?);
                }
                let places = here.iter().map(|drawn| Sampled::Token(drawn.token)).collect();
                drawn.push(Fetched::Here(here));
                places
            }
            _ => (0..wanted.len() as u32).map(Sampled::At).collect(),
        };
        self.sampled = wanted.iter().copied().zip(places).collect();
        Ok(Submitted { step: plan.step, wanted, drawn: drawn.pop() })
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
        self.run(std::slice::from_ref(&columns), observer)?;
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

    /// The layers: from the columns of the step's parts to `normed`, the final
    /// norm of every row.
    fn run(&mut self, parts: &[Columns], observer: &mut impl Observer<D>) -> Result<(), LinkError<D::Error>> {
        let Self { device, link, weights, seat, .. } = self;
        let Seat { attention, workspaces, outputs, .. } = seat;
        let workspaces = &mut workspaces[..parts.len()];
        device.enter(|device| match (weights.dense(), attention) {
            (Some(dense), Some(room)) => {
                let experts = weights.experts();
                Layers { device, link, dense, experts, room, outputs, observer }.run(parts, workspaces)
            }
            _ => layers::experts_only(device, link, weights.experts(), outputs, workspaces),
        })
    }

    /// Samples the rows that `run` left in `normed`: one answer for each part
    /// that has any.
    fn draw(&mut self, parts: &[Columns]) -> Result<Vec<Fetched<D::Error>>, LinkError<D::Error>> {
        let Self { device, link, weights, seat, .. } = self;
        let (Some(dense), Some(room)) = (weights.dense(), &mut seat.attention) else {
            return Ok(Vec::new());
        };
        let AttentionRoom { cols, logits_part, logits, samples, .. } = room;
        device.enter(|device| {
            let mut drawn = Vec::new();
            for ((half, columns), w) in Half::BOTH.into_iter().zip(parts).zip(&seat.workspaces) {
                if !columns.draws.is_empty() {
                    device.lm_head(&w.normed, &dense.head, &w.batch, logits_part)?;
                    link.begin_gather(device, half, &cols.logits, logits_part)?;
                    link.end_gather(device, half, &cols.logits, logits_part, logits)?;
                    device.sample(logits, &w.batch, samples)?;
                    drawn.push(device.fetch_samples(samples)?);
                }
            }
            Ok(drawn)
        })
    }

    /// The logits of the columns' `logit_rows`.
    fn head(&mut self, columns: &Columns) -> Result<Vec<f32>, LinkError<D::Error>> {
        let Self { device, link, weights, seat, .. } = self;
        let (Some(dense), Some(room)) = (weights.dense(), &mut seat.attention) else { return Ok(Vec::new()) };
        let AttentionRoom { cols, logits_part, logits, samples, .. } = room;
        let w = &mut seat.workspaces[0];
        device.enter(|device| {
            device.begin(columns, samples, &mut w.batch)?;
            device.lm_head(&w.normed, &dense.head, &w.batch, logits_part)?;
            link.begin_gather(device, Half::First, &cols.logits, logits_part)?;
            link.end_gather(device, Half::First, &cols.logits, logits_part, logits)?;
            Ok(device.read(logits)?)
        })
    }
}

/// A step that was begun.
pub struct Submitted<E> {
    step: u64,
    /// Who is sampled, in the order of the draws.
    wanted: Vec<SequenceId>,
    drawn: Option<Fetched<E>>,
}

impl<E> Submitted<E> {
    /// True if nothing is to be waited for.
    pub fn is_here(&self) -> bool {
        !matches!(self.drawn, Some(Fetched::Coming(_)))
    }

    /// What the step sampled, waited for if need be; on any thread.
    pub fn finish(self) -> Result<StepOutput, E> {
        let drawn = self.drawn.map_or(Ok(Vec::new()), Fetched::wait)?;
        let samples = self.wanted.into_iter().zip(drawn).map(|(sequence, drawn)| sample(sequence, drawn));
        Ok(StepOutput { step: self.step, samples: samples.collect() })
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
