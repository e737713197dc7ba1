//! What `CudaOptions::batch_invariant` promises, through the whole engine: a
//! sequence's logits are the same bits whatever shares its steps, however it is
//! cut into slices, and whether steps are computed in halves.

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

use chorale_cuda::{Cuda, CudaOptions};
use chorale_device::KvDtype;
use chorale_emulator::{Emulator, Options};
use chorale_kbench::goldens::{GOLDENS, Golden, differing_cuts};
use chorale_link::Solo;
use chorale_model::checkpoint::Checkpoint;
use chorale_model::offline::{OfflineLimits, OfflineSequence};
use chorale_model::shard::ShardSpec;
use chorale_model::{GptOss, Room};
use chorale_plan::{SamplingParams, SequenceSlice, StepPlan, TokenId};

/// Compute capability and multiprocessors, by which kernels are chosen.
type Kind = ((u32, u32), u32);

const GENERIC: Kind = ((8, 0), 4);
const HOPPER: Kind = ((9, 0), 4);
/// One with more multiprocessors than most matrices have tiles.
const LARGE: Kind = ((9, 0), 132);

fn open(golden: &Golden) -> Checkpoint {
    let folder = tempfile::tempdir().unwrap();
    golden.unpack(folder.path()).unwrap();
    Checkpoint::open(folder.path()).unwrap()
}

fn cuda((capability, num_sms): Kind, batch_invariant: bool) -> Cuda {
    let gpu = Emulator::new(Options { capability, num_sms, ..Options::default() }).unwrap();
    Cuda::with(gpu, CudaOptions { batch_invariant, ..CudaOptions::default() })
}

/// How many ways of cutting and of accompanying a sequence change its logits.
fn differing(golden: usize, (kind, batch_invariant): (Kind, bool), kv_dtype: KvDtype) -> usize {
    differing_cuts(cuda(kind, batch_invariant), &open(&GOLDENS[golden]), kv_dtype).unwrap()
}

#[test]
fn logits_do_not_depend_on_company_nor_on_slices() {
    assert_eq!(differing(1, (GENERIC, true), KvDtype::Bf16), 0);
}

#[test]
fn nor_do_they_on_hopper() {
    assert_eq!(differing(1, (HOPPER, true), KvDtype::Bf16), 0);
}

#[test]
fn nor_do_they_where_matrices_are_small_for_the_gpu() {
    assert_eq!(differing(0, (LARGE, true), KvDtype::Bf16), 0);
}

#[test]
fn nor_do_they_with_keys_and_values_in_eight_bits() {
    assert_eq!(differing(0, (GENERIC, true), KvDtype::Fp8), 0);
    assert_eq!(differing(0, (HOPPER, true), KvDtype::Fp8), 0);
}

/// The option does something, and these tests would see it if it did not.
#[test]
fn without_the_option_they_do() {
    assert!(differing(0, (GENERIC, false), KvDtype::Bf16) > 0);
    assert!(differing(0, (HOPPER, false), KvDtype::Bf16) > 0);
}

const LIMITS: OfflineLimits =
    OfflineLimits { num_sequences: 3, max_tokens: 110, max_slice_tokens: 100, max_rows: 150, block_size: 16 };

/// Tokens and the bits of their log-probabilities, of three sequences that run
/// beside each other.
fn sampled(
    device: Cuda,
    checkpoint: &Checkpoint,
    in_halves: impl Fn(u64) -> bool,
    slice: usize,
) -> Vec<Vec<(TokenId, u32)>> {
    let config = checkpoint.config();
    let mut device = device;
    let link = Solo::new(&mut device, config.num_experts as u32).unwrap();
    let room = Room { has_halves: true, ..LIMITS.room(config, KvDtype::Bf16) };
    let mut engine =
        GptOss::load(device, link, checkpoint, &ShardSpec::whole(config), &room, &mut |_| ()).unwrap();
    let sampling = SamplingParams { num_logprobs: Some(1), ..SamplingParams::greedy() };
    let prompt = |(index, length): (usize, usize)| {
        let tokens = (0..length).map(|at| ((at * at + 31 * index) % 500) as TokenId).collect();
        OfflineSequence::new(index, tokens, LIMITS, config)
    };
    let mut sequences: Vec<OfflineSequence> = [40, 7, 90].into_iter().enumerate().map(prompt).collect();
    let mut sampled = vec![Vec::new(); sequences.len()];
    for step in 1.. {
        let running = sequences.iter_mut().filter(|sequence| sequence.output().len() < 4);
        let slices: Vec<SequenceSlice> =
            running.map(|sequence| sequence.take_slice(slice, &sampling)).collect();
        if slices.is_empty() {
            break;
        }
        let plan = StepPlan { step, in_halves: in_halves(step), home_rows: Vec::new(), slices };
        for sample in engine.step(&plan).unwrap().samples {
            let index = sample.sequence.0 as usize;
            sampled[index].push((sample.token, sample.logprob.unwrap().to_bits()));
            sequences[index].push(sample.token);
        }
    }
    sampled
}

#[test]
fn halves_give_what_the_whole_gives() {
    let checkpoint = open(&GOLDENS[0]);
    for kind in [GENERIC, HOPPER] {
        let whole = sampled(cuda(kind, true), &checkpoint, |_| false, 100);
        assert_eq!(sampled(cuda(kind, true), &checkpoint, |_| true, 100), whole, "{kind:?}");
        assert_eq!(sampled(cuda(kind, true), &checkpoint, |step| step % 2 == 0, 13), whole, "{kind:?}");
    }
}
