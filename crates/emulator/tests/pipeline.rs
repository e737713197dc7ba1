//! Steps that are handed in before the tokens of the last one are known: they
//! give the tokens that steps give which wait.

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

use chorale_cuda::Cuda;
use chorale_device::KvDtype;
use chorale_emulator::{Emulator, Options};
use chorale_kbench::goldens::GOLDENS;
use chorale_link::local;
use chorale_model::checkpoint::Checkpoint;
use chorale_model::offline::{OfflineLimits, OfflineSequence};
use chorale_plan::{
    Assignment, Carrier, DenseFormat, Epoch, ExchangeOptions, KvFormat, Placement, Rank as RankId, Room,
    RowFormat, SamplingParams, SequenceSlice, Shape, SliceTokens, StepPlan, TokenId,
};
use chorale_worker::Rank;
use std::sync::Arc;
use std::time::Duration;

const LIMITS: OfflineLimits =
    OfflineLimits { num_sequences: 2, max_tokens: 80, max_slice_tokens: 40, max_rows: 64, block_size: 16 };
const NUM_STEPS: u64 = 12;

/// A rank on an emulated GPU, and its sequences.
struct World {
    runtime: tokio::runtime::Runtime,
    rank: Rank,
    sequences: Vec<OfflineSequence>,
    sampling: SamplingParams,
    step: u64,
}

impl World {
    fn new(checkpoint: &Arc<Checkpoint>, sampling: SamplingParams) -> Self {
        let rank = Rank::start(Cuda::new(Emulator::new(Options::default()).unwrap())).unwrap();
        let config = checkpoint.config();
        let room = LIMITS.room(config, KvDtype::Bf16);
        let assignment = Assignment {
            epoch: Epoch(1),
            shape: Shape::SOLO,
            rank: RankId(0),
            addresses: Vec::new(),
            placement: Placement {
                version: 0,
                layers: vec![vec![vec![RankId(0)]; config.num_experts]; config.num_layers()],
            },
            room: Room {
                max_step_tokens: room.limits.max_rows as u32,
                max_step_slices: room.limits.max_slices as u32,
                block_size_tokens: room.block_size as u32,
                num_full_blocks: room.num_full_blocks as u32,
                num_sliding_blocks: room.num_sliding_blocks as u32,
                kv_dtype: KvFormat::Bf16,
            },
            exchange: ExchangeOptions {
                timeout_ms: 10_000,
                dispatch: RowFormat::F32,
                fast_combine: false,
                overlap_min_rows: None,
            },
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
    fn in_turn(&mut self) -> Vec<Vec<TokenId>> {
        let step = |_| {
            let plan = self.plan(true);
            let (output, _) = self.runtime.block_on(self.rank.step(0, plan)).unwrap();
            let tokens: Vec<TokenId> = output.samples.iter().map(|sample| sample.token).collect();
            self.sequences.iter_mut().zip(&tokens).for_each(|(sequence, &token)| sequence.push(token));
            tokens
        };
        (0..NUM_STEPS).map(step).collect()
    }

    /// The same with each step handed in before the last one is answered.
    fn ahead(&mut self) -> Vec<Vec<TokenId>> {
        let plan = self.plan(true);
        let mut running = Box::pin(self.rank.step(0, plan));
        let mut tokens = Vec::new();
        for _ in 1..NUM_STEPS {
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

#[test]
fn steps_ahead_of_their_answers_give_the_same_tokens() {
    let folder = tempfile::tempdir().unwrap();
    GOLDENS[0].unpack(folder.path()).unwrap();
    let checkpoint = Arc::new(Checkpoint::open(folder.path()).unwrap());
    let seeded = SamplingParams { temperature: 1.0, seed: 11, ..SamplingParams::greedy() };
    for sampling in [SamplingParams::greedy(), seeded] {
        let expected = World::new(&checkpoint, sampling.clone()).in_turn();
        assert_eq!(World::new(&checkpoint, sampling).ahead(), expected);
    }
}
