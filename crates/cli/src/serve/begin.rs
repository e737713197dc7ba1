//! From ranks that are ready to an engine that answers: the same for ranks of
//! this process and for those of a cluster.

use super::banner::Ready;
use super::doors;
use crate::offload::Traffic;
use crate::setup::Setup;
use chorale_api::generation::Generator;
use chorale_api::openai::OpenAi;
use chorale_api::{EngineStatus, Phase, Served, Shared};
use chorale_coordinator::{Engine, Executor, HomeConfig, SchedulerConfig};
use chorale_model::config::ModelConfig;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;

/// A stream that is silent for so long says that it is alive.
const STREAM_KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Sampling and one more step cost about twice what a prompt's token does.
const PROMPT_TOKEN_COST: u32 = 1;
const OUTPUT_TOKEN_COST: u32 = 2;
/// Prompt tokens that may wait, in contexts.
const MAX_WAITING_CONTEXTS: u64 = 64;
/// Homes step together: one that has much less to do waits for the others.
const MAX_HOME_IMBALANCE: u32 = 8;

/// What an engine begins with.
pub(crate) struct Begin<'a> {
    pub(crate) setup: &'a Setup,
    pub(crate) config: &'a ModelConfig,
    pub(crate) homes: Vec<HomeConfig>,
    pub(crate) max_model_len: usize,
    /// Steps that the ranks take at a time.
    pub(crate) max_steps_in_flight: u32,
    /// What becomes of experts that do not fit the GPUs of this process.
    pub(crate) traffic: Traffic,
}

impl Begin<'_> {
    /// Starts the engine and tells the doors. `device` is for people.
    pub(crate) fn run(
        self,
        executor: impl Executor,
        device: String,
        shared: &Shared,
        tell: &watch::Sender<EngineStatus>,
    ) -> anyhow::Result<Ready> {
        let settings = &self.setup.config;
        let (engine, running) = Engine::start(self.scheduler(), executor)?;
        let max_model_len = self.max_model_len as u32;
        let observer = Arc::new(shared.metrics().clone());
        let generator = Generator::new(engine.clone(), max_model_len, observer);
        let limits = doors::limits(self.setup, shared.served_model_names(), self.config.vocab_size);
        tell.send_replace(EngineStatus::Ready(Arc::new(Served {
            engine,
            openai: OpenAi::new(generator, limits, STREAM_KEEP_ALIVE),
            vocab_size: self.config.vocab_size as u32,
            max_model_len,
            block_size_tokens: settings.kv_block_size as u32,
            prefix_caching: settings.prefix_caching,
            since: SystemTime::now(),
            experts: self.traffic.reader(),
        })));
        // An engine that ends by itself takes the server with it: whoever
        // watches over the process starts a new one.
        let shutdown = shared.shutdown().clone();
        let ended = tokio::spawn(async move {
            let _ = running.await;
            let is_early = shutdown.phase() == Phase::Serving;
            shutdown.begin();
            is_early
        });
        let sum = |of: fn(&HomeConfig) -> u32| self.homes.iter().map(|home| of(home) as usize).sum::<usize>();
        Ok(Ready {
            max_model_len: self.max_model_len,
            max_num_seqs: sum(|home| home.max_step_slices),
            kv_tokens: sum(|home| home.num_full_blocks) * settings.kv_block_size,
            device,
            ended,
        })
    }

    fn scheduler(&self) -> SchedulerConfig {
        let settings = &self.setup.config;
        let mut eos_tokens = self.config.eos_token_ids.clone();
        eos_tokens.extend([chorale_harmony::special::RETURN, chorale_harmony::special::CALL]);
        eos_tokens.sort_unstable();
        eos_tokens.dedup();
        SchedulerConfig {
            homes: self.homes.clone(),
            block_size_tokens: settings.kv_block_size as u32,
            window_tokens: self.config.window(),
            max_context_tokens: self.max_model_len as u32,
            max_steps_in_flight: self.max_steps_in_flight,
            max_waiting_requests: settings.max_waiting_requests as u32,
            max_waiting_tokens: MAX_WAITING_CONTEXTS * self.max_model_len as u64,
            max_waiting_ms: settings.max_waiting_time.map(|seconds| seconds * 1000),
            max_home_imbalance_sequences: MAX_HOME_IMBALANCE,
            prefix_caching: settings.prefix_caching,
            prompt_token_cost: PROMPT_TOKEN_COST,
            output_token_cost: OUTPUT_TOKEN_COST,
            eos_tokens,
        }
    }
}
