//! Steps that are handed in before the tokens of the last one are known give the
//! tokens that steps give which wait; and weights that are asked for before they are
//! wanted give the same logits.

mod world;

use chorale_cuda::{Cuda, CudaOptions};
use chorale_emulator::{Emulator, Options};
use chorale_kbench::goldens::{self, Formats, GOLDENS};
use chorale_model::checkpoint::Checkpoint;
use chorale_plan::SamplingParams;
use std::sync::Arc;
use world::World;

const NUM_STEPS: u64 = 12;

#[test]
fn steps_ahead_of_their_answers_give_the_same_tokens() {
    let folder = tempfile::tempdir().unwrap();
    GOLDENS[0].unpack(folder.path()).unwrap();
    let checkpoint = Arc::new(Checkpoint::open(folder.path()).unwrap());
    let world = |sampling| World::new(Emulator::new(Options::default()).unwrap(), &checkpoint, sampling);
    let seeded = SamplingParams { temperature: 1.0, seed: 11, ..SamplingParams::greedy() };
    for sampling in [SamplingParams::greedy(), seeded] {
        let expected = world(sampling.clone()).in_turn(NUM_STEPS);
        assert_eq!(world(sampling).ahead(NUM_STEPS), expected);
    }
}

#[test]
fn weights_that_are_asked_for_early_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let golden = &GOLDENS[0];
    golden.unpack(folder.path()).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let limits = goldens::limits(3, 16);
    let logits = |ahead_bytes| {
        let options = CudaOptions { ahead_bytes, ..CudaOptions::default() };
        let device = Cuda::with(Emulator::new(Options::default()).unwrap(), options);
        let mut engine = goldens::engine(device, (&checkpoint, Formats::default()), limits).unwrap();
        let logits = goldens::logits(&mut engine, &golden.prompt("p17").unwrap(), limits).unwrap();
        logits.iter().map(|logit| logit.to_bits()).collect::<Vec<u32>>()
    };
    assert!(logits(1 << 20) == logits(0));
}
