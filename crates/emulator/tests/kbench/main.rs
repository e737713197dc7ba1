//! `kbench` on emulated GPUs, of which some hang or break: what it measures means
//! nothing, but no GPU's time is lost to a mistake in it. Called with the word
//! `kbench` first this is the tool itself, which its children and the script
//! `benches/gpu` need.

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]
#![expect(clippy::print_stdout, reason = "it is a harness of its own")]

mod faulty;
mod script;
mod tool;

use chorale_cuda::{Facts, Gpu, GpuError};
use chorale_emulator::{Emulator, Options};
use chorale_kbench::Demands;
use chorale_kbench::bench::{Extent, Geometry, Machine};
use chorale_kbench::command::{self, Stand};
use faulty::{Fault, Faulty};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

/// The kernel that faulty GPUs do not come through.
const FATAL: &str = "selftest_copies";

/// The GPUs, by their number.
const OLD: usize = 0;
const HOPPER: usize = 1;
const HANGS: usize = 2;
const BREAKS: usize = 3;
const LIES: usize = 4;
const CANNOT_OPEN: usize = 5;

struct Emulated;

impl Stand for Emulated {
    fn list(&self) -> Result<Vec<(Facts, String)>, GpuError> {
        let facts = |number: usize| Ok((emulator(number)?.facts().clone(), format!("emulator {number}")));
        (OLD..=CANNOT_OPEN).map(facts).collect()
    }

    fn open(&self, ordinal: usize, one_by_one: bool) -> Result<Machine, GpuError> {
        let gpu = emulator(ordinal)?;
        let gpu: Arc<dyn Gpu> = match ordinal {
            HANGS => Faulty::new(gpu, FATAL, Fault::Hangs),
            BREAKS => Faulty::new(gpu, FATAL, Fault::Breaks),
            LIES => Faulty::new(gpu, FATAL, Fault::Lies),
            CANNOT_OPEN => {
                return Err(GpuError::Driver { call: "cuCtxCreate", reason: "no way in".to_owned() });
            }
            _ => gpu,
        };
        Ok(Machine::emulated(gpu, one_by_one))
    }

    /// The emulator adds products up in f32, one after the other.
    fn tolerance(&self) -> f32 {
        1e-3
    }

    fn demands(&self, _is_quick: bool) -> Demands {
        Demands { num_cases: 2, is_full_size: false, ..Demands::CUDA }
    }

    fn geometry(&self) -> Geometry {
        Geometry {
            hidden: 128,
            heads: 8,
            kv_heads: 1,
            experts: 8,
            top_k: 2,
            vocab: 515,
            window: 32,
            layers: 3,
        }
    }

    fn extent(&self, _is_quick: bool) -> Extent {
        Extent {
            decodes: vec![1, 5],
            operation_prefills: vec![70],
            step_prefills: vec![70],
            context: 96,
            fill_rows: 128,
            steps: 2,
            offload_percents: vec![50],
            offload_layers: 2,
            rotated_bytes: 1 << 19,
            product: 128,
            rounds: 1,
            spare_bytes: 64 << 20,
            ..Extent::full()
        }
    }
}

fn emulator(number: usize) -> Result<Arc<Emulator>, GpuError> {
    let capability = if number == HOPPER { (9, 0) } else { (8, 0) };
    Emulator::new(Options { capability, ..Options::default() })
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let program = arguments.next();
    let mut arguments = arguments.peekable();
    if arguments.next_if(|word| word == "kbench").is_some() {
        return command::run(&Emulated, program.into_iter().chain(arguments));
    }
    let wanted: Vec<String> = arguments.map(|word| word.to_string_lossy().into_owned()).collect();
    let cases: Vec<(&str, fn())> = tool::CASES.iter().chain(&script::CASES).copied().collect();
    for (name, case) in cases {
        let is_wanted = wanted.iter().filter(|word| !word.starts_with('-')).all(|word| name.contains(word));
        if is_wanted && !wanted.iter().any(|word| word == "--ignored" || word == "--list") {
            let started = Instant::now();
            case();
            println!("test {name} ... ok, {:.1} s", started.elapsed().as_secs_f64());
        }
    }
    ExitCode::SUCCESS
}
