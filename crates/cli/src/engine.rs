//! A model on this machine's own device, for commands that compute a few known
//! sequences. There is no scheduler here: serving does not come this way.

use crate::config::Config;
use crate::device::Devices;
use crate::exit::UsageError;
use crate::setup::Setup;
use anyhow::Context;
use chorale_device::{Cpu, Device, KvDtype};
use chorale_link::Solo;
use chorale_model::GptOss;
use chorale_model::checkpoint::Checkpoint;
use chorale_model::config::ModelConfig;
use chorale_model::offline::{OfflineLimits, OfflineSequence};
use chorale_model::shard::ShardSpec;
use chorale_plan::{Sample, SequenceSlice, StepPlan, TokenId};

/// A loaded model with room for a known number of sequences.
pub(crate) struct Engine {
    model: Box<dyn Model>,
    config: ModelConfig,
    /// What there is room for.
    pub(crate) limits: OfflineLimits,
    /// What keys and values are kept in.
    pub(crate) kv_dtype: KvDtype,
    /// What computes, in a word: `cpu` or `cuda`.
    pub(crate) device: &'static str,
    /// CPU threads that compute; 0 on a GPU.
    pub(crate) num_threads: usize,
    step: u64,
}

/// The rank that is all ranks, on whatever device.
trait Model: Send {
    fn step(&mut self, plan: &StepPlan) -> anyhow::Result<Vec<Sample>>;
    fn logits(&mut self, slices: &[SequenceSlice], last: usize) -> anyhow::Result<Vec<f32>>;
}

impl<D: Device + 'static> Model for GptOss<D, Solo<D>> {
    fn step(&mut self, plan: &StepPlan) -> anyhow::Result<Vec<Sample>> {
        Ok(Self::step(self, plan)?.samples)
    }

    fn logits(&mut self, slices: &[SequenceSlice], last: usize) -> anyhow::Result<Vec<f32>> {
        Ok(Self::logits(self, slices, last, &mut ())?)
    }
}

impl Engine {
    /// Opens the model that the settings name, without its weights.
    pub(crate) fn open(setup: &Setup) -> anyhow::Result<Checkpoint> {
        let dir = setup.model_directory()?;
        Ok(Checkpoint::open(&dir)?)
    }

    /// Loads a model and makes room.
    pub(crate) fn load(
        checkpoint: &Checkpoint,
        limits: OfflineLimits,
        setup: &Setup,
    ) -> anyhow::Result<Self> {
        refuse_unhonoured(&setup.config)?;
        let mut devices = Devices::open(&setup.device_options(), 1)?;
        let num_layers = checkpoint.config().num_layers();
        devices.host_experts(num_layers, setup.expert_host_memory().bytes_each(1));
        let kv_dtype = devices.kv_dtype(setup.config.kv_cache_dtype)?;
        let (device, num_threads) = match &devices {
            Devices::Cpu(cpus) => ("cpu", cpus.iter().map(Cpu::num_threads).sum()),
            Devices::Cuda(_) => ("cuda", 0),
        };
        let model = match devices {
            Devices::Cpu(cpus) => load(cpus, checkpoint, (limits, kv_dtype), setup)?,
            Devices::Cuda(gpus) => load(gpus, checkpoint, (limits, kv_dtype), setup)?,
        };
        let config = checkpoint.config().clone();
        Ok(Self { model, config, limits, kv_dtype, device, num_threads, step: 0 })
    }

    /// The model's geometry.
    pub(crate) fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The `index`-th sequence that there is room for.
    pub(crate) fn sequence(&self, index: usize, prompt: Vec<TokenId>) -> OfflineSequence {
        OfflineSequence::new(index, prompt, self.limits, &self.config)
    }

    /// Computes slices and samples those that ask for it.
    pub(crate) fn step(&mut self, slices: Vec<SequenceSlice>) -> anyhow::Result<Vec<Sample>> {
        self.step += 1;
        self.model.step(&StepPlan { step: self.step, in_halves: false, home_rows: Vec::new(), slices })
    }

    /// Computes slices, and gives the logits of the step's last `last` rows.
    pub(crate) fn logits(&mut self, slices: &[SequenceSlice], last: usize) -> anyhow::Result<Vec<f32>> {
        self.model.logits(slices, last)
    }
}

/// Loads a whole model onto the one device.
fn load<D: Device + 'static>(
    devices: Vec<D>,
    checkpoint: &Checkpoint,
    (limits, kv_dtype): (OfflineLimits, KvDtype),
    setup: &Setup,
) -> anyhow::Result<Box<dyn Model>> {
    let config = checkpoint.config();
    let mut device = devices.into_iter().next().context("one device was opened")?;
    let link = Solo::new(&mut device, config.num_experts as u32)?;
    let mut bar = setup.progress.load();
    let mut on_progress = |progress| bar.on(progress);
    let spec = ShardSpec { dense_dtype: setup.config.dense_dtype, ..ShardSpec::whole(config) };
    let room = limits.room(config, kv_dtype);
    let model = GptOss::load(device, link, checkpoint, &spec, &room, &mut on_progress)
        .context("cannot load the model")?;
    bar.finish();
    Ok(Box::new(model))
}

/// Settings that a single rank does not have are refused, not ignored.
pub(crate) fn refuse_unhonoured(settings: &Config) -> anyhow::Result<()> {
    let Config { tensor_parallel_size, data_parallel_size, .. } = settings;
    if (*tensor_parallel_size, *data_parallel_size) != (1, 1) {
        return Err(UsageError(format!(
            "--tensor-parallel-size is {tensor_parallel_size} and --data-parallel-size {data_parallel_size}: this \
             command computes on one rank; set both to 1"
        ))
        .into());
    }
    Ok(())
}

/// Refuses tokens that the model does not know. `what` names where they come from.
pub(crate) fn check_tokens(tokens: &[TokenId], config: &ModelConfig, what: &str) -> Result<(), UsageError> {
    let vocab_size = config.vocab_size;
    match tokens.iter().position(|&token| token as usize >= vocab_size) {
        Some(index) => Err(UsageError(format!(
            "{what}: token {} at index {index} is not in the model's vocabulary of {vocab_size}; ids must be below it",
            tokens[index],
        ))),
        None => Ok(()),
    }
}

/// The longest sequence: the model's own limit, or a lower one of the settings.
pub(crate) fn max_model_len(setup: &Setup, config: &ModelConfig) -> Result<usize, UsageError> {
    let limit = config.max_position_embeddings;
    match setup.config.max_model_len {
        Some(len) if len > limit => Err(UsageError(format!(
            "--max-model-len is {len}: the model has {limit} positions; use at most as many"
        ))),
        Some(len) => Ok(len),
        None => Ok(limit),
    }
}
