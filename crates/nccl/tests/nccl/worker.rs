//! Ranks as workers run them: their coordinator says that NCCL carries, and the
//! rank's thread does the rest.

use crate::fake;
use crate::world::PATIENCE;
use chorale_cuda::Cuda;
use chorale_emulator::{Emulator, Options};
use chorale_link::{LocalAbort, LocalTransport};
use chorale_model::checkpoint::Checkpoint;
use chorale_nccl::{Library, NcclLinks};
use chorale_plan::{
    Assignment, BlockId, BlockTable, Carrier, DenseFormat, Epoch, ExchangeOptions, KvFormat, Placement,
    Rank as RankId, Room, SamplingParams, SequenceId, SequenceSlice, Shape, SliceTokens, StepOutput,
    StepPlan,
};
use chorale_worker::{Rank, RankError};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

const BLOCK_SIZE: u32 = 16;

fn checkpoint() -> Arc<Checkpoint> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/models/a-small");
    Arc::new(Checkpoint::open(Path::new(folder)).unwrap())
}

fn assignment(
    checkpoint: &Checkpoint,
    epoch: u64,
    shape: Shape,
    rank: RankId,
    carrier: Carrier,
) -> Assignment {
    let config = checkpoint.config();
    let holders = (0..config.num_experts as u32).map(|expert| vec![RankId(expert % shape.num_ranks)]);
    Assignment {
        epoch: Epoch(epoch),
        shape,
        rank,
        addresses: Vec::new(),
        placement: Placement { version: 0, layers: vec![holders.collect(); config.num_layers()] },
        room: Room {
            max_step_tokens: 16,
            max_step_slices: 2,
            block_size_tokens: BLOCK_SIZE,
            num_full_blocks: 8,
            num_sliding_blocks: 8,
            kv_dtype: KvFormat::Bf16,
        },
        exchange: ExchangeOptions::exact(PATIENCE.as_millis() as u32),
        carrier,
        dense_dtype: DenseFormat::Bf16,
    }
}

fn plan(step: u64) -> StepPlan {
    let tokens = vec![3, 14, 15, 9, 2, 6];
    let blocks = (0..(tokens.len() as u32).div_ceil(BLOCK_SIZE)).map(BlockId).collect();
    let table = BlockTable { first: 0, blocks };
    let slice = SequenceSlice {
        sequence: SequenceId(1),
        home: RankId(0),
        tokens: SliceTokens::Known(tokens),
        num_computed: 0,
        full_blocks: table.clone(),
        sliding_blocks: table,
        sample: Some(SamplingParams { num_logprobs: Some(1), ..SamplingParams::greedy() }),
    };
    StepPlan { step, in_halves: false, home_rows: Vec::new(), slices: vec![slice] }
}

struct World {
    runtime: Runtime,
    checkpoint: Arc<Checkpoint>,
    ranks: Vec<Rank>,
    gpus: Vec<Arc<Emulator>>,
}

impl World {
    fn new(library: &Arc<Library>, num_ranks: u32) -> Self {
        let gpu = |number: u32| {
            let options = Options { seed: number.into(), memory_bytes: 256 << 20, ..Options::default() };
            Emulator::new(options).unwrap()
        };
        let gpus: Vec<Arc<Emulator>> = (0..num_ranks).map(gpu).collect();
        let start = |gpu: &Arc<Emulator>| {
            let device = Cuda::new(Arc::<Emulator>::clone(gpu));
            Rank::start_with(device, Box::new(NcclLinks::new(Arc::clone(library)))).unwrap()
        };
        let ranks = gpus.iter().map(start).collect();
        Self { runtime: Runtime::new().unwrap(), checkpoint: checkpoint(), ranks, gpus }
    }

    /// All ranks take their places; gives what ends the epoch.
    fn take(&self, epoch: u64, shape: Shape, carrier: Carrier) -> Result<LocalAbort, RankError> {
        let transports: Vec<LocalTransport> = chorale_link::local(shape.num_ranks, PATIENCE);
        let abort = transports[0].abort_handle();
        let taking: Vec<_> = shape
            .ranks()
            .zip(&self.ranks)
            .zip(transports)
            .map(|((id, rank), transport)| {
                let assignment = assignment(&self.checkpoint, epoch, shape, id, carrier);
                rank.take(assignment, Arc::clone(&self.checkpoint), Box::new(transport), Box::new(|_| ()))
            })
            .collect();
        taking.into_iter().try_for_each(|taking| self.runtime.block_on(taking))?;
        Ok(abort)
    }

    fn step(&self, shape: Shape, step: u64) -> Vec<Result<StepOutput, RankError>> {
        let plan = plan(step);
        let steps: Vec<_> =
            shape.ranks().zip(&self.ranks).map(|(id, rank)| rank.step(0, plan.part_of(shape, id))).collect();
        steps.into_iter().map(|step| Ok(self.runtime.block_on(step)?.0)).collect()
    }
}

impl Drop for World {
    /// The test ends after the ranks' threads, which have the GPUs' memory.
    fn drop(&mut self) {
        self.ranks.clear();
        let deadline = Instant::now() + PATIENCE;
        while self.gpus.iter().any(|gpu| Arc::strong_count(gpu) > 1) && Instant::now() < deadline {
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }
}

#[test]
fn ranks_compute_alike_whatever_carries() {
    let library = fake::open(&[]);
    let alone = World::new(&library, 1);
    alone.take(1, Shape::SOLO, Carrier::Frames).unwrap();
    let expected = alone.step(Shape::SOLO, 1).remove(0).unwrap();
    assert_eq!(expected.samples.len(), 1);

    let world = World::new(&library, 3);
    let shape = |tensor_parallel_size, data_parallel_size, num_ranks| Shape {
        tensor_parallel_size,
        data_parallel_size,
        num_ranks,
    };
    // One epoch after another on the same ranks, which take new communicators.
    let epochs =
        [(shape(2, 1, 2), Carrier::Nccl), (shape(2, 1, 2), Carrier::Frames), (shape(1, 2, 3), Carrier::Nccl)];
    for (epoch, (shape, carrier)) in (1..).zip(epochs) {
        world.take(epoch, shape, carrier).unwrap();
        for step in 1..3 {
            let mut outputs = world.step(shape, step).into_iter();
            let first = outputs.next().unwrap().unwrap();
            assert_eq!(first.samples, expected.samples, "{shape:?} by {carrier:?}");
            // Only the first of a group tells, and the other home has nothing to.
            assert!(outputs.all(|output| output.unwrap().samples.is_empty()));
        }
        // The plan's rows are held against the slices before anything is computed.
        if carrier == Carrier::Nccl {
            let odd = StepPlan { home_rows: vec![1; 9], ..plan(3).part_of(shape, RankId(0)) };
            let refused = world.runtime.block_on(world.ranks[0].step(0, odd));
            assert!(matches!(refused, Err(RankError::Refused { .. })), "{refused:?}");
        }
    }
}

#[test]
fn a_step_whose_epoch_ends_is_lost_at_once() {
    let library = fake::open(&[]);
    let world = World::new(&library, 2);
    let shape = Shape { tensor_parallel_size: 1, data_parallel_size: 1, num_ranks: 2 };
    let abort = world.take(1, shape, Carrier::Nccl).unwrap();
    // The other rank is never told of the step.
    let step = world.ranks[0].step(0, plan(1).part_of(shape, RankId(0)));
    std::thread::park_timeout(Duration::from_millis(300));
    abort.abort();
    let lost = world.runtime.block_on(step).unwrap_err();
    assert!(matches!(&lost, RankError::Lost { blamed: None, reason } if reason.contains("over")), "{lost:?}");
    // And the ranks go on in the next one.
    world.take(2, shape, Carrier::Nccl).unwrap();
    assert!(world.step(shape, 1).into_iter().all(|output| output.is_ok()));
}
