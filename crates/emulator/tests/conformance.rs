//! The CUDA device on the emulator, held to what every device is held to: of
//! the generation that all kernels run on and of Hopper, with few multiprocessors
//! and with as many as an H100 has. A kernel that no check launches would first
//! run on a GPU, so that fails, too.

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

use chorale_cuda::{Cuda, Gpu};
use chorale_emulator::{Emulator, Options};
use chorale_kbench::checks::families;
use chorale_kbench::primitives::PRIMITIVES;
use chorale_kbench::{Demands, Ledger, Watched};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// What is drawn at random follows from the first; the second is how many
/// multiprocessors there are, by which kernels are chosen.
const MACHINES: [(u64, u32); 2] = [(1, 4), (2, 132)];

/// On the emulator a kernel takes a thousand times as long as on a GPU, but all
/// products round alike: then the order of additions is all that could differ.
const DEMANDS: Demands = Demands { is_steady: true, num_cases: 8, is_full_size: false, ..Demands::CUDA };

/// Kernels that no operation of a device launches by itself: those of links
/// (tests/one_shot.rs, and the tests of NCCL's link), and what counts experts where
/// some lie with the host (tests/offload.rs).
const OF_OTHERS: [&str; 3] = ["exchange.cu", "one_shot.cu", "count_experts.cu"];

/// The names of kernels, as the files declare them: plainly, or through a macro
/// of the same shape.
fn declared(is_wanted: impl Fn(&str) -> bool) -> BTreeSet<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cuda/kernels");
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let file = path.file_name().unwrap().to_str().unwrap();
        if !file.ends_with(".cu")
            || OF_OTHERS.contains(&file)
            || file.starts_with("selftest")
            || !is_wanted(file)
        {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let declarations = text.lines().filter_map(|line| {
            ["KERNEL(", "LINEAR(", "QKV("].iter().find_map(|word| line.strip_prefix(word))
        });
        names.extend(declarations.filter_map(|rest| rest.split(',').next()).map(str::to_owned));
    }
    assert!(!names.is_empty());
    names
}

/// The emulator adds products up in f32, one after the other.
const TOLERANCE: f32 = 1e-3;

/// Orders of blocks, warps and copies in which primitives are run.
const SEEDS: std::ops::Range<u64> = 1..12;

/// Runs all checks, and says which failed and which kernels were not launched.
fn passes(capability: (u32, u32), is_counted: impl Fn(&str) -> bool) {
    let ledger = Ledger::of_all();
    let mut failures = Vec::new();
    for (seed, num_sms) in MACHINES {
        for family in families() {
            for check in family.checks {
                let options = Options { seed, capability, num_sms, ..Options::default() };
                let gpu = Watched::new(Emulator::new(options).unwrap(), &ledger, false);
                let demands = Demands { seed: 1000 * seed, ..DEMANDS };
                let started = Instant::now();
                let found = check.run(&mut Cuda::new(gpu), &demands);
                let verdict = if found.is_ok() { "ok" } else { "FAILED" };
                eprintln!(
                    "{:7.2} s  {}: {} {verdict}",
                    started.elapsed().as_secs_f64(),
                    family.name,
                    check.name
                );
                let what = format!("{num_sms} multiprocessors, {}: {}", family.name, check.name);
                failures.extend(found.err().map(|failure| format!("{what}: {failure}")));
            }
        }
    }
    let launched = ledger.launched();
    for name in declared(is_counted) {
        if !launched.contains(name.as_str()) {
            failures.push(format!("no check launches {name}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn primitives_do_what_kernels_assume() {
    for (seed, capability) in SEEDS.flat_map(|seed| [(seed, (8, 0)), (seed, (9, 0))]) {
        let gpu = Emulator::new(Options { seed, capability, ..Options::default() }).unwrap();
        let is_hopper = gpu.facts().is_hopper();
        let gpu = gpu as Arc<dyn Gpu>;
        for primitive in PRIMITIVES.iter().filter(|primitive| is_hopper || !primitive.is_hopper_only) {
            primitive
                .run(&gpu, TOLERANCE)
                .unwrap_or_else(|failure| panic!("{}, seed {seed}: {failure}", primitive.name));
        }
    }
}

#[test]
fn the_oldest_generation_passes_with_all_generic_kernels() {
    passes((8, 0), |file| !file.ends_with("_sm90.cu"));
}

#[test]
fn hopper_passes_with_all_its_own_kernels() {
    passes((9, 0), |file| file.ends_with("_sm90.cu"));
}
