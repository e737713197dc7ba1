//! From a model's name to a running engine, with the doors told how far it is.

use super::banner::Ready;
use super::local::LocalRank;
use super::room::{self, Wanted};
use super::{doors, draining};
use crate::engine;
use crate::exit::UsageError;
use crate::setup::Setup;
use anyhow::Context;
use chorale_api::generation::Generator;
use chorale_api::openai::OpenAi;
use chorale_api::{EngineStatus, LoadStatus, Phase, Served, Shared};
use chorale_coordinator::{Engine, HomeConfig, SchedulerConfig};
use chorale_device::Cpu;
use chorale_link::Solo;
use chorale_model::checkpoint::Checkpoint;
use chorale_model::config::ModelConfig;
use chorale_model::shard::ShardSpec;
use chorale_model::{GptOss, Room};
use chorale_plan::Rank as RankId;
use chorale_worker::Rank;
use std::future::Future;
use std::num::NonZeroUsize;
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
/// One home has nobody to be out of step with.
const MAX_HOME_IMBALANCE: u32 = 8;

/// What is known of a model before its weights are here.
pub(super) struct Described {
    /// What the user called it, or the demo's name.
    pub(super) name: String,
    /// The context that it is served with, as far as its own limit tells.
    pub(super) max_model_len: usize,
}

/// Reads the model's configuration, which may mean to download it.
pub(super) fn describe(setup: &Setup) -> anyhow::Result<Described> {
    let config = crate::inspect::model_config(setup)?;
    let name = setup.config.model.clone();
    let max_model_len = engine::max_model_len(setup, &config)?;
    Ok(Described { name, max_model_len })
}

/// Loads the weights on a thread of their own and starts the engine. The future
/// ends when requests are answered, or when they never will be.
pub(super) fn start(
    setup: &Setup,
    described: Described,
    shared: Shared,
    tell: watch::Sender<EngineStatus>,
) -> anyhow::Result<impl Future<Output = anyhow::Result<Ready>> + use<>> {
    let setup = Arc::new(setup.clone());
    let (rank_setup, progress) = (Arc::clone(&setup), tell.clone());
    let (planned, plan) = tokio::sync::oneshot::channel();
    let (rank, loaded) = Rank::start(
        move || load(&rank_setup, &described, &progress, planned).map_err(|error| format!("{error:#}")),
        |model: &GptOss<Cpu, Solo<Cpu>>| model.config().clone(),
    )?;
    Ok(async move {
        let outcome = tokio::select! {
            outcome = loaded => outcome,
            // Nobody waits for a model any more; the thread ends with the process.
            () = draining(shared.shutdown()) => anyhow::bail!("stopped before the model was loaded"),
        };
        let fail = |reason: String| {
            tell.send_replace(EngineStatus::Failed { reason: reason.clone() });
            anyhow::anyhow!(reason).context("cannot load the model")
        };
        let config = match outcome {
            Ok(Ok(config)) => config,
            Ok(Err(error)) => return Err(fail(error.to_string())),
            Err(_) => return Err(fail("the loading thread ended".to_owned())),
        };
        let plan: Plan = plan.await.context("the loading thread says nothing")?;
        let scheduler = scheduler(&setup, &config, &plan);
        let (engine, running) = Engine::start(scheduler, LocalRank(rank))?;
        let max_model_len = plan.max_model_len as u32;
        let observer = Arc::new(shared.metrics().clone());
        let generator = Generator::new(engine.clone(), max_model_len, observer);
        let limits = doors::limits(&setup, shared.served_model_names(), config.vocab_size);
        tell.send_replace(EngineStatus::Ready(Arc::new(Served {
            engine,
            openai: OpenAi::new(generator, limits, STREAM_KEEP_ALIVE),
            vocab_size: config.vocab_size as u32,
            max_model_len,
            block_size_tokens: plan.room.block_size as u32,
            prefix_caching: setup.config.prefix_caching,
            since: SystemTime::now(),
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
        Ok(Ready {
            max_model_len: plan.max_model_len,
            max_num_seqs: setup.config.max_num_seqs,
            kv_tokens: plan.room.num_full_blocks * plan.room.block_size,
            threads: plan.threads,
            ended,
        })
    })
}

/// What the loading thread decided.
struct Plan {
    room: Room,
    max_model_len: usize,
    threads: usize,
}

fn load(
    setup: &Setup,
    described: &Described,
    tell: &watch::Sender<EngineStatus>,
    planned: tokio::sync::oneshot::Sender<Plan>,
) -> anyhow::Result<GptOss<Cpu, Solo<Cpu>>> {
    // Vocabulary and grammars take a moment, and the first request should not.
    chorale_harmony::Constraint::prepare().context("grammars")?;
    let checkpoint = Checkpoint::open(&setup.model_directory()?)?;
    let config = checkpoint.config();
    let spec = ShardSpec::whole(config);
    let weight_bytes = checkpoint.shard_size(&spec)?.num_bytes;
    let (room, max_model_len) = plan_room(setup, described, config, weight_bytes)?;
    let mut device = Cpu::new(setup.config.threads.and_then(NonZeroUsize::new))?;
    let threads = device.num_threads();
    let link = Solo::new(&mut device, config.num_experts as u32)?;
    let mut bar = setup.progress.load();
    let mut status = LoadStatus::new(1);
    let mut on_progress = |progress: chorale_model::LoadProgress| {
        bar.on(progress);
        status = LoadStatus {
            bytes: progress.bytes,
            total_bytes: progress.total_bytes,
            tensors: progress.tensors,
            total_tensors: progress.total_tensors,
            ..status
        };
        tell.send_replace(EngineStatus::Loading(status));
    };
    let model = GptOss::load(device, link, &checkpoint, &spec, &room, &mut on_progress)?;
    bar.finish();
    // Whoever waits for the plan has gone only if the server has.
    let _ = planned.send(Plan { room, max_model_len, threads });
    Ok(model)
}

/// The pages, and the context that they have room for: the user's own is kept or
/// refused, the model's is cut to what fits.
fn plan_room(
    setup: &Setup,
    described: &Described,
    config: &ModelConfig,
    weight_bytes: u64,
) -> Result<(Room, usize), UsageError> {
    let settings = &setup.config;
    let default = || room::kv_cache_bytes_default(weight_bytes);
    let mut wanted = Wanted {
        kv_cache_bytes: settings.kv_cache_memory_bytes.unwrap_or_else(default),
        max_model_len: described.max_model_len,
        max_num_seqs: settings.max_num_seqs,
        max_batch_tokens: settings.max_batch_tokens.max(settings.max_num_seqs),
        block_size: settings.kv_block_size,
    };
    if settings.max_model_len.is_none() {
        wanted.max_model_len = room::max_model_len_that_fits(config, &wanted);
        if wanted.max_model_len < described.max_model_len {
            tracing::warn!(
                max_model_len = wanted.max_model_len,
                model_limit = described.max_model_len,
                kv_cache_mib = wanted.kv_cache_bytes >> 20,
                "the context is cut to what the cache has room for; --kv-cache-memory makes it larger"
            );
        }
    }
    Ok((room::room(config, &wanted)?, wanted.max_model_len))
}

fn scheduler(setup: &Setup, config: &ModelConfig, plan: &Plan) -> SchedulerConfig {
    let settings = &setup.config;
    let Plan { room, max_model_len, .. } = plan;
    let mut eos_tokens = config.eos_token_ids.clone();
    eos_tokens.extend([chorale_harmony::special::RETURN, chorale_harmony::special::CALL]);
    eos_tokens.sort_unstable();
    eos_tokens.dedup();
    SchedulerConfig {
        homes: vec![HomeConfig {
            rank: RankId(0),
            num_full_blocks: room.num_full_blocks as u32,
            num_sliding_blocks: room.num_sliding_blocks as u32,
            max_step_tokens: room.limits.max_rows as u32,
            max_step_slices: room.limits.max_slices as u32,
        }],
        block_size_tokens: room.block_size as u32,
        window_tokens: config.window(),
        max_context_tokens: *max_model_len as u32,
        max_steps_in_flight: 1,
        max_waiting_requests: settings.max_waiting_requests as u32,
        max_waiting_tokens: MAX_WAITING_CONTEXTS * *max_model_len as u64,
        max_waiting_ms: settings.max_waiting_time.map(|seconds| seconds * 1000),
        max_home_imbalance_sequences: MAX_HOME_IMBALANCE,
        prefix_caching: settings.prefix_caching,
        prompt_token_cost: PROMPT_TOKEN_COST,
        output_token_cost: OUTPUT_TOKEN_COST,
        eos_tokens,
    }
}
