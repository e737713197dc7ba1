//! `kbench`: checks and measures the CUDA device on a machine that needs no more
//! than NVIDIA's driver. Ends with 0 if all is well, 1 if a check or a
//! measurement failed, 2 if it was called wrongly, 3 where there is no GPU.

#![expect(clippy::print_stdout, reason = "its tables are its purpose")]

mod checking;
mod ranks;

use chorale_cuda::{Driver, Gpu, GpuError, Options, probe};
use chorale_kbench::bench::{self, Extent, Geometry, Machine, Measurement, Report};
use chorale_kbench::circle;
use clap::Parser;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

/// Checks and measures Chorale's kernels on an NVIDIA GPU
#[derive(Debug, Parser)]
#[command(name = "kbench", version, arg_required_else_help = true)]
struct Arguments {
    /// Check primitives, every operation and whole small models
    #[arg(long)]
    check: bool,
    /// Measure every kernel, and steps of a model of gpt-oss-120b's size
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
    /// A folder for results as JSON
    #[arg(long, value_name = "DIR")]
    json: Option<PathBuf>,
}

/// Of an absent GPU.
const NO_GPU: u8 = 3;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            let is_absent =
                matches!(error.downcast_ref(), Some(GpuError::Absent { .. } | GpuError::NoKernels { .. }));
            if is_absent { ExitCode::from(NO_GPU) } else { ExitCode::FAILURE }
        }
    }
}

/// Does all that was asked for; true if nothing failed.
fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let found = probe().map_err(GpuError::from)?;
    for (ordinal, found) in found.iter().enumerate() {
        println!("GPU {ordinal}: {} at {}, {}", found.facts.name, found.bus, found.uuid);
    }
    let started = Instant::now();
    let gpu = Driver::open(arguments.device, &Options::default())?;
    let opened_in = started.elapsed();
    let mut report = Report::new(gpu.facts(), gpu.kernels().len(), opened_in);
    if arguments.check {
        checking::run(&gpu, arguments, &mut report)?;
    }
    if arguments.bench {
        let machine = Machine::real(Arc::clone(&gpu));
        bench::run(&machine, &Geometry::GPT_OSS_120B, &extent(arguments), &mut report);
    }
    if let Some(count) = arguments.circle {
        exchange(count, (&gpu, found.len()), arguments, &mut report)?;
    }
    // The context keeps memory that workers on the same GPU need.
    drop(gpu);
    if let Some(count) = arguments.ranks {
        ranks::run(count, arguments, &mut report)?;
    }
    report.print();
    if let Some(folder) = &arguments.json {
        report.write(folder)?;
    }
    Ok(report.is_well())
}

/// Ranks of this process exchange with each other.
fn exchange(
    count: usize,
    (gpu, num_gpus): (&Arc<Driver>, usize),
    arguments: &Arguments,
    report: &mut Report,
) -> anyhow::Result<()> {
    let has_each = num_gpus >= count;
    let mut gpus: Vec<Arc<dyn Gpu>> = vec![Arc::<Driver>::clone(gpu)];
    for other in (0..).filter(|&ordinal| ordinal != arguments.device || !has_each).take(count.max(1) - 1) {
        let ordinal = if has_each { other } else { arguments.device };
        gpus.push(Driver::open(ordinal, &Options::default())?);
    }
    let whose = if has_each { "a GPU each" } else { "one GPU, so times mean nothing" };
    let started = Instant::now();
    let found = circle::run(&gpus, circle::EXCHANGES);
    for exchanged in found.iter().flatten() {
        report.measured(Measurement {
            what: "small exchange".to_owned(),
            of: format!("{} bytes from each of {count} ranks, {whose}", exchanged.bytes),
            microseconds: exchanged.microseconds,
            ..Measurement::default()
        });
    }
    let name = format!("{count} ranks, {whose}");
    report.check("small exchanges", &name, started.elapsed(), found.map(|_| ()));
    Ok(())
}

fn extent(arguments: &Arguments) -> Extent {
    let extent = if arguments.quick { Extent::quick() } else { Extent::full() };
    Extent {
        layers: arguments.layers.unwrap_or(extent.layers),
        only: arguments.only.clone(),
        seed: arguments.seed,
        ..extent
    }
}
