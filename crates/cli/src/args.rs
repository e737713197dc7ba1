//! The command line, as clap reads it. Values that are settings, too, stay
//! text here: `config` checks them together with file and environment.

mod cluster;
mod inspect;
mod measure;
mod sample;
mod serve;
mod settings;

pub(crate) use cluster::{
    CertsArgs, ClusterArgs, CoordinationArgs, CoordinatorArgs, JoiningArgs, TrustArgs, WorkerArgs,
};
pub(crate) use inspect::{InspectArgs, StepArgs};
pub(crate) use measure::{BenchArgs, LogitsArgs, Measurement, OfflineArgs};
pub(crate) use sample::{GenerateArgs, parse_date};
pub(crate) use serve::{ServeArgs, ServingArgs};
pub(crate) use settings::{DeviceArgs, MemoryArgs, ModelArg, ParallelArgs, SamplingArgs, SharedArgs};

use crate::config::Config;
use clap::builder::StyledStr;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;
use serde::Serialize;

/// Serves gpt-oss-120b and gpt-oss-20b from a cluster.
#[derive(Debug, Parser)]
#[command(name = "chorale", version, after_help = EXAMPLES, max_term_width = 110)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) shared: SharedArgs,
}

const EXAMPLES: &str = "\
Examples:
  chorale serve
  chorale generate \"Why is the sky blue?\"
  chorale generate openai/gpt-oss-20b --reasoning-effort high \"Prove that 91 is not prime.\"
  chorale inspect openai/gpt-oss-120b --device-memory 80GiB
  chorale completions bash > ~/.local/share/bash-completion/completions/chorale

Each option that is not about one run alone may stand in ~/.config/chorale/config.toml
(temperature = 0.7) and in the environment (CHORALE_TEMPERATURE=0.7), too; flags win over the
environment, and the environment over the file.";

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve a model over HTTP and gRPC
    Serve(Box<ServeArgs>),
    /// Serve a model from a cluster of workers
    Coordinator(Box<CoordinatorArgs>),
    /// Compute for a coordinator
    Worker(Box<WorkerArgs>),
    /// Show a cluster: ranks, placement, load, faults
    Cluster(ClusterArgs),
    /// Make certificates for a cluster's trial
    Certs(CertsArgs),
    /// Answer a prompt
    Generate(Box<GenerateArgs>),
    /// Write a model's logits for given tokens, to compare engines
    Logits(LogitsArgs),
    /// Show what a model costs: parameters, memory on each rank, bandwidth
    Inspect(InspectArgs),
    /// Measure speed
    Bench(BenchArgs),
    /// Download a model
    Pull(PullArgs),
    /// Print completions for a shell
    Completions(CompletionsArgs),
}

/// Arguments of `chorale pull`.
#[derive(Debug, Args)]
#[command(after_help = PULL_EXAMPLES)]
pub(crate) struct PullArgs {
    /// The model's id on the hub
    #[arg(value_name = "ID")]
    pub(crate) id: String,
}

const PULL_EXAMPLES: &str = "\
Examples:
  chorale pull openai/gpt-oss-20b
  HF_TOKEN=... chorale pull our-org/private-model --revision v2

An interrupted download goes on where it stopped. The directory is printed on standard output.";

/// Arguments of `chorale completions`.
#[derive(Debug, Args)]
#[command(after_help = COMPLETIONS_EXAMPLES)]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    pub(crate) shell: Shell,
}

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  chorale completions bash > ~/.local/share/bash-completion/completions/chorale
  chorale completions zsh > ~/.zfunc/_chorale
  chorale completions fish > ~/.config/fish/completions/chorale.fish";

/// The settings that a command line makes; what it leaves out is left out.
#[derive(Serialize)]
struct Settings<'a> {
    #[serde(flatten)]
    shared: &'a SharedArgs,
    model: Option<&'a str>,
    #[serde(flatten)]
    memory: Option<&'a MemoryArgs>,
    #[serde(flatten)]
    parallel: Option<&'a ParallelArgs>,
    #[serde(flatten)]
    device: Option<&'a DeviceArgs>,
    #[serde(flatten)]
    step: Option<&'a StepArgs>,
    #[serde(flatten)]
    cluster: Option<&'a CoordinationArgs>,
    #[serde(flatten)]
    joining: Option<&'a JoiningArgs>,
    #[serde(flatten)]
    trust: Option<&'a TrustArgs>,
    #[serde(flatten)]
    sampling: Option<&'a SamplingArgs>,
    #[serde(flatten)]
    serving: Option<&'a ServingArgs>,
}

impl Cli {
    /// Reads the arguments. Prints help and mistakes itself, and then exits.
    pub(crate) fn read() -> Self {
        let matches = command().get_matches();
        Self::from_arg_matches(&matches).and_then(Self::checked).unwrap_or_else(|error| error.exit())
    }

    /// What clap's own rules cannot say.
    fn checked(self) -> Result<Self, clap::Error> {
        if let Command::Generate(args) = &self.command
            && args.is_overfull()
        {
            let why = "the words are a model and a prompt; quote a prompt of several words, and name the model once";
            return Err(command().error(clap::error::ErrorKind::TooManyValues, why));
        }
        Ok(self)
    }

    /// Those of the arguments that are settings.
    pub(crate) fn settings(&self) -> impl Serialize + '_ {
        let settings = Settings {
            shared: &self.shared,
            model: None,
            memory: None,
            parallel: None,
            device: None,
            step: None,
            cluster: None,
            joining: None,
            trust: None,
            sampling: None,
            serving: None,
        };
        match &self.command {
            Command::Serve(args) => Settings {
                model: args.model.name(),
                parallel: Some(&args.parallel),
                memory: Some(&args.memory),
                serving: Some(&args.serving),
                ..settings
            },
            Command::Coordinator(args) => Settings {
                model: args.model.name(),
                parallel: Some(&args.parallel),
                cluster: Some(&args.cluster),
                trust: Some(&args.trust),
                memory: Some(&args.memory),
                serving: Some(&args.serving),
                ..settings
            },
            Command::Worker(args) => Settings {
                model: args.model.name(),
                joining: Some(&args.joining),
                trust: Some(&args.trust),
                device: Some(&args.device),
                ..settings
            },
            Command::Generate(args) => Settings {
                model: args.model(),
                memory: Some(&args.memory),
                sampling: Some(&args.sampling),
                ..settings
            },
            Command::Logits(args) => {
                Settings { model: args.model.name(), memory: Some(&args.memory), ..settings }
            }
            Command::Inspect(args) => Settings {
                model: args.model.name(),
                memory: Some(&args.memory),
                parallel: Some(&args.parallel),
                device: Some(&args.device),
                step: Some(&args.step),
                ..settings
            },
            Command::Bench(BenchArgs { measurement: Measurement::Offline(args) }) => {
                Settings { model: args.model.name(), memory: Some(&args.memory), ..settings }
            }
            Command::Cluster(_) | Command::Certs(_) | Command::Pull(_) | Command::Completions(_) => settings,
        }
    }
}

/// The command line with the defaults of the settings in its help.
pub(crate) fn command() -> clap::Command {
    let defaults = serde_json::to_value(Config::default()).unwrap_or_default();
    with_defaults(Cli::command(), &defaults)
}

fn with_defaults(command: clap::Command, defaults: &serde_json::Value) -> clap::Command {
    command
        .mut_args(|arg| {
            let default = match defaults.get(arg.get_id().as_str()) {
                Some(serde_json::Value::String(text)) => text.clone(),
                Some(value @ serde_json::Value::Number(_)) => value.to_string(),
                // Unset, or a switch, which says what it does.
                Some(_) | None => return arg,
            };
            let help = arg.get_help().map(StyledStr::to_string).unwrap_or_default();
            arg.help(format!("{help} [default: {default}]"))
        })
        .mut_subcommands(|subcommand| with_defaults(subcommand, defaults))
}

#[cfg(test)]
mod tests;
