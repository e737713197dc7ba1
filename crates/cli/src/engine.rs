//! A model on this machine's processors, for commands that compute a few known
//! sequences. There is no scheduler here: serving does not come this way.

use crate::config::{Config, KvCacheDtype};
use crate::exit::UsageError;
use crate::setup::Setup;
use anyhow::Context;
use chorale_device::Cpu;
use chorale_link::Solo;
use chorale_model::checkpoint::Checkpoint;
use chorale_model::config::ModelConfig;
use chorale_model::offline::{OfflineLimits, OfflineSequence};
use chorale_model::shard::ShardSpec;
use chorale_model::{GptOss, StepError};
use chorale_plan::{Sample, SequenceSlice, StepPlan, TokenId};
use std::num::NonZeroUsize;

/// An error of one step.
pub(crate) type EngineError = StepError<chorale_device::CpuError>;

/// A loaded model with room for a known number of sequences.
pub(crate) struct Engine {
    /// The rank that is all ranks.
    pub(crate) model: GptOss<Cpu, Solo<Cpu>>,
    /// What there is room for.
    pub(crate) limits: OfflineLimits,
    /// Threads that compute.
    pub(crate) num_threads: usize,
    step: u64,
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
        let config = checkpoint.config();
        let mut device = Cpu::new(setup.config.threads.and_then(NonZeroUsize::new))?;
        let num_threads = device.num_threads();
        let link = Solo::new(&mut device, config.num_experts as u32)?;
        let room = limits.room(config);
        let mut bar = setup.progress.load();
        let mut on_progress = |progress| bar.on(progress);
        let spec = ShardSpec::whole(config);
        let model = GptOss::load(device, link, checkpoint, &spec, &room, &mut on_progress)
            .context("cannot load the model")?;
        bar.finish();
        Ok(Self { model, limits, num_threads, step: 0 })
    }

    /// The `index`-th sequence that there is room for.
    pub(crate) fn sequence(&self, index: usize, prompt: Vec<TokenId>) -> OfflineSequence {
        OfflineSequence::new(index, prompt, self.limits, self.model.config())
    }

    /// Computes slices and samples those that ask for it.
    pub(crate) fn step(&mut self, slices: Vec<SequenceSlice>) -> Result<Vec<Sample>, EngineError> {
        self.step += 1;
        Ok(self.model.step(&StepPlan { step: self.step, in_halves: false, slices })?.samples)
    }
}

/// Settings that the CPU does not have are refused, not ignored.
pub(crate) fn refuse_kv_dtype(settings: &Config) -> anyhow::Result<()> {
    let dtype = match settings.kv_cache_dtype {
        Some(KvCacheDtype::Bf16) => Some("bf16"),
        Some(KvCacheDtype::Fp8) => Some("fp8"),
        Some(KvCacheDtype::F32) | None => None,
    };
    if let Some(dtype) = dtype {
        return Err(UsageError(format!(
            "--kv-cache-dtype is {dtype}: the CPU keeps keys and values as f32; leave it out"
        ))
        .into());
    }
    Ok(())
}

/// Settings that a single rank on the CPU does not have are refused, not ignored.
pub(crate) fn refuse_unhonoured(settings: &Config) -> anyhow::Result<()> {
    refuse_kv_dtype(settings)?;
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
