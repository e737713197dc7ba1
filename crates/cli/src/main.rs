//! The binary `chorale`: reads arguments, environment and config, and runs one
//! command.
//!
//! Deliberately absent: anything worth testing alone. Commands put the other
//! crates together; what can be reused lives there.
//!
//! Invariant: this crate is the only reader of environment and arguments, and
//! the only writer to the terminal.

mod args;
mod bench;
mod cluster;
mod config;
mod device;
mod dtype;
mod engine;
mod exit;
mod footprint;
mod generate;
mod inspect;
mod keys;
mod logits;
mod nccl;
mod offload;
mod output;
mod progress;
mod pull;
mod serve;
mod setup;
mod telemetry;
mod units;

use args::{Cli, Command};
use serve::Ranks;
use setup::Setup;
use std::process::ExitCode;

fn main() -> ExitCode {
    exit::report(run(&Cli::read()))
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    if let Command::Completions(args) = &cli.command {
        return print_completions(args);
    }
    let setup = Setup::new(cli)?;
    match &cli.command {
        Command::Serve(_) => serve::run(&setup, Ranks::Local),
        Command::Coordinator(_) => serve::run(&setup, Ranks::Cluster),
        Command::Worker(_) => cluster::worker::run(&setup),
        Command::Cluster(args) => cluster::view::run(args, &setup),
        Command::Certs(args) => cluster::certs::run(args),
        Command::Generate(args) => generate::run(args, &setup),
        Command::Logits(args) => logits::run(args, &setup),
        Command::Inspect(args) => inspect::run(args, &setup),
        Command::Bench(args) => bench::run(args, &setup),
        Command::Pull(args) => pull::run(args, &setup),
        Command::Completions(args) => print_completions(args),
    }
}

fn print_completions(args: &args::CompletionsArgs) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut args::command(), "chorale", &mut script);
    Ok(output::Output::print(&String::from_utf8(script)?)?)
}
