//! The engine under test: the portable device, alone.

use crate::tensors::fixtures;
use chorale_device::{Cpu, DenseDtype, Device, KvDtype, Routed};
use chorale_link::Solo;
use chorale_model::checkpoint::Checkpoint;
use chorale_model::offline::{OfflineLimits, OfflineSequence};
use chorale_model::shard::ShardSpec;
use chorale_model::{GptOss, Observer, Room, Stage};
use chorale_plan::{SamplingParams, StepPlan, TokenId};
use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::path::Path;

pub(crate) type Engine = GptOss<Cpu, Solo<Cpu>>;

/// An engine with room for sequences.
pub(crate) struct Bench {
    pub(crate) engine: Engine,
    pub(crate) limits: OfflineLimits,
    /// Whether steps are computed in halves, by their number.
    pub(crate) in_halves: fn(u64) -> bool,
}

pub(crate) fn limits(num_sequences: usize, max_slice_tokens: usize, block_size: usize) -> OfflineLimits {
    OfflineLimits { num_sequences, max_tokens: 1200, max_slice_tokens, max_rows: 1200, block_size }
}

impl Bench {
    pub(crate) fn new(model: &str, limits: OfflineLimits) -> Self {
        Self::open(&fixtures().join("models").join(model), limits)
    }

    pub(crate) fn open(dir: &Path, limits: OfflineLimits) -> Self {
        Self::kept_as(dir, limits, (DenseDtype::Bf16, KvDtype::F32))
    }

    /// With dense weights, and with keys and values, of these types.
    pub(crate) fn kept_as(
        dir: &Path,
        limits: OfflineLimits,
        (dense_dtype, kv_dtype): (DenseDtype, KvDtype),
    ) -> Self {
        let checkpoint = Checkpoint::open(dir).unwrap();
        let config = checkpoint.config();
        let mut device = Cpu::new(NonZeroUsize::new(2)).unwrap();
        let link = Solo::new(&mut device, config.num_experts as u32).unwrap();
        let spec = ShardSpec { dense_dtype, ..ShardSpec::whole(config) };
        let room = Room { has_halves: true, ..limits.room(config, kv_dtype) };
        let engine = GptOss::load(device, link, &checkpoint, &spec, &room, &mut |_| ()).unwrap();
        Self { engine, limits, in_halves: |_| false }
    }

    pub(crate) fn sequence(&self, index: usize, prompt: &[TokenId]) -> OfflineSequence {
        OfflineSequence::new(index, prompt.to_vec(), self.limits, self.engine.config())
    }

    /// Logits of the last `last` positions of a prompt, computed in slices.
    pub(crate) fn logits(&mut self, prompt: &[TokenId], slice: usize, last: usize) -> Vec<f32> {
        self.observed_logits(prompt, slice, last, &mut ())
    }

    pub(crate) fn observed_logits(
        &mut self,
        prompt: &[TokenId],
        slice: usize,
        last: usize,
        observer: &mut impl Observer<Cpu>,
    ) -> Vec<f32> {
        let mut sequence = self.sequence(0, prompt);
        let mut logits = Vec::new();
        while sequence.num_pending() > 0 {
            let slice = sequence.take_slice(slice, &SamplingParams::greedy());
            let wanted = (last).saturating_sub(sequence.num_pending()).min(slice.tokens.len());
            logits.extend(self.engine.logits(&[slice], wanted, observer).unwrap());
        }
        logits
    }

    /// Tokens after each prompt, all in the same steps.
    pub(crate) fn generate(
        &mut self,
        prompts: &[Vec<TokenId>],
        params: &[SamplingParams],
        slice: usize,
        count: usize,
    ) -> Vec<Vec<TokenId>> {
        let sequences = prompts.iter().enumerate().map(|(index, prompt)| self.sequence(index, prompt));
        let mut sequences: Vec<OfflineSequence> = sequences.collect();
        let mut step = 0;
        while sequences.iter().any(|sequence| sequence.output().len() < count) {
            step += 1;
            let unfinished = sequences.iter_mut().enumerate().filter(|(_, s)| s.output().len() < count);
            let slices = unfinished.map(|(index, s)| s.take_slice(slice, &params[index])).collect();
            let output = self
                .engine
                .step(&StepPlan { step, in_halves: (self.in_halves)(step), home_rows: Vec::new(), slices })
                .unwrap();
            for sample in output.samples {
                sequences[sample.sequence.0 as usize].push(sample.token);
            }
        }
        sequences.iter().map(|sequence| sequence.output().to_vec()).collect()
    }
}

/// Keeps everything that passes.
#[derive(Default)]
pub(crate) struct Recorder {
    pub(crate) hidden: HashMap<Stage, Vec<f32>>,
    pub(crate) routes: HashMap<usize, Vec<Vec<Routed>>>,
}

impl Observer<Cpu> for Recorder {
    fn hidden(
        &mut self,
        device: &mut Cpu,
        stage: Stage,
        rows: &<Cpu as Device>::Matrix,
    ) -> Result<(), <Cpu as Device>::Error> {
        self.hidden.insert(stage, device.read(rows)?);
        Ok(())
    }

    fn routing(
        &mut self,
        device: &mut Cpu,
        layer: usize,
        routing: &<Cpu as Device>::Routing,
    ) -> Result<(), <Cpu as Device>::Error> {
        self.routes.insert(layer, device.read_routing(routing)?);
        Ok(())
    }
}
