//! `kbench --check`: primitives first, then every operation, then whole models.

use crate::Arguments;
use chorale_cuda::{Cuda, CudaOptions, Driver, ExpertRoom, Gpu};
use chorale_device::{DenseDtype, Device, KvDtype};
use chorale_kbench::bench::Report;
use chorale_kbench::checks::families;
use chorale_kbench::goldens::{self, Formats, GOLDENS, Golden};
use chorale_kbench::primitives::{GPU_TOLERANCE, PRIMITIVES};
use chorale_kbench::{Demands, Failure, Outcome};
use chorale_model::checkpoint::Checkpoint;
use std::sync::Arc;
use std::time::Instant;

const PROMPTS: [&str; 4] = ["p1", "p17", "p130", "p300"];
/// Of the continuations.
const NUM_TOKENS: usize = 32;

pub(crate) fn run(gpu: &Arc<Driver>, arguments: &Arguments, report: &mut Report) -> anyhow::Result<()> {
    let demands = Demands {
        seed: arguments.seed,
        is_full_size: !arguments.quick,
        num_cases: if arguments.quick { 8 } else { Demands::CUDA.num_cases },
        ..Demands::CUDA
    };
    let is_wanted = |name: &str| name.contains(&arguments.only);
    let shared = Arc::clone(gpu) as Arc<dyn Gpu>;
    for primitive in &PRIMITIVES {
        let is_here = gpu.facts().is_hopper() || !primitive.is_hopper_only;
        if !is_here || !is_wanted(primitive.name) && !is_wanted("primitives") {
            continue;
        }
        let started = Instant::now();
        let found = primitive.run(&shared, GPU_TOLERANCE).map_err(|found| found.to_string());
        report.check("primitives", primitive.name, started.elapsed(), found);
        gpu.wait()?;
    }
    for family in families::<Cuda>() {
        for check in family.checks {
            if !is_wanted(check.name) && !is_wanted(family.name) {
                continue;
            }
            let started = Instant::now();
            let found = check.run(&mut device(gpu), &demands);
            report.check(
                family.name,
                check.name,
                started.elapsed(),
                found.map_err(|found| found.to_string()),
            );
            // After a fault the context is lost, and all that follows would fail alike.
            gpu.wait()?;
        }
    }
    for golden in &GOLDENS {
        if !is_wanted("goldens") && !is_wanted(golden.name) {
            continue;
        }
        for (name, check) in WHOLE {
            let started = Instant::now();
            let found = check(gpu, golden).map_err(|found| found.to_string());
            report.check("goldens", &format!("{}: {name}", golden.name), started.elapsed(), found);
            gpu.wait()?;
        }
    }
    Ok(())
}

fn device(gpu: &Arc<Driver>) -> Cuda {
    Cuda::new(Arc::clone(gpu) as Arc<dyn Gpu>)
}

type WholeCheck = fn(&Arc<Driver>, &Golden) -> Outcome;

/// Checks of a whole model.
const WHOLE: [(&str, WholeCheck); 7] = [
    ("logits agree with the portable device", |gpu, golden| agree(gpu, golden, 400, Formats::default())),
    ("logits agree in slices", |gpu, golden| agree(gpu, golden, 37, Formats::default())),
    ("logits by weights in eight bits agree", |gpu, golden| {
        agree(gpu, golden, 100, Formats { dense: DenseDtype::Int8, kv: None })
    }),
    ("logits over keys and values in eight bits agree", |gpu, golden| {
        agree(gpu, golden, 100, Formats { kv: Some(KvDtype::Fp8), ..Formats::default() })
    }),
    ("logits owe nothing to where experts lie", offload),
    ("greedy continuations go where the golden ones do", continuations),
    ("batch-invariant logits depend on nothing beside them", invariance),
];

fn agree(gpu: &Arc<Driver>, golden: &Golden, slice: usize, formats: Formats) -> Outcome {
    let checkpoint = open(golden)?;
    let right = goldens::portable(golden, (&checkpoint, formats), &PROMPTS)?;
    let room = goldens::limits(slice, if slice < 100 { 16 } else { 64 });
    let distance = goldens::agrees(device(gpu), (golden, &checkpoint, formats), (&PROMPTS, &right), room)?;
    println!("       {distance:?}");
    Ok(())
}

fn invariance(gpu: &Arc<Driver>, golden: &Golden) -> Outcome {
    let checkpoint = open(golden)?;
    for &kv_dtype in Cuda::KV_DTYPES {
        let mut device = device(gpu);
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
fn offload(gpu: &Arc<Driver>, golden: &Golden) -> Outcome {
    let checkpoint = open(golden)?;
    let (num_layers, num_experts) = (checkpoint.config().num_layers(), checkpoint.config().num_experts);
    for slice in [3, 100] {
        let limits = goldens::limits(slice, 16);
        let logits = |device: Cuda| {
            let mut engine = goldens::engine(device, (&checkpoint, Formats::default()), limits)?;
            goldens::logits(&mut engine, &golden.prompt(PROMPTS[2])?, limits)
        };
        let whole = logits(device(gpu))?;
        let mut sparse = device(gpu);
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

fn continuations(gpu: &Arc<Driver>, golden: &Golden) -> Outcome {
    let checkpoint = open(golden)?;
    for prompt in PROMPTS {
        let room = goldens::limits(64, 16);
        let agreed = goldens::continues(device(gpu), (golden, &checkpoint), prompt, NUM_TOKENS, room)?;
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
