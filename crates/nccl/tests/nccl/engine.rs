//! Whole models over NCCL: what is sampled does not depend on how many GPUs
//! there are, to the last bit of its log-probability.

use crate::fake::{self, unbound};
use crate::world::{By, PATIENCE, gpu};
use chorale_cuda::Cuda;
use chorale_device::KvDtype;
use chorale_link::{Link, Member, Place, Solo};
use chorale_model::checkpoint::Checkpoint;
use chorale_model::offline::{OfflineLimits, OfflineSequence};
use chorale_model::shard::ShardSpec;
use chorale_model::{GptOss, Room};
use chorale_nccl::{Beginning, Library, NcclLink, bring_up};
use chorale_plan::{
    Carrier, Epoch, ExchangeOptions, Placement, Rank, SamplingParams, SequenceSlice, Shape, StepPlan, TokenId,
};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

const NUM_SEQUENCES: usize = 3;
const NUM_TOKENS: usize = 4;
const LIMITS: OfflineLimits = OfflineLimits {
    num_sequences: NUM_SEQUENCES,
    max_tokens: 48,
    max_slice_tokens: 12,
    max_rows: 36,
    block_size: 16,
};

fn open() -> Checkpoint {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/models/a-small");
    Checkpoint::open(Path::new(folder)).unwrap()
}

/// Experts in turn, every third on all ranks.
fn placement(checkpoint: &Checkpoint, num_ranks: u32) -> Placement {
    let config = checkpoint.config();
    let holders = |expert: u32| match expert % 3 {
        0 => (0..num_ranks).map(Rank).collect(),
        _ => vec![Rank(expert % num_ranks)],
    };
    let layer: Vec<Vec<Rank>> = (0..config.num_experts as u32).map(holders).collect();
    Placement { version: 0, layers: vec![layer; config.num_layers()] }
}

/// A token, and the bits of its log-probability.
type Sampled = (TokenId, u32);

/// Generates at a rank's home; what others sample is not known here, and no
/// matter: their rows only are.
fn generate<L: Link<Cuda>>(
    engine: &mut GptOss<Cuda, L>,
    checkpoint: &Checkpoint,
    (shape, rank, has_halves): (Shape, Rank, bool),
    check: impl Fn(&GptOss<Cuda, L>, &StepPlan),
) -> BTreeMap<u64, Vec<Sampled>> {
    let config = checkpoint.config();
    let home = |index: usize| Rank(index as u32 % shape.data_parallel_size * shape.tensor_parallel_size);
    let prompt = |index: usize| (0..9 + 11 * index).map(|at| ((at * at + index) % 500) as TokenId).collect();
    let mut sequences: Vec<OfflineSequence> =
        (0..NUM_SEQUENCES).map(|index| OfflineSequence::new(index, prompt(index), LIMITS, config)).collect();
    let sampling = SamplingParams { num_logprobs: Some(1), ..SamplingParams::greedy() };
    let mut sampled: BTreeMap<u64, Vec<Sampled>> = BTreeMap::new();
    for step in 1.. {
        let unfinished = sequences.iter_mut().enumerate();
        let unfinished = unfinished.filter(|(_, sequence)| sequence.output().len() < NUM_TOKENS);
        let slices: Vec<SequenceSlice> = unfinished
            .map(|(index, sequence)| SequenceSlice {
                home: home(index),
                ..sequence.take_slice(12, &sampling)
            })
            .collect();
        if slices.is_empty() {
            break;
        }
        // Now one way, now the other.
        let in_halves = has_halves && step % 2 == 0;
        let ends: Vec<usize> = slices
            .iter()
            .filter(|slice| slice.sample.is_some())
            .map(|slice| slice.sequence.0 as usize)
            .collect();
        let plan = StepPlan { step, in_halves, home_rows: Vec::new(), slices }.part_of(shape, rank);
        check(engine, &plan);
        let output = engine.step(&plan).unwrap();
        let mut own: BTreeMap<usize, TokenId> = BTreeMap::new();
        for sample in output.samples {
            let logprob = sample.logprob.unwrap();
            sampled.entry(sample.sequence.0).or_default().push((sample.token, logprob.to_bits()));
            own.insert(sample.sequence.0 as usize, sample.token);
        }
        for index in ends {
            sequences[index].push(own.get(&index).copied().unwrap_or(0));
        }
    }
    sampled
}

/// What one GPU samples for one of `num_homes` homes.
fn alone(
    checkpoint: &Checkpoint,
    num_homes: u32,
    home: u32,
    has_halves: bool,
) -> BTreeMap<u64, Vec<Sampled>> {
    let config = checkpoint.config();
    let mut device = gpu(50);
    let link = Solo::new(&mut device, config.num_experts as u32).unwrap();
    let spec = ShardSpec::of(Shape::SOLO, Rank(0), &Placement::solo(config.num_layers(), config.num_experts));
    let room = Room { has_halves, ..LIMITS.room(config, KvDtype::Bf16) };
    let mut engine = GptOss::load(device, link, checkpoint, &spec, &room, &mut |_| ()).unwrap();
    let homes = Shape { tensor_parallel_size: 1, data_parallel_size: num_homes, num_ranks: num_homes };
    generate(&mut engine, checkpoint, (homes, Rank(home), has_halves), |_, _| ())
}

fn rank(
    (library, by): (&Arc<Library>, By),
    checkpoint: &Checkpoint,
    (shape, rank, has_halves): (Shape, Rank, bool),
    mut transport: chorale_link::LocalTransport,
) -> BTreeMap<u64, Vec<Sampled>> {
    let config = checkpoint.config();
    let placement = placement(checkpoint, shape.num_ranks);
    let spec = ShardSpec::of(shape, rank, &placement);
    let epoch = Epoch(1);
    let exchange = ExchangeOptions {
        overlap_min_rows: has_halves.then_some(2),
        ..ExchangeOptions::exact(PATIENCE.as_millis() as u32)
    };
    let place = Place {
        epoch,
        shape,
        rank,
        exchange,
        carrier: Carrier::Nccl,
        num_layers: config.num_layers(),
        num_experts: config.num_experts,
        top_k: config.experts_per_token,
        hidden_size: config.hidden_size,
        max_rows: LIMITS.max_rows,
    };
    let mut device = gpu(u64::from(rank.0));
    let comms =
        bring_up(&mut transport, library, Beginning { epoch, shape, rank, timeout: PATIENCE }, &unbound())
            .unwrap();
    let circles = by.links(library).circles(&mut device, &mut transport, &place).unwrap();
    let link = NcclLink::new(&mut device, comms, Box::new(transport), place, placement).unwrap();
    let link = link.with_circles(circles);
    let num_homes = shape.data_parallel_size as usize;
    let room = Room { num_homes, has_halves, ..LIMITS.room(config, KvDtype::Bf16) };
    let mut engine = GptOss::load(device, link, checkpoint, &spec, &room, &mut |_| ()).unwrap();
    generate(&mut engine, checkpoint, (shape, rank, has_halves), |engine, plan| {
        assert_eq!(engine.link().check_plan(plan), Ok(()));
    })
}

#[test]
fn what_is_sampled_does_not_depend_on_how_many_gpus_there_are() {
    let library = fake::open(&[]);
    let checkpoint = open();
    for ((tensor_parallel_size, data_parallel_size, num_ranks), has_halves) in [
        ((2, 1, 2), true),
        ((1, 2, 2), true),
        ((1, 1, 2), false),
        ((2, 2, 4), true),
        ((2, 2, 4), false),
        ((1, 3, 3), false),
        ((2, 1, 3), true),
    ] {
        let shape = Shape { tensor_parallel_size, data_parallel_size, num_ranks };
        let expected: Vec<_> = (0..data_parallel_size)
            .map(|home| alone(&checkpoint, data_parallel_size, home, has_halves))
            .collect();
        assert!(expected.iter().flat_map(BTreeMap::values).all(|tokens| tokens.len() == NUM_TOKENS));
        // Without halves, what NCCL brings is known from single layers.
        let ways: &[By] = if has_halves { &[By::Nccl, By::KERNELS] } else { &[By::KERNELS] };
        for &by in ways {
            let transports = chorale_link::local(num_ranks, PATIENCE);
            let ranks: Vec<_> = std::thread::scope(|scope| {
                let (library, checkpoint) = (&library, &checkpoint);
                let ranks = shape.ranks().zip(transports);
                let ranks: Vec<_> = ranks
                    .map(|(id, transport)| {
                        scope.spawn(move || {
                            rank((library, by), checkpoint, (shape, id, has_halves), transport)
                        })
                    })
                    .collect();
                ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
            });
            // All ranks of a group draw alike.
            for (id, sampled) in shape.ranks().zip(ranks) {
                let home = shape.group(id).map(|group| group.start / tensor_parallel_size);
                let own = home.map(|home| expected[home as usize].clone()).unwrap_or_default();
                assert_eq!(sampled, own, "{id:?} of {shape:?}, in halves: {has_halves}, {by:?}");
            }
        }
    }
}
