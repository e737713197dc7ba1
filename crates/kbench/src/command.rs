//! The command line of `kbench`, over any GPUs: the binary has the driver's, a
//! test has emulated ones.
//!
//! The process that is started opens no GPU. It lets children of the same binary
//! do one item after the other and keeps what they tell: after an item that
//! hangs, or breaks its context, another child goes on with the next.

mod child;
mod events;
mod items;
mod parent;
mod ranks;
mod stand;
mod watchdog;
mod whole;

pub use events::Event;
pub use stand::Stand;

use crate::bench::launches;
use crate::report::{Report, digest};
use anyhow::anyhow;
use chorale_cuda::GpuError;
use clap::Parser;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Checks and measures Chorale's kernels on an NVIDIA GPU
#[derive(Debug, Parser)]
#[command(name = "kbench", version, arg_required_else_help = true)]
pub(crate) struct Arguments {
    /// Check primitives, every operation and whole small models
    #[arg(long)]
    check: bool,
    /// Measure steps of a model of gpt-oss-120b's size, and every kernel
    #[arg(long)]
    bench: bool,
    /// Serve with so many worker processes on this one GPU, over gRPC
    #[arg(long, value_name = "N")]
    ranks: Option<u32>,
    /// With --ranks: once more by NCCL, from this libnccl.so.2, which has to take several ranks
    /// on one GPU; what comes of it is written down and fails nothing
    #[arg(long, value_name = "FILE", requires = "ranks")]
    nccl: Option<PathBuf>,
    /// Let so many ranks of this process exchange what is small by kernels: each on a GPU of
    /// its own where there are as many, else all on this one, where times mean nothing
    #[arg(long, value_name = "N")]
    circle: Option<usize>,
    /// Small shapes and few cases: for tools that slow everything down
    #[arg(long)]
    quick: bool,
    /// Only checks and measurements whose name holds this
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Layers of the whole model; as many as fit, at most 36
    #[arg(long, value_name = "N")]
    layers: Option<usize>,
    /// Which GPU, by the driver's order
    #[arg(long, value_name = "N", default_value_t = 0)]
    device: usize,
    /// Where random numbers begin
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Ends after so many seconds with what is there, and names what is not
    #[arg(long, value_name = "SECONDS", default_value_t = 24 * 3600)]
    budget: u64,
    /// A GPU that does not come back for so many seconds hangs: its kernels are named, and
    /// what it was doing has failed
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    patience: u64,
    /// Do all in this process, for tools that look into one: a kernel that hangs or breaks the
    /// context ends it, with status 4
    #[arg(long)]
    here: bool,
    /// Launch kernels one by one and wait for each: an error names its kernel
    #[arg(long)]
    one_by_one: bool,
    /// A file for results as JSON, whole after each of them
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Print what matters most of such files, and do nothing else
    #[arg(long, value_name = "FILE", num_args = 1..)]
    digest: Vec<PathBuf>,
    /// Print the launches of steps of a model of gpt-oss-120b's size, and do nothing else: it
    /// needs no GPU
    #[arg(long)]
    plan: bool,
    /// A process that kbench itself started
    #[arg(long, hide = true)]
    child: bool,
}

impl Arguments {
    fn patience(&self) -> Duration {
        Duration::from_secs(self.patience)
    }
}

/// Of an absent GPU.
const NO_GPU: u8 = 3;
/// Of a context that is lost where nobody can go on.
const LOST: u8 = 4;

/// How it ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    Well,
    Failed,
    Lost,
}

/// Does what a command line, the program's name first, asks for. A child is started
/// as this process was, with one argument more.
pub fn run(stand: &dyn Stand, arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help goes to where it can be read; there is nobody to tell of a closed pipe.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match attend(stand, &arguments) {
        Ok(Ending::Well) => ExitCode::SUCCESS,
        Ok(Ending::Failed) => ExitCode::FAILURE,
        Ok(Ending::Lost) => ExitCode::from(LOST),
        Err(error) => {
            eprintln!("error: {error:#}");
            let is_absent =
                matches!(error.downcast_ref(), Some(GpuError::Absent { .. } | GpuError::NoKernels { .. }));
            if is_absent { ExitCode::from(NO_GPU) } else { ExitCode::FAILURE }
        }
    }
}

fn attend(stand: &dyn Stand, arguments: &Arguments) -> anyhow::Result<Ending> {
    if !arguments.digest.is_empty() {
        return tell_of(&arguments.digest);
    }
    if arguments.child {
        return child::serve(stand, arguments);
    }
    if arguments.plan {
        launches::print(&stand.geometry()).map_err(|failure| anyhow!("{failure}"))?;
        return Ok(Ending::Well);
    }
    let started = Instant::now();
    let found = stand.list()?;
    for (ordinal, (_, text)) in found.iter().enumerate() {
        eprintln!("GPU {ordinal}: {text}");
    }
    let Some((facts, _)) = found.get(arguments.device) else {
        let reason = format!("there is no GPU {}, there are {}", arguments.device, found.len());
        return Err(GpuError::Absent { reason }.into());
    };
    let items = items::items(stand, arguments, facts);
    let mut report = Report::to_terminal(arguments.json.as_deref());
    let deadline = started + Duration::from_secs(arguments.budget);
    let ending = if arguments.here {
        child::here(stand, arguments, &items, deadline, &mut report)?
    } else {
        parent::run(&items, arguments, deadline, &mut report)?;
        Ending::Well
    };
    if let Some(count) = arguments.ranks {
        ranks::run(count, arguments, deadline, &mut report)?;
    }
    report.end();
    Ok(match ending {
        Ending::Well if !report.is_well() => Ending::Failed,
        other => other,
    })
}

#[expect(clippy::print_stdout, reason = "what it tells of is its purpose")]
fn tell_of(files: &[PathBuf]) -> anyhow::Result<Ending> {
    let mut all = Vec::new();
    for file in files {
        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        match read(file) {
            Ok(results) => all.push((name, results)),
            Err(error) => println!("{}: {error:#}", file.display()),
        }
    }
    let named: Vec<_> = all.iter().map(|(name, results)| (name.as_str(), results)).collect();
    println!("{}", digest(&named));
    Ok(Ending::Well)
}

fn read(file: &Path) -> anyhow::Result<crate::report::Results> {
    Ok(serde_json::from_slice(&std::fs::read(file)?)?)
}
