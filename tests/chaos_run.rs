//! A long run of chaos, with a report as JSON: how long clients waited after
//! each fault. `cargo run --release -p chorale-e2e --bin chaos -- target/release/chorale`

use chorale_e2e::chaos::{self, ChaosSettings};
use chorale_e2e::cluster::ClusterSettings;
use clap::Parser;
use std::path::PathBuf;
use std::process::ExitCode;

/// Puts a cluster of the demo model through faults while streams run.
#[derive(Debug, Parser)]
struct Arguments {
    /// The binary that is tried
    binary: PathBuf,
    /// Decides faults, targets and durations
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many faults
    #[arg(long, default_value_t = 200)]
    faults: usize,
    /// Streams that run at any time
    #[arg(long, default_value_t = 32)]
    streams: usize,
    /// Tokens of each stream
    #[arg(long, default_value_t = 400)]
    tokens: u32,
    /// Ranks of a group
    #[arg(long, default_value_t = 2)]
    tensor_parallel_size: u32,
    /// Groups
    #[arg(long, default_value_t = 2)]
    data_parallel_size: u32,
}

#[expect(clippy::print_stdout, reason = "the report goes to standard output")]
fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let cluster = ClusterSettings::demo(
        &arguments.binary,
        arguments.tensor_parallel_size,
        arguments.data_parallel_size,
    );
    let settings = ChaosSettings {
        cluster,
        seed: arguments.seed,
        num_faults: arguments.faults,
        num_streams: arguments.streams,
        tokens_each: arguments.tokens,
    };
    match chaos::run(&settings, &mut |fault| eprintln!("{fault}")) {
        Ok(report) => {
            println!("{report:#}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}
