//! From a model's name to a running engine, with the doors told how far it is.

use super::banner::Ready;
use super::begin::Begin;
use super::draining;
use super::local::{self, Alike, LocalRanks, OnLoad};
use super::room::{self, Wanted};
use crate::config::Config;
use crate::device::{DeviceKind, DeviceMemory, Devices};
use crate::engine;
use crate::exit::UsageError;
use crate::footprint::{self, Rehearsal, Wished};
use crate::offload::{self, Traffic};
use crate::setup::Setup;
use anyhow::Context;
use chorale_api::{EngineStatus, LoadStatus, Shared};
use chorale_coordinator::HomeConfig;
use chorale_coordinator::cluster::ClusterConfigError;
use chorale_device::{BatchLimits, KvDtype};
use chorale_model::budget::{Budget, BudgetOptions, World};
use chorale_model::checkpoint::Checkpoint;
use chorale_model::config::ModelConfig;
use chorale_model::{LoadProgress, Room};
use chorale_nccl::Library;
use chorale_plan::Shape;
use chorale_worker::formats;
use std::future::Future;
use std::sync::{Arc, Mutex};
use tokio::sync::{oneshot, watch};

/// Without a setting, a context that is long enough for most requests.
const USEFUL_CONTEXT: usize = 8192;

/// What is known of a model before its weights are here.
pub(crate) struct Described {
    /// What the user called it, or the demo's name.
    pub(crate) name: String,
    /// The context that it is served with, as far as its own limit tells.
    pub(crate) max_model_len: usize,
    /// Its geometry.
    pub(crate) config: ModelConfig,
}

/// Reads the model's configuration, which may mean to download it.
pub(super) fn describe(setup: &Setup) -> anyhow::Result<Described> {
    let config = crate::inspect::model_config(setup)?;
    let name = setup.config.model.clone();
    let max_model_len = engine::max_model_len(setup, &config)?;
    let (size, limit) = (setup.config.tensor_parallel_size, config.num_key_value_heads);
    if size > limit {
        let error = ClusterConfigError::SplitTooFar { asked: size as u32, limit: limit as u32 };
        return Err(UsageError(error.to_string()).into());
    }
    Ok(Described { name, max_model_len, config })
}

/// Loads the weights on threads of their own and starts the engine. The future
/// ends when requests are answered, or when they never will be.
pub(super) fn start(
    setup: &Setup,
    described: Described,
    shared: Shared,
    tell: watch::Sender<EngineStatus>,
) -> anyhow::Result<impl Future<Output = anyhow::Result<Ready>> + use<>> {
    let setup = Arc::new(setup.clone());
    let opening = Arc::clone(&setup);
    let (opened, plan) = oneshot::channel();
    std::thread::Builder::new().name("load".to_owned()).spawn(move || {
        // Whoever waits for the plan has gone only if the server has.
        let _ = opened.send(open(&opening, &described));
    })?;
    Ok(async move {
        let loading = async {
            let plan = plan.await.context("the loading thread ended")??;
            let on_load = on_load(&setup, &plan, &tell);
            let Plan { shape, devices, library, checkpoint, room, max_model_len, traffic } = plan;
            let (device, max_steps_in_flight) = (devices.describe(), devices.steps_in_flight());
            let alike = Alike {
                room: wire_room(&room),
                exchange: setup.config.exchange(local::EXCHANGE_TIMEOUT),
                dense_dtype: formats::dense_format(setup.config.dense_dtype),
                peer_exchange: setup.config.peer_exchange,
            };
            let ranks = LocalRanks::start(shape, (devices, library), Arc::clone(&checkpoint), alike, on_load);
            anyhow::Ok((
                ranks.await?,
                (shape, checkpoint, room, max_model_len),
                (device, max_steps_in_flight, traffic),
            ))
        };
        let outcome = tokio::select! {
            outcome = loading => outcome,
            // Nobody waits for a model any more; the threads end with the process.
            () = draining(shared.shutdown()) => anyhow::bail!("stopped before the model was loaded"),
        };
        let (ranks, planned, (device, max_steps_in_flight, traffic)) = outcome.map_err(|error| {
            tell.send_replace(EngineStatus::Failed { reason: format!("{error:#}") });
            error.context("cannot load the model")
        })?;
        let (shape, checkpoint, room, max_model_len) = planned;
        let room = wire_room(&room);
        let homes = shape.homes().map(|rank| HomeConfig::new(rank, &room)).collect();
        let config = checkpoint.config();
        let begin = Begin { setup: &setup, config, homes, max_model_len, max_steps_in_flight, traffic };
        begin.run(ranks, device, &shared, &tell)
    })
}

/// What the loading thread decided.
struct Plan {
    shape: Shape,
    devices: Devices,
    library: Option<Arc<Library>>,
    checkpoint: Arc<Checkpoint>,
    /// Of each home.
    room: Room,
    max_model_len: usize,
    traffic: Traffic,
}

fn open(setup: &Setup, described: &Described) -> anyhow::Result<Plan> {
    // Vocabulary and grammars take a moment, and the first request should not.
    chorale_harmony::Constraint::prepare().context("grammars")?;
    let settings = &setup.config;
    let checkpoint = Checkpoint::open(&setup.model_directory()?)?;
    let config = checkpoint.config();
    let shape = local::shape(settings.tensor_parallel_size, settings.data_parallel_size);
    let mut devices = Devices::open(&setup.device_options(), shape.num_ranks as usize)?;
    // A rank that is alone exchanges nothing.
    let library = if shape.num_ranks > 1 { devices.nccl(&setup.nccl())? } else { None };
    let kv_dtype = devices.kv_dtype(settings.kv_cache_dtype)?;
    let memory = devices.memory(library.is_some())?;
    let planned = plan_room(setup, described, config, (kv_dtype, memory))?;
    let traffic = devices.host_experts(config.num_layers(), planned.host_expert_bytes);
    let Planned { room, max_model_len, .. } = planned;
    Ok(Plan { shape, devices, library, checkpoint: Arc::new(checkpoint), room, max_model_len, traffic })
}

/// Shows what all ranks have loaded, on the terminal and at the doors.
fn on_load(setup: &Setup, plan: &Plan, tell: &watch::Sender<EngineStatus>) -> OnLoad {
    let mut bar = Some(setup.progress.load());
    let ranks_total = plan.shape.num_ranks;
    let (tell, started) = (tell.clone(), LoadStatus::new(ranks_total));
    Arc::new(Mutex::new(move |progress: LoadProgress, ranks_ready: usize| {
        if let Some(bar) = &mut bar {
            bar.on(progress);
        }
        if ranks_ready == ranks_total as usize
            && let Some(bar) = bar.take()
        {
            bar.finish();
        }
        tell.send_replace(EngineStatus::Loading(LoadStatus {
            bytes: progress.bytes,
            total_bytes: progress.total_bytes,
            tensors: progress.tensors,
            total_tensors: progress.total_tensors,
            ranks_ready: ranks_ready as u32,
            ..started
        }));
    }))
}

fn budget_options(settings: &Config, described: &Described, kv_dtype: KvDtype) -> BudgetOptions {
    BudgetOptions {
        world: World {
            tensor_parallel_size: settings.tensor_parallel_size,
            data_parallel_size: settings.data_parallel_size,
        },
        dense_dtype: settings.dense_dtype,
        kv_dtype,
        kv_block_size: settings.kv_block_size,
        max_model_len: Some(described.max_model_len),
        max_batch_tokens: settings.max_batch_tokens(DeviceKind::Gpu),
        device_memory_bytes: None,
        memory_bandwidth_bytes_per_s: None,
        context_tokens: 0,
    }
}

/// The room as assignments have it.
fn wire_room(room: &Room) -> chorale_plan::Room {
    chorale_plan::Room {
        max_step_tokens: room.limits.max_rows as u32,
        max_step_slices: room.limits.max_slices as u32,
        block_size_tokens: room.block_size as u32,
        num_full_blocks: room.num_full_blocks as u32,
        num_sliding_blocks: room.num_sliding_blocks as u32,
        kv_dtype: formats::kv_format(room.kv_dtype),
    }
}

/// What memory is used for.
struct Planned {
    /// Of each home.
    room: Room,
    max_model_len: usize,
    /// What experts of each rank may have of the host; 0 if all are on their GPUs.
    host_expert_bytes: u64,
}

/// The pages of each home, and the context that they have room for: the user's own is kept or
/// refused, the model's is cut to what fits.
fn plan_room(
    setup: &Setup,
    described: &Described,
    config: &ModelConfig,
    (kv_dtype, memory): (KvDtype, DeviceMemory),
) -> Result<Planned, UsageError> {
    let settings = &setup.config;
    // Homes divide memory and sequences; inside a home, ranks divide each page by heads.
    let num_homes = settings.data_parallel_size;
    let max_num_seqs = settings.max_num_seqs(memory.kind()).div_ceil(num_homes);
    let max_batch_tokens = settings.max_batch_tokens(memory.kind()).div_ceil(num_homes).max(max_num_seqs);
    let mut host_expert_bytes = 0;
    let kv_cache_bytes = match memory {
        DeviceMemory::Host => match settings.kv_cache_memory_bytes {
            Some(bytes) => bytes,
            None => {
                let budget = Budget::new(config, &budget_options(settings, described, kv_dtype))
                    .map_err(|error| UsageError(error.to_string()))?;
                let weight_bytes = budget.ranks.iter().map(|rank| rank.weight_bytes.total);
                room::kv_cache_bytes_default(weight_bytes.sum())
            }
        },
        DeviceMemory::Gpu { free_bytes } => {
            let wished = Wished {
                shape: local::shape(settings.tensor_parallel_size, num_homes),
                limits: BatchLimits {
                    max_rows: max_batch_tokens,
                    max_slices: max_num_seqs,
                    max_logit_rows: max_num_seqs,
                },
                block_size: settings.kv_block_size,
                max_model_len: described.max_model_len,
                dense_dtype: settings.dense_dtype,
                kv_dtype,
                fast_combine: settings.fast_combine,
                overlap_min_rows: settings.overlap_min_rows,
            };
            if let Some(refusal) = footprint::refusal(config, settings.kv_block_size) {
                return Err(UsageError(refusal));
            }
            let ranks = Rehearsal::new(config).ranks(&wished);
            let ranks = ranks.map_err(|error| UsageError(format!("no plan of memory: {error}")))?;
            // A context of some use, where the user does not say how long it is to be.
            let max_model_len = settings.max_model_len.unwrap_or(described.max_model_len.min(USEFUL_CONTEXT));
            let least = Wanted {
                kv_cache_bytes: 0,
                max_model_len,
                max_num_seqs,
                max_batch_tokens,
                block_size: settings.kv_block_size,
                kv_dtype,
            };
            let memory = offload::Memory {
                free_bytes,
                host_bytes: setup.expert_host_memory().bytes_each(ranks.len()),
                least_kv_bytes: least.needed_bytes(config).div_ceil(settings.tensor_parallel_size as u64),
                asked_kv_bytes: settings.kv_cache_memory_bytes,
            };
            match memory.kv_cache_bytes(&ranks)? {
                Some(kv_cache_bytes) => {
                    host_expert_bytes = memory.host_bytes;
                    kv_cache_bytes
                }
                None => room::gpu_kv_cache_bytes(settings, &ranks, free_bytes)?,
            }
        }
    };
    let mut wanted = Wanted {
        kv_cache_bytes: kv_cache_bytes / num_homes as u64,
        max_model_len: described.max_model_len,
        max_num_seqs,
        max_batch_tokens,
        block_size: settings.kv_block_size,
        kv_dtype,
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
    let room = room::room(config, &wanted)?;
    Ok(Planned { room, max_model_len: wanted.max_model_len, host_expert_bytes })
}
