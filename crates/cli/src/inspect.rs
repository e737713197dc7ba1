//! `chorale inspect`: what a model is and what it costs. The arithmetic is
//! `budget`'s; this room finds the model and puts the figures in order.

mod gpus;
mod report;

use crate::args::InspectArgs;
use crate::device::DeviceKind;
use crate::output::Output;
use crate::setup::Setup;
use anyhow::Context;
use chorale_device::KvDtype;
use chorale_hub::Description;
use chorale_model::budget::{Budget, BudgetOptions, World};
use chorale_model::checkpoint::{Checkpoint, Layout};
use chorale_model::config::ModelConfig;
use gpus::Gpus;
use std::path::{Path, PathBuf};

/// Prints the model's budget.
pub(crate) fn run(args: &InspectArgs, setup: &Setup) -> anyhow::Result<()> {
    let model = Inspected::find(setup)?;
    let is_for_gpus = gpus::is_for_gpus(&model.config, setup);
    let kind = if is_for_gpus { DeviceKind::Gpu } else { DeviceKind::Cpu };
    let options = options(args, setup, kind);
    let mut budget = Budget::new(&model.config, &options)?;
    let gpus = match is_for_gpus {
        true => Some(Gpus::plan(&model.config, (&mut budget, &options), setup)?),
        false => None,
    };
    let gpus = gpus.as_ref();
    let report =
        if args.json { report::json(&model, &budget, gpus)? } else { report::text(&model, &budget, gpus) };
    Ok(Output::print(&report)?)
}

/// A model, as far as it is there.
struct Inspected {
    name: String,
    directory: PathBuf,
    config: ModelConfig,
    /// The layout of the weights; `None` where there is only a `config.json`.
    layout: Option<Layout>,
}

impl Inspected {
    fn find(setup: &Setup) -> anyhow::Result<Self> {
        let name = setup.config.model.clone();
        let Description { directory, has_weights } = setup.model_description()?;
        if has_weights && holds_weights(&directory) {
            let checkpoint = Checkpoint::open(&directory)?;
            let (config, layout) = (checkpoint.config().clone(), Some(checkpoint.layout()));
            return Ok(Self { name, directory, config, layout });
        }
        let config = read_config(&directory)?;
        Ok(Self { name, directory, config, layout: None })
    }
}

/// The geometry of the model that the settings name; its weights may not be here yet.
pub(crate) fn model_config(setup: &Setup) -> anyhow::Result<ModelConfig> {
    read_config(&setup.model_description()?.directory)
}

/// OpenAI's layout lies in this folder of the published repositories.
const ORIGINAL: &str = "original";

/// Anything that a checkpoint has besides its `config.json`: a file of
/// weights, or the index of some.
fn holds_weights(directory: &Path) -> bool {
    let places = [directory.to_owned(), directory.join(ORIGINAL)];
    let files = places.iter().filter_map(|place| place.read_dir().ok()).flatten().flatten();
    files.map(|file| file.file_name()).any(|name| {
        let name = name.to_string_lossy();
        name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json")
    })
}

fn read_config(directory: &Path) -> anyhow::Result<ModelConfig> {
    let places = [directory.to_owned(), directory.join(ORIGINAL)];
    let home = places.iter().find(|place| place.join("config.json").exists());
    let home =
        home.with_context(|| format!("{}: neither weights nor a config.json are here", directory.display()))?;
    let read = |path: &Path| std::fs::read_to_string(path).with_context(|| path.display().to_string());
    let config = read(&home.join("config.json"))?;
    let generation = directory.join("generation_config.json");
    let generation = generation.exists().then(|| read(&generation)).transpose()?;
    ModelConfig::from_either_layout(&config, generation.as_deref())
        .with_context(|| format!("cannot read the model in {}", home.display()))
}

fn options(args: &InspectArgs, setup: &Setup, kind: DeviceKind) -> BudgetOptions {
    let config = &setup.config;
    BudgetOptions {
        world: World {
            tensor_parallel_size: config.tensor_parallel_size,
            data_parallel_size: config.data_parallel_size,
        },
        dense_dtype: config.dense_dtype,
        // What GPUs keep if nobody says.
        kv_dtype: config.kv_cache_dtype.unwrap_or(KvDtype::Bf16),
        kv_block_size: config.kv_block_size,
        max_model_len: config.max_model_len,
        max_batch_tokens: config.max_batch_tokens(kind),
        device_memory_bytes: config.device_memory_bytes,
        memory_bandwidth_bytes_per_s: config.memory_bandwidth_bytes_per_s,
        context_tokens: args.context as usize,
    }
}
