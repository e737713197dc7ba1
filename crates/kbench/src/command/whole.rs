//! Checks of whole small models on a GPU.

#![expect(clippy::print_stdout, reason = "how near a model is, is worth a line")]

use crate::bench::Machine;
use crate::failure::{Failure, Outcome};
use crate::goldens::{self, Formats, Golden};
use chorale_cuda::{Cuda, CudaOptions, ExpertRoom};
use chorale_device::{DenseDtype, Device, KvDtype};
use chorale_model::checkpoint::Checkpoint;

const PROMPTS: [&str; 4] = ["p1", "p17", "p130", "p300"];
/// Of the continuations.
const NUM_TOKENS: usize = 32;

/// Something that must hold of a model.
type WholeCheck = fn(&Machine, &Golden) -> Outcome;

/// All of them.
pub(super) const WHOLE: [(&str, WholeCheck); 7] = [
    ("logits agree with the portable device", |machine, golden| {
        agree(machine, golden, 400, Formats::default())
    }),
    ("logits agree in slices", |machine, golden| agree(machine, golden, 37, Formats::default())),
    ("logits by weights in eight bits agree", |machine, golden| {
        agree(machine, golden, 100, Formats { dense: DenseDtype::Int8, kv: None })
    }),
    ("logits over keys and values in eight bits agree", |machine, golden| {
        agree(machine, golden, 100, Formats { kv: Some(KvDtype::Fp8), ..Formats::default() })
    }),
    ("logits owe nothing to where experts lie", offload),
    ("greedy continuations go where the golden ones do", continuations),
    ("batch-invariant logits depend on nothing beside them", invariance),
];

fn agree(machine: &Machine, golden: &Golden, slice: usize, formats: Formats) -> Outcome {
    let checkpoint = open(golden)?;
    let right = goldens::portable(golden, (&checkpoint, formats), &PROMPTS)?;
    let room = goldens::limits(slice, if slice < 100 { 16 } else { 64 });
    let distance =
        goldens::agrees(machine.device(), (golden, &checkpoint, formats), (&PROMPTS, &right), room)?;
    println!("       {distance:?}");
    Ok(())
}

fn invariance(machine: &Machine, golden: &Golden) -> Outcome {
    let checkpoint = open(golden)?;
    for &kv_dtype in Cuda::KV_DTYPES {
        let mut device = machine.device();
        device.set_options(CudaOptions { batch_invariant: true, ..CudaOptions::default() });
        let differing = goldens::differing_cuts(device, &checkpoint, kv_dtype)?;
        if differing > 0 {
            return Err(Failure(format!(
                "{kv_dtype:?} keys and values: other bits in {differing} cuts of 3"
            )));
        }
    }
    Ok(())
}

/// A quarter of the experts on the GPU, others read where they are, streamed, or
/// brought there meanwhile.
fn offload(machine: &Machine, golden: &Golden) -> Outcome {
    let checkpoint = open(golden)?;
    let (num_layers, num_experts) = (checkpoint.config().num_layers(), checkpoint.config().num_experts);
    for slice in [3, 100] {
        let limits = goldens::limits(slice, 16);
        let logits = |device: Cuda| {
            let mut engine = goldens::engine(device, (&checkpoint, Formats::default()), limits)?;
            goldens::logits(&mut engine, &golden.prompt(PROMPTS[2])?, limits)
        };
        let whole = logits(machine.device())?;
        let mut sparse = machine.device();
        let room = ExpertRoom { gpu_experts: num_layers * num_experts / 4, ring_experts: 2, num_layers };
        let traffic = sparse.set_expert_room(room);
        let found = logits(sparse)?;
        let counts = traffic.counts();
        println!("       slices of {slice}: {counts:?}");
        if !found.iter().map(|logit| logit.to_bits()).eq(whole.iter().map(|logit| logit.to_bits())) {
            return Err(Failure(format!("slices of {slice}: other bits than with all experts on the GPU")));
        }
        if counts.host_experts == 0 {
            return Err(Failure("no expert lies with the host".to_owned()));
        }
    }
    Ok(())
}

fn continuations(machine: &Machine, golden: &Golden) -> Outcome {
    let checkpoint = open(golden)?;
    for prompt in PROMPTS {
        let room = goldens::limits(64, 16);
        let agreed = goldens::continues(machine.device(), (golden, &checkpoint), prompt, NUM_TOKENS, room)?;
        println!("       {prompt}: {agreed} of {NUM_TOKENS} tokens");
    }
    Ok(())
}

fn open(golden: &Golden) -> Result<Checkpoint, Failure> {
    let folder = tempfile::tempdir()?;
    golden.unpack(folder.path())?;
    // The files are mapped, and live on without their names.
    Ok(Checkpoint::open(folder.path())?)
}
