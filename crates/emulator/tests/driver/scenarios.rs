//! What the device does over the driver.

use crate::libcuda::open;
use crate::world::World;
use chorale_cuda::{Cuda, Driver, ExpertRoom, Gpu};
use chorale_emulator::{Emulator, Options};
use chorale_kbench::Demands;
use chorale_kbench::checks::families;
use chorale_kbench::goldens::{self, Formats, GOLDENS, Golden, limits};
use chorale_kbench::primitives::PRIMITIVES;
use chorale_model::checkpoint::Checkpoint;
use chorale_plan::SamplingParams;
use std::sync::Arc;

/// The emulator adds products up in f32, one after the other.
const TOLERANCE: f32 = 1e-3;

fn device(gpu: &Arc<Driver>) -> Cuda {
    Cuda::new(Arc::clone(gpu) as Arc<dyn Gpu>)
}

fn checkpoint(golden: &Golden) -> Checkpoint {
    let folder = tempfile::tempdir().unwrap();
    golden.unpack(folder.path()).unwrap();
    // The files are mapped and live on without their names.
    Checkpoint::open(folder.path()).unwrap()
}

fn primitives() {
    let gpu = open();
    let is_hopper = gpu.facts().is_hopper();
    let shared = Arc::clone(&gpu) as Arc<dyn Gpu>;
    for primitive in PRIMITIVES.iter().filter(|primitive| is_hopper || !primitive.is_hopper_only) {
        primitive.run(&shared, TOLERANCE).unwrap_or_else(|found| panic!("{}: {found}", primitive.name));
    }
}

pub(crate) fn primitives_of_ampere() {
    primitives();
}

pub(crate) fn primitives_of_hopper() {
    primitives();
}

/// Some cases of each: tests/conformance.rs has more.
pub(crate) fn operations() {
    let gpu = open();
    let demands = Demands { num_cases: 2, is_full_size: false, ..Demands::CUDA };
    for check in families().into_iter().flat_map(|family| family.checks) {
        check.run(&mut device(&gpu), &demands).unwrap_or_else(|found| panic!("{}: {found}", check.name));
    }
}

/// Decoding replays graphs, each with what the last one left.
pub(crate) fn whole_models() {
    let gpu = open();
    for golden in &GOLDENS {
        let checkpoint = checkpoint(golden);
        let model = (golden, &checkpoint);
        goldens::continues(device(&gpu), model, "p17", 24, limits(64, 16)).unwrap();
    }
    let counters = gpu.counters();
    assert!(counters.graphs_replayed > 0 && counters.graphs_refused == 0, "{counters:?}");
}

pub(crate) fn steps_ahead_of_their_answers() {
    let checkpoint = Arc::new(checkpoint(&GOLDENS[0]));
    let emulated = Options { capability: (9, 0), num_sms: 132, ..Options::default() };
    let seeded = SamplingParams { temperature: 1.0, seed: 11, ..SamplingParams::greedy() };
    for sampling in [SamplingParams::greedy(), seeded] {
        let emulator = Emulator::new(emulated.clone()).unwrap();
        let expected = World::new(emulator, &checkpoint, sampling.clone()).in_turn(16);
        let gpu = open();
        let found = World::new(Arc::clone(&gpu) as Arc<dyn Gpu>, &checkpoint, sampling).ahead(16);
        assert_eq!(found, expected);
        assert!(gpu.counters().graphs_replayed > 0, "{:?}", gpu.counters());
    }
}

/// They are read where they lie, streamed, and change places.
pub(crate) fn experts_that_lie_with_the_host() {
    let golden = &GOLDENS[0];
    let checkpoint = checkpoint(golden);
    let (num_layers, num_experts) = (checkpoint.config().num_layers(), checkpoint.config().num_experts);
    let prompt = golden.prompt("p130").unwrap();
    let gpu = open();
    for slice in [5, 100] {
        let limits = limits(slice, 16);
        let logits = |device: Cuda| {
            let mut engine = goldens::engine(device, (&checkpoint, Formats::default()), limits).unwrap();
            goldens::logits(&mut engine, &prompt, limits).unwrap()
        };
        let whole = logits(device(&gpu));
        let mut sparse = device(&gpu);
        let room = ExpertRoom { gpu_experts: num_layers * num_experts / 4, ring_experts: 2, num_layers };
        let traffic = sparse.set_expert_room(room);
        assert!(logits(sparse) == whole, "slices of {slice}: other bits than with all experts on the GPU");
        let counts = traffic.counts();
        assert!(counts.host_experts > 0, "slices of {slice}: {counts:?}");
    }
}
