//! The golden checkpoints through the whole engine, on the CUDA device and the
//! emulator: alone, on two ranks, and beside a rank of the portable device.

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

use chorale_cuda::Cuda;
use chorale_device::{Cpu, DenseDtype, Device, KvDtype};
use chorale_emulator::{Emulator, Options};
use chorale_kbench::goldens::{self, Bar, Distance, Formats, GOLDENS, Golden, limits};
use chorale_link::{LocalTransport, Mesh, Place, local};
use chorale_model::checkpoint::Checkpoint;
use chorale_model::offline::OfflineLimits;
use chorale_model::shard::{ShardSpec, split};
use chorale_model::{GptOss, Room};
use chorale_plan::{Carrier, Epoch, ExchangeOptions, Placement, Rank, Shape, TokenId};
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

const PROMPTS: [&str; 4] = ["p1", "p17", "p130", "p300"];
const GENERATIONS: [(u32, u32); 2] = [(8, 0), (9, 0)];

fn cuda(capability: (u32, u32)) -> Cuda {
    Cuda::new(Emulator::new(Options { capability, ..Options::default() }).unwrap())
}

fn open(golden: &Golden) -> Checkpoint {
    let folder = tempfile::tempdir().unwrap();
    golden.unpack(folder.path()).unwrap();
    // The files are mapped and live on without their names.
    Checkpoint::open(folder.path()).unwrap()
}

fn agrees(golden: &Golden) {
    let checkpoint = open(golden);
    let formats = Formats::default();
    let right = goldens::portable(golden, (&checkpoint, formats), &PROMPTS).unwrap();
    for capability in GENERATIONS {
        // Whole, and in pieces that leave pages and tiles half full.
        for (slice, block_size) in [(400, 64), (37, 16)] {
            let started = Instant::now();
            let room = limits(slice, block_size);
            let model = (golden, &checkpoint, formats);
            let distance = goldens::agrees(cuda(capability), model, (&PROMPTS, &right), room);
            let distance = distance.unwrap_or_else(|failure| panic!("{capability:?}: {failure}"));
            eprintln!(
                "{} {capability:?}, slices of {slice}: {distance:?} in {:.1} s",
                golden.name,
                started.elapsed().as_secs_f64()
            );
        }
    }
}

#[test]
fn a_small_agrees() {
    agrees(&GOLDENS[0]);
}

#[test]
fn b_awkward_agrees() {
    agrees(&GOLDENS[1]);
}

#[test]
fn c_ratio_agrees() {
    agrees(&GOLDENS[2]);
}

/// Weights in eight bits cost the logits something, but every device the same.
#[test]
fn weights_in_eight_bits_agree() {
    agree_in(&GOLDENS[1], Formats { dense: DenseDtype::Int8, ..Formats::default() });
}

/// So do keys and values: what pages keep has a sixteenth of room to fall to
/// either side.
#[test]
fn keys_and_values_in_eight_bits_agree() {
    agree_in(&GOLDENS[2], Formats { kv: Some(KvDtype::Fp8), ..Formats::default() });
}

/// Emulated GPUs agree with the portable device that keeps the same formats.
fn agree_in(golden: &Golden, formats: Formats) {
    let checkpoint = open(golden);
    let prompts = ["p17", "p130"];
    let right = goldens::portable(golden, (&checkpoint, formats), &prompts).unwrap();
    for (capability, slice) in [((8, 0), 37), ((9, 0), 400)] {
        let model = (golden, &checkpoint, formats);
        let distance =
            goldens::agrees(cuda(capability), model, (&prompts, &right), limits(slice, 16)).unwrap();
        eprintln!("{} {capability:?}, {formats:?}: {distance:?}", golden.name);
    }
}

#[test]
fn greedy_continuations_go_where_the_golden_ones_do() {
    for golden in &GOLDENS {
        let checkpoint = open(golden);
        for (capability, prompt, count) in [((8, 0), "p130", 24), ((9, 0), "p17", 24)] {
            let room = limits(64, 16);
            let agreed =
                goldens::continues(cuda(capability), (golden, &checkpoint), prompt, count, room).unwrap();
            eprintln!("{} {prompt}: {agreed} of {count} tokens", golden.name);
        }
    }
}

/// Experts in even runs, the first ones on all ranks.
fn placement(checkpoint: &Checkpoint, num_ranks: usize) -> Placement {
    let config = checkpoint.config();
    let holders = |expert: usize| {
        let holds =
            |&rank: &usize| expert < 2 || split(config.num_experts, num_ranks, rank).contains(&expert);
        (0..num_ranks).filter(holds).map(|rank| Rank(rank as u32)).collect()
    };
    let layer: Vec<Vec<Rank>> = (0..config.num_experts).map(holders).collect();
    Placement { version: 0, layers: vec![layer; config.num_layers()] }
}

/// One rank's logits of a prompt, all ranks at once.
fn rank_logits<D: Device>(
    mut device: D,
    (checkpoint, transport): (&Checkpoint, LocalTransport),
    (shape, rank): (Shape, Rank),
    (prompt, room): (&[TokenId], OfflineLimits),
) -> Vec<f32> {
    let config = checkpoint.config();
    let placement = placement(checkpoint, shape.num_ranks as usize);
    let spec = ShardSpec::of(shape, rank, &placement);
    let place = Place {
        epoch: Epoch(1),
        shape,
        rank,
        exchange: ExchangeOptions::exact(60_000),
        carrier: Carrier::Frames,
        num_layers: config.num_layers(),
        num_experts: config.num_experts,
        top_k: config.experts_per_token,
        hidden_size: config.hidden_size,
        max_rows: room.max_rows,
    };
    let link = Mesh::new(&mut device, transport, place, placement).unwrap();
    let seat = Room { num_homes: shape.data_parallel_size as usize, ..room.room(config, D::KV_DTYPES[0]) };
    let mut engine = GptOss::load(device, link, checkpoint, &spec, &seat, &mut |_| ()).unwrap();
    goldens::logits(&mut engine, prompt, room).unwrap()
}

const TWO_TOGETHER: Shape = Shape { tensor_parallel_size: 2, data_parallel_size: 1, num_ranks: 2 };
const TWO_HOMES: Shape = Shape { tensor_parallel_size: 1, data_parallel_size: 2, num_ranks: 2 };

/// The logits of two ranks, the second of which may be of another kind.
fn two_ranks<D: Device>(
    golden: &Golden,
    checkpoint: &Checkpoint,
    shape: Shape,
    other: impl FnOnce() -> D + Send,
) -> [Vec<f32>; 2] {
    let room = limits(64, 16);
    let prompt = golden.prompt("p130").unwrap();
    let mut transports = local(2, Duration::from_secs(60)).into_iter();
    let (first, second) = (transports.next().unwrap(), transports.next().unwrap());
    let prompt = &prompt;
    std::thread::scope(|scope| {
        let first = scope
            .spawn(move || rank_logits(cuda((8, 0)), (checkpoint, first), (shape, Rank(0)), (prompt, room)));
        let second =
            scope.spawn(move || rank_logits(other(), (checkpoint, second), (shape, Rank(1)), (prompt, room)));
        [first.join().unwrap(), second.join().unwrap()]
    })
}

fn within_the_bar(golden: &Golden, checkpoint: &Checkpoint, found: &[f32], what: &str) {
    let right = goldens::portable(golden, (checkpoint, Formats::default()), &["p130"]).unwrap();
    let distance = Distance::between(found, &right[0], checkpoint.config().vocab_size).unwrap();
    eprintln!("{} {what}: {distance:?}", golden.name);
    Bar::of(golden, &["p130"]).unwrap().holds(&distance, || what.to_owned()).unwrap();
}

#[test]
fn two_ranks_that_split_the_attention_agree_with_each_other_and_the_portable_device() {
    for golden in &GOLDENS {
        let checkpoint = open(golden);
        let [first, second] = two_ranks(golden, &checkpoint, TWO_TOGETHER, || cuda((8, 0)));
        assert!(first == second, "{}: both hold the same logits", golden.name);
        within_the_bar(golden, &checkpoint, &first, "two ranks");
    }
}

/// Each home routes its own rows, so a portable rank may compute experts for a
/// CUDA rank and the other way round.
#[test]
fn a_rank_computes_beside_one_of_another_kind() {
    let golden = &GOLDENS[1];
    let checkpoint = open(golden);
    let cpu = || Cpu::new(NonZeroUsize::new(1)).unwrap();
    let [first, second] = two_ranks(golden, &checkpoint, TWO_HOMES, cpu);
    within_the_bar(golden, &checkpoint, &first, "the CUDA rank");
    within_the_bar(golden, &checkpoint, &second, "the portable rank");
}
