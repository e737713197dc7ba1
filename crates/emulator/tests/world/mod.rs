//! A rank that computes steps, each handed in when the last is answered for or before.

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

use chorale_cuda::{Cuda, Gpu};
use chorale_device::KvDtype;
use chorale_link::local;
use chorale_model::checkpoint::Checkpoint;
use chorale_model::offline::{OfflineLimits, OfflineSequence};
use chorale_plan::{
    Assignment, Carrier, DenseFormat, Epoch, ExchangeOptions, KvFormat, Placement, Rank as RankId, Room,
    SamplingParams, SequenceSlice, Shape, SliceTokens, StepPlan, TokenId,
};
use chorale_worker::Rank;
use std::sync::Arc;
use std::time::Duration;

const LIMITS: OfflineLimits =
    OfflineLimits { num_sequences: 2, max_tokens: 80, max_slice_tokens: 40, max_rows: 64, block_size: 16 };

/// A rank on a GPU, and its sequences.
pub(crate) struct World {
    runtime: tokio::runtime::Runtime,
    rank: Rank,
    sequences: Vec<OfflineSequence>,
    sampling: SamplingParams,
    step: u64,
}

impl World {
    pub(crate) fn new(gpu: Arc<dyn Gpu>, checkpoint: &Arc<Checkpoint>, sampling: SamplingParams) -> Self {
        let rank = Rank::start(Cuda::new(gpu)).unwrap();
        let config = checkpoint.config();
        let room = LIMITS.room(config, KvDtype::Bf16);
        let assignment = Assignment {
            epoch: Epoch(1),
            shape: Shape::SOLO,
            rank: RankId(0),
            addresses: Vec::new(),
            placement: Placement::solo(config.num_layers(), config.num_experts),
            room: Room {
                max_step_tokens: room.limits.max_rows as u32,
                max_step_slices: room.limits.max_slices as u32,
                block_size_tokens: room.block_size as u32,
                num_full_blocks: room.num_full_blocks as u32,
                num_sliding_blocks: room.num_sliding_blocks as u32,
                kv_dtype: KvFormat::Bf16,
            },
            exchange: ExchangeOptions::exact(10_000),
            carrier: Carrier::Frames,
            dense_dtype: DenseFormat::Bf16,
        };
        let transport = local(1, Duration::from_secs(10)).remove(0);
        let taken = rank.take(assignment, Arc::clone(checkpoint), Box::new(transport), Box::new(|_| {}));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(taken).unwrap();
        let prompt = |index: usize, len: u32| {
            let tokens = (0..len).map(|at| (at * 7 + 3) % 500).collect();
            OfflineSequence::new(index, tokens, LIMITS, config)
        };
        Self { runtime, rank, sequences: vec![prompt(0, 30), prompt(1, 7)], sampling, step: 0 }
    }

    fn plan(&mut self, is_known: bool) -> StepPlan {
        self.step += 1;
        let sampling = &self.sampling;
        let slice = |sequence: &mut OfflineSequence| {
            let slice = sequence.take_slice(LIMITS.max_slice_tokens, sampling);
            let tokens = if is_known { slice.tokens.clone() } else { SliceTokens::SampledBefore };
            SequenceSlice { tokens, ..slice }
        };
        let slices = self.sequences.iter_mut().map(slice).collect();
        StepPlan { step: self.step, in_halves: false, home_rows: Vec::new(), slices }
    }

    /// The tokens of each step, in which each waits for the last.
    pub(crate) fn in_turn(&mut self, num_steps: u64) -> Vec<Vec<TokenId>> {
        let step = |_| {
            let plan = self.plan(true);
            let (output, _) = self.runtime.block_on(self.rank.step(0, plan)).unwrap();
            let tokens: Vec<TokenId> = output.samples.iter().map(|sample| sample.token).collect();
            self.sequences.iter_mut().zip(&tokens).for_each(|(sequence, &token)| sequence.push(token));
            tokens
        };
        (0..num_steps).map(step).collect()
    }

    /// The same with each step handed in before the last one is answered.
    pub(crate) fn ahead(&mut self, num_steps: u64) -> Vec<Vec<TokenId>> {
        let plan = self.plan(true);
        let mut running = Box::pin(self.rank.step(0, plan));
        let mut tokens = Vec::new();
        for _ in 1..num_steps {
            // Nobody knows the tokens yet; they keep the places.
            self.sequences.iter_mut().for_each(|sequence| sequence.push(0));
            let plan = self.plan(false);
            let next = Box::pin(self.rank.step(0, plan));
            let (output, _) = self.runtime.block_on(std::mem::replace(&mut running, next)).unwrap();
            tokens.push(output.samples.iter().map(|sample| sample.token).collect());
        }
        let (output, _) = self.runtime.block_on(running).unwrap();
        tokens.push(output.samples.iter().map(|sample| sample.token).collect());
        tokens
    }
}
