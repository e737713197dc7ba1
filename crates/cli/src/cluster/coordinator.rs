//! `chorale coordinator`: where workers dial in, and what the doors are told
//! while they come together.

use super::{facts, trust};
use crate::config::Config;
use crate::device::DeviceKind;
use crate::exit::UsageError;
use crate::offload::Traffic;
use crate::serve::banner::Ready;
use crate::serve::begin::Begin;
use crate::serve::load::Described;
use crate::serve::room::{self, BYTES_MAX_DEFAULT, Wanted};
use crate::setup::Setup;
use anyhow::Context;
use chorale_api::{EngineStatus, LoadStatus, Phase, Shared};
use chorale_coordinator::Executor;
use chorale_coordinator::cluster::{
    BalanceRule, Cluster, ClusterConfig, ClusterExecutor, ClusterStatus, JoinPort, JoinPortConfig, RoomRules,
    Timeouts,
};
use chorale_device::KvDtype;
use chorale_plan::Epoch;
use chorale_worker::formats;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// Workers at once; more than any cluster of these models has.
const MAX_WORKERS: u32 = 1024;

/// A rank that waits longer for another's frame gives the step up. Others compute
/// meanwhile, so this is beyond what a hanging rank is given.
const EXCHANGE_SLACK: Duration = Duration::from_secs(30);

/// A cluster whose workers may dial in.
pub(crate) struct Coordinator {
    cluster: Cluster,
    executor: ClusterExecutor,
    port: JoinPort,
}

impl Coordinator {
    /// Opens the port for workers.
    pub(crate) async fn open(setup: &Setup, described: &Described) -> anyhow::Result<Self> {
        let settings = &setup.config;
        // The longest context takes the most of a device beside its pages.
        let longest = wanted(settings, described, KvDtype::Fp8);
        let tls = trust::tls(settings)?;
        let model = facts::model(&described.config, &longest, (settings, settings.dense_dtype))?;
        let config = ClusterConfig {
            tensor_parallel_size: settings.tensor_parallel_size as u32,
            data_parallel_size: settings.data_parallel_size as u32,
            first_epoch: first_epoch(),
            rooms: rooms(settings, described)?,
            dense_dtype: formats::dense_format(settings.dense_dtype),
            kv_dtype: settings.kv_cache_dtype.map(formats::kv_format),
            model,
            exchange: settings.exchange(Duration::from_secs_f64(settings.hang_timeout) + EXCHANGE_SLACK),
            transport: if tls.is_some() { "grpc, mutual tls" } else { "grpc, plaintext" }.to_owned(),
            timeouts: Timeouts {
                silence_ms: ms(settings.worker_timeout),
                hang_ms: ms(settings.hang_timeout),
                ..Timeouts::default()
            },
            balance: BalanceRule::every(ms(settings.rebalance_interval)),
            max_members: MAX_WORKERS,
        };
        let (cluster, executor, _running) =
            Cluster::start(config).map_err(|error| UsageError(error.to_string()))?;
        let address: SocketAddr = settings.cluster_listen.parse().map_err(|_| {
            UsageError(format!(
                "--cluster-listen is {:?}: must be an address and a port such as 0.0.0.0:50061",
                settings.cluster_listen
            ))
        })?;
        let config = JoinPortConfig { address, tls, max_connections: MAX_WORKERS as usize };
        let port = JoinPort::bind(config, cluster.clone()).await.context("--cluster-listen")?;
        tracing::info!(address = %port.address(), "workers may join");
        Ok(Self { cluster, executor, port })
    }

    /// What goes on in the cluster.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<ClusterStatus>> {
        self.cluster.watch()
    }

    /// Waits for the first ranks, and starts the engine on them.
    pub(crate) async fn start(
        mut self,
        setup: Setup,
        described: Described,
        shared: Shared,
        tell: watch::Sender<EngineStatus>,
    ) -> anyhow::Result<Ready> {
        // Vocabulary and grammars take a moment, and the first request should not.
        tokio::task::spawn_blocking(chorale_harmony::Constraint::prepare).await?.context("grammars")?;
        let following = tokio::spawn(follow(self.watch(), tell.clone()));
        let homes = tokio::select! {
            homes = self.executor.homes() => homes,
            () = shared.shutdown().reached(Phase::Draining) => {
                anyhow::bail!("stopped before there were ranks")
            }
        };
        following.abort();
        // What it says last must not come after what is said below.
        let _ = following.await;
        let homes = homes?;
        let max_model_len = self.max_model_len(&described);
        let num_ranks = self.cluster.status().shape.map_or(0, |shape| shape.num_ranks);
        let begin = Begin {
            traffic: Traffic::default(),
            setup: &setup,
            config: &described.config,
            homes,
            max_model_len,
            max_steps_in_flight: 1,
        };
        // Workers may join for as long as anybody is answered.
        let (port, shutdown) = (self.port, shared.shutdown().clone());
        tokio::spawn(async move {
            shutdown.reached(Phase::Now).await;
            drop(port);
        });
        begin.run(self.executor, format!("{num_ranks} ranks"), &shared, &tell)
    }
}

impl Coordinator {
    /// The context that all homes have room for. Workers that come later keep to it.
    fn max_model_len(&self, described: &Described) -> usize {
        let tokens = self.executor.max_sequence_tokens();
        let max_model_len = tokens.map_or(described.max_model_len, |tokens| tokens as usize);
        if max_model_len < described.max_model_len {
            let status = self.cluster.status();
            let mut kept: Vec<&str> =
                status.members.iter().filter_map(|member| Some(member.kv_dtype?.name())).collect();
            kept.sort_unstable();
            kept.dedup();
            tracing::warn!(
                max_model_len,
                model_limit = described.max_model_len,
                kv_cache_dtype = kept.join(", "),
                "the context is cut to what the cache of the first ranks has room for, until this coordinator \
                 ends; --kv-cache-memory makes it larger, a narrower --kv-cache-dtype makes more of it"
            );
        }
        max_model_len
    }
}

/// Tells the doors how far the ranks have come.
async fn follow(mut cluster: watch::Receiver<Arc<ClusterStatus>>, tell: watch::Sender<EngineStatus>) {
    loop {
        let load = LoadStatus::from(&**cluster.borrow_and_update());
        tell.send_replace(EngineStatus::Loading(load));
        if cluster.changed().await.is_err() {
            return;
        }
    }
}

/// What a home is to hold that keeps keys and values in one way or another. A
/// context that was not asked for is cut to what a cache of the default size has
/// room for.
fn wanted(settings: &Config, described: &Described, kv_dtype: KvDtype) -> Wanted {
    let max_num_seqs = settings.max_num_seqs(DeviceKind::Cpu);
    let mut wanted = Wanted {
        kv_cache_bytes: settings.kv_cache_memory_bytes.unwrap_or(BYTES_MAX_DEFAULT),
        max_model_len: described.max_model_len,
        max_num_seqs,
        max_batch_tokens: settings.max_batch_tokens(DeviceKind::Cpu).max(max_num_seqs),
        block_size: settings.kv_block_size,
        kv_dtype: settings.kv_cache_dtype.unwrap_or(kv_dtype),
    };
    if settings.max_model_len.is_none() {
        wanted.max_model_len = room::max_model_len_that_fits(&described.config, &wanted);
    }
    wanted
}

/// The rooms of homes, by how the workers that will come keep keys and values.
fn rooms(settings: &Config, described: &Described) -> anyhow::Result<RoomRules> {
    let rule = |kv_dtype| {
        let wanted = wanted(settings, described, kv_dtype);
        facts::room(&described.config, &wanted, settings.kv_cache_memory_bytes)
    };
    Ok(RoomRules { f32: rule(KvDtype::F32)?, bf16: rule(KvDtype::Bf16)?, fp8: rule(KvDtype::Fp8)? })
}

/// Later than any epoch of a coordinator before this one, on clocks that agree
/// within the time that a restart takes.
fn first_epoch() -> Epoch {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Epoch(since.as_millis() as u64)
}

fn ms(seconds: f64) -> u64 {
    (seconds * 1000.0).ceil() as u64
}
