//! Experts that do not all fit the GPU: whatever lies with the host, and however
//! late it is copied, the answers are those of a GPU that has them all.

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

use chorale_cuda::{
    Cuda, ExpertCounts, ExpertFill, ExpertRoom, ExpertTraffic, Gpu, GpuError, packed_expert_bytes,
};
use chorale_device::Precision::Half;
use chorale_device::{Choice, Device, ExpertOrigin};
use chorale_emulator::{Emulator, Options};
use chorale_kbench::goldens::{self, GOLDENS, limits};
use chorale_kbench::reference::{Experts, Random, Rows, to_f32};
use chorale_link::Solo;
use chorale_model::GptOss;
use chorale_model::checkpoint::Checkpoint;
use chorale_model::shard::ShardSpec;
use std::sync::Arc;

const HIDDEN: usize = 64;
const INTERMEDIATE: usize = 96;
const NUM_LAYERS: usize = 3;
const NUM_EXPERTS: usize = 8;
const GENERATIONS: [(u32, u32); 2] = [(8, 0), (9, 0)];

fn options(seed: u64) -> Options {
    Options { seed, capability: GENERATIONS[seed as usize % 2], ..Options::default() }
}

/// Two devices with the same layers: one has all on the GPU, the other does not.
struct Pair {
    whole: Cuda,
    sparse: Cuda,
    traffic: Arc<ExpertTraffic>,
    layers: Vec<Experts>,
    /// Of each layer: the experts' numbers, and what the devices hold of them.
    held: Vec<(Vec<usize>, <Cuda as Device>::Experts, <Cuda as Device>::Experts)>,
}

impl Pair {
    fn new(seed: u64, room: ExpertRoom, held: &[usize]) -> Self {
        let random = &mut Random(seed);
        let mut whole = Cuda::new(Emulator::new(options(seed)).unwrap());
        let mut sparse = Cuda::new(Emulator::new(options(seed + 100)).unwrap());
        let traffic = sparse.set_expert_room(room);
        let layers: Vec<Experts> =
            (0..NUM_LAYERS).map(|_| Experts::random(random, NUM_EXPERTS, HIDDEN, INTERMEDIATE)).collect();
        let load = |layer: &Experts| {
            let source = layer.pick(held);
            let whole = whole.experts(source.clone()).unwrap();
            (held.to_vec(), whole, sparse.experts(source).unwrap())
        };
        let held = layers.iter().map(load).collect();
        Self { whole, sparse, traffic, layers, held }
    }

    /// A layer of a step on both: they agree to the last bit.
    fn run(&mut self, layer: usize, rows: &Rows, choices: &[Choice]) {
        let (numbers, whole, sparse) = &self.held[layer];
        let found = outputs(&mut self.sparse, sparse, numbers, rows, choices);
        let expected = outputs(&mut self.whole, whole, numbers, rows, choices);
        assert!(expected.iter().all(|&value| f32::from_bits(value).is_finite()));
        assert!(found == expected, "layer {layer}, {} choices", choices.len());
    }

    /// Steps of so many rows with two choices each, most of them of few experts
    /// that change after a while.
    fn steps(&mut self, random: &mut Random, count: usize, num_rows: usize) {
        for step in 0..count {
            for layer in 0..NUM_LAYERS {
                let numbers = self.held[layer].0.clone();
                let favourite = (step / 60 + layer) % numbers.len();
                let rows = random.rows(num_rows, HIDDEN, 1.0);
                let choices = (0..num_rows).flat_map(|row| {
                    let other = if random.below(8) == 0 { random.below(numbers.len()) } else { 1 };
                    let second = (favourite + other.max(1)) % numbers.len();
                    [favourite, second].map(|index| Choice { row: row as u32, expert: numbers[index] as u32 })
                });
                let choices: Vec<Choice> = choices.collect();
                self.run(layer, &rows, &choices);
            }
        }
    }

    /// Puts another order of experts and some that were elsewhere into a layer.
    fn regroup(&mut self, layer: usize, order: &[ExpertOrigin], added: &[usize]) {
        let (numbers, whole, sparse) = &self.held[layer];
        let source = self.layers[layer].pick(added);
        let numbers = order.iter().map(|origin| match *origin {
            ExpertOrigin::Held(index) => numbers[index],
            ExpertOrigin::Added(index) => added[index],
        });
        let numbers = numbers.collect();
        let whole = self.whole.regroup_experts(whole, order, source.clone()).unwrap();
        let sparse = self.sparse.regroup_experts(sparse, order, source).unwrap();
        self.held[layer] = (numbers, whole, sparse);
    }

    fn counts(&self) -> ExpertCounts {
        self.traffic.counts()
    }
}

fn outputs<D: Device>(
    device: &mut D,
    experts: &D::Experts,
    numbers: &[usize],
    rows: &Rows,
    choices: &[Choice],
) -> Vec<u32>
where
    D::Error: std::fmt::Debug,
{
    let local: Vec<u32> = numbers.iter().map(|&number| number as u32).collect();
    let mut input = device.matrix(rows.len(), HIDDEN, Half).unwrap();
    device.write(&to_f32(rows), &mut input).unwrap();
    let mut groups = device.groups(&local).unwrap();
    device.group_choices(choices, &mut groups).unwrap();
    let mut outputs = device.matrix(choices.len(), HIDDEN, Half).unwrap();
    device.run_experts(&input, &groups, experts, &mut outputs).unwrap();
    device.read(&outputs).unwrap().iter().map(|value| value.to_bits()).collect()
}

fn room(gpu_experts: usize, ring_experts: usize) -> ExpertRoom {
    ExpertRoom { gpu_experts, ring_experts, num_layers: NUM_LAYERS }
}

const ALL: [usize; NUM_EXPERTS] = [0, 1, 2, 3, 4, 5, 6, 7];

#[test]
fn what_is_read_often_comes_to_the_gpu_and_nothing_else_changes() {
    for seed in 1..3 {
        let mut pair = Pair::new(seed, room(8, 0), &ALL);
        let counts = pair.counts();
        // One place is kept free.
        assert_eq!((counts.gpu_experts, counts.host_experts), (7, 17));
        let random = &mut Random(seed);
        pair.steps(random, 59, 2);
        pair.steps(random, 59, 2);
        let before = pair.counts();
        pair.steps(random, 59, 2);
        let counts = pair.counts();
        assert_eq!((counts.gpu_experts, counts.host_experts), (7, 17));
        assert!(counts.moves > 0 && counts.streamed == 0, "{counts:?}");
        let (hits, misses) = (counts.hits - before.hits, counts.misses - before.misses);
        assert!(before.misses > 0 && hits > 2 * misses, "{before:?}, {counts:?}");
    }
}

#[test]
fn nothing_on_the_gpu_is_enough() {
    let mut pair = Pair::new(7, room(0, 0), &ALL);
    pair.steps(&mut Random(7), 40, 3);
    let counts = pair.counts();
    assert_eq!((counts.gpu_experts, counts.hits, counts.moves), (0, 0, 0));
    assert!(counts.misses > 0);
}

#[test]
fn everything_on_the_gpu_stays_there() {
    let mut pair = Pair::new(8, room(100, 2), &ALL);
    pair.steps(&mut Random(8), 40, 3);
    let counts = pair.counts();
    assert_eq!((counts.gpu_experts, counts.host_experts), (24, 0));
    assert_eq!((counts.misses, counts.streamed, counts.moves), (0, 0, 0));
}

#[test]
fn steps_of_many_rows_are_streamed() {
    for (seed, ring) in [(11, 1), (12, 3), (13, 8)] {
        let mut pair = Pair::new(seed, room(6, ring), &ALL);
        let random = &mut Random(seed);
        for round in 0..14 {
            // Of few rows, of many, and again.
            pair.steps(random, 4, 1 + round % 3);
            pair.steps(random, 2, 20 + 10 * (round % 2));
        }
        let counts = pair.counts();
        assert!(counts.streamed > 0 && counts.hits > 0, "ring of {ring}: {counts:?}");
    }
}

#[test]
fn experts_come_and_go_while_others_change_places() {
    for seed in 21..25 {
        let mut pair = Pair::new(seed, room(7, 2), &[0, 1, 2, 3, 4, 5]);
        let random = &mut Random(seed);
        for round in 0..8 {
            pair.steps(random, 9, 2);
            pair.steps(random, 1, 12);
            let layer = round % NUM_LAYERS;
            let numbers = &pair.held[layer].0;
            let stranger = ALL.into_iter().find(|number| !numbers.contains(number)).unwrap();
            let order =
                [ExpertOrigin::Held(5), ExpertOrigin::Held(1), ExpertOrigin::Added(0), ExpertOrigin::Held(3)];
            let rest = [ExpertOrigin::Held(2), ExpertOrigin::Held(4)];
            pair.regroup(layer, &[&order[..], &rest].concat(), &[stranger]);
        }
        pair.steps(random, 40, 2);
        let counts = pair.counts();
        assert_eq!(counts.gpu_experts + counts.host_experts, 18, "{counts:?}");
        assert!(counts.gpu_experts <= 6 && counts.moves > 0, "{counts:?}");
    }
}

#[test]
fn another_model_takes_the_place_of_one_that_is_gone() {
    let gpu = Emulator::new(options(31)).unwrap();
    let mut device = Cuda::new(gpu);
    let traffic = device.set_expert_room(room(6, 1));
    let random = &mut Random(31);
    for (hidden, intermediate) in [(64, 96), (96, 32), (64, 96)] {
        let layer = Experts::random(random, NUM_EXPERTS, hidden, intermediate);
        let held: Vec<_> = (0..NUM_LAYERS).map(|_| device.experts(layer.source.clone()).unwrap()).collect();
        let counts = traffic.counts();
        assert_eq!((counts.gpu_experts, counts.host_experts), (5, 19));
        drop(held);
    }
}

#[test]
fn no_room_with_the_host_is_said() {
    let bytes = packed_expert_bytes(HIDDEN, INTERMEDIATE);
    let gpu = Emulator::new(Options { host_bytes: 12 * bytes, ..options(1) }).unwrap();
    let mut device = Cuda::new(gpu);
    device.set_expert_room(room(6, 0));
    let layer = Experts::random(&mut Random(1), NUM_EXPERTS, HIDDEN, INTERMEDIATE);
    let _first = device.experts(layer.source.clone()).unwrap();
    let refused = device.experts(layer.source).err();
    assert_eq!(refused, Some(GpuError::OutOfHostMemory { bytes: 6 * bytes }));
}

/// What came of a prompt.
struct Found {
    logits: Vec<f32>,
    /// What the loaded model left.
    free_bytes: usize,
    counts: Option<ExpertCounts>,
}

/// A prompt through the whole engine.
fn logits(
    checkpoint: &Checkpoint,
    capability: (u32, u32),
    (prompt, slice): (&[u32], usize),
    set: impl FnOnce(&mut Cuda) -> Option<Arc<ExpertTraffic>>,
) -> Found {
    let config = checkpoint.config();
    let gpu = Emulator::new(Options { capability, ..Options::default() }).unwrap();
    let mut device = Cuda::new(Arc::clone(&gpu) as Arc<dyn Gpu>);
    let traffic = set(&mut device);
    let link = Solo::new(&mut device, config.num_experts as u32).unwrap();
    let limits = limits(slice, 16);
    let seat = limits.room(config, Cuda::KV_DTYPES[0]);
    let spec = ShardSpec::whole(config);
    let mut engine = GptOss::load(device, link, checkpoint, &spec, &seat, &mut |_| ()).unwrap();
    let free_bytes = gpu.free_bytes().unwrap();
    let logits = goldens::logits(&mut engine, prompt, limits).unwrap();
    Found { logits, free_bytes, counts: traffic.map(|traffic| traffic.counts()) }
}

/// The whole engine: logits bit for bit those of a GPU that has all.
#[test]
fn logits_are_those_of_a_gpu_that_has_all() {
    for (golden, capability, prompt, slice) in
        [(&GOLDENS[0], (8, 0), "p130", 37), (&GOLDENS[1], (9, 0), "p17", 3), (&GOLDENS[2], (8, 0), "p17", 20)]
    {
        let folder = tempfile::tempdir().unwrap();
        golden.unpack(folder.path()).unwrap();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let config = checkpoint.config();
        let num_layers = config.num_layers();
        let prompt = golden.prompt(prompt).unwrap();
        let whole = logits(&checkpoint, capability, (&prompt, slice), |_| None);
        // An expert of each layer, and a few.
        let (gpu_experts, ring_experts) = (num_layers + 2, config.num_experts / 2);
        let fixed = |device: &mut Cuda| {
            Some(device.set_expert_room(ExpertRoom { gpu_experts, ring_experts, num_layers }))
        };
        // What is left beside the rest, which is made first: room for some.
        let all_bytes = packed_expert_bytes(config.hidden_size, config.intermediate_size)
            * config.num_experts
            * num_layers;
        let reserve_bytes = (whole.free_bytes + all_bytes / 2) as u64;
        let filled = |device: &mut Cuda| {
            Some(device.fill_with_experts(ExpertFill { num_layers, host_bytes: 1 << 30, reserve_bytes }))
        };
        for (what, found) in [
            ("a fixed room", logits(&checkpoint, capability, (&prompt, slice), fixed)),
            ("what is left", logits(&checkpoint, capability, (&prompt, slice), filled)),
        ] {
            let counts = found.counts.unwrap();
            eprintln!("{}, {what}: {counts:?}", golden.name);
            assert!(found.logits == whole.logits, "{}, {what}", golden.name);
            assert!(counts.host_experts > 0 && counts.gpu_experts > 0, "{what}: {counts:?}");
        }
    }
}
