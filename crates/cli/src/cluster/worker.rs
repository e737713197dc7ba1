//! `chorale worker`: a rank for a coordinator.

use super::trust;
use crate::config::Config;
use crate::device::{DeviceKind, Devices};
use crate::exit::UsageError;
use crate::offload::Traffic;
use crate::serve::signals;
use crate::setup::Setup;
use anyhow::Context;
use chorale_model::checkpoint::Checkpoint;
use chorale_worker::join::{Left, MemoryRate, Patience, Worker, WorkerConfig};
use chorale_worker::{Rank, formats};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Network only; the rank computes on threads of its own.
const ASYNC_THREADS: usize = 2;

/// For what is still on its way when the work is done.
const LAST_TASKS_TIMEOUT: Duration = Duration::from_secs(2);

/// The largest exchange there can be: a step of 16,384 rows with four answers
/// for each is 755 MB.
const MAX_FRAME_BYTES: usize = 1 << 30;

/// If the system does not tell what memory it has.
const MEMORY_BYTES_DEFAULT: u64 = 4 << 30;

/// Runs the command.
pub(crate) fn run(setup: &Setup) -> anyhow::Result<()> {
    let settings = &setup.config;
    let coordinator = settings.coordinator.clone().ok_or_else(|| {
        UsageError("--coordinator is missing: name the coordinator's --cluster-listen, HOST:PORT".to_owned())
    })?;
    check_address("--coordinator", &coordinator)?;
    settings.advertise.as_deref().map_or(Ok(()), |address| check_address("--advertise", address))?;
    let tls = trust::tls(settings)?;
    let listen = listen(settings, &coordinator)?;
    let checkpoint = Checkpoint::open(&setup.model_directory()?)?;
    let mut devices = Devices::open(&setup.device_options(), 1)?;
    // Its own choice, where the coordinator leaves it one.
    let own = devices.kv_dtype(settings.kv_cache_dtype)?;
    let others = devices.kv_dtypes().iter().copied().filter(|dtype| *dtype != own);
    let kv_dtypes = [own].into_iter().chain(others).map(formats::kv_format).collect();
    let library = devices.nccl(&setup.nccl())?;
    let memory = devices.memory(library.is_some())?;
    let host_expert_bytes = match memory.kind() {
        DeviceKind::Cpu => 0,
        DeviceKind::Gpu => setup.expert_host_memory().bytes_each(1),
    };
    let traffic = devices.host_experts(checkpoint.config().num_layers(), host_expert_bytes);
    let config = WorkerConfig {
        coordinator,
        listen,
        advertise: settings.advertise.clone(),
        tls,
        device: devices.describe(),
        memory_bytes: settings
            .device_memory_bytes
            .or_else(|| memory.available_bytes())
            .unwrap_or(MEMORY_BYTES_DEFAULT),
        memory_rate: settings
            .memory_bandwidth_bytes_per_s
            .map_or_else(|| devices.memory_rate(), |rate| MemoryRate::Known(rate as u64)),
        experts_only: settings.experts_only,
        nccl: library.as_ref().map(|library| library.version().code()),
        kv_dtypes,
        host_expert_bytes,
        residency: traffic.reading(),
        max_frame_bytes: MAX_FRAME_BYTES,
        patience: Patience::default(),
    };
    let rank = devices
        .start_ranks(library.as_ref(), settings.peer_exchange)?
        .pop()
        .context("one device was opened")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(ASYNC_THREADS)
        .thread_name("worker")
        .enable_all()
        .build()?;
    let left = runtime.block_on(work(config, rank, Arc::new(checkpoint), traffic));
    runtime.shutdown_timeout(LAST_TASKS_TIMEOUT);
    left
}

async fn work(
    config: WorkerConfig,
    rank: Rank,
    checkpoint: Arc<Checkpoint>,
    traffic: Traffic,
) -> anyhow::Result<()> {
    let (leaving, now) = (CancellationToken::new(), CancellationToken::new());
    signals::follow(
        {
            let leaving = leaving.clone();
            move || leaving.cancel()
        },
        {
            let now = now.clone();
            move || now.cancel()
        },
    )?;
    let worker = Worker::bind(config, rank, checkpoint).await.context("cannot work")?;
    tracing::info!(address = %worker.address(), "other workers may dial in");
    tokio::select! {
        left = worker.run(leaving) => match left? {
            Left::HandedOver => tracing::info!("handed over"),
            Left::Unheard => tracing::warn!("left without a word from the coordinator"),
        },
        () = now.cancelled() => tracing::warn!("ended at once"),
        () = traffic.log() => {}
    }
    Ok(())
}

/// Names may be looked up again and again, since they may be known later; what
/// is no `HOST:PORT` will never be.
fn check_address(flag: &str, address: &str) -> Result<(), UsageError> {
    let is_good = address
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0));
    if is_good {
        return Ok(());
    }
    Err(UsageError(format!("{flag} is {address:?}: must be a host and a port such as 10.0.0.1:50061")))
}

/// Where other workers dial in. On a machine that is a cluster by itself, nobody
/// else needs to reach it.
fn listen(settings: &Config, coordinator: &str) -> Result<SocketAddr, UsageError> {
    if let Some(listen) = &settings.listen {
        return listen.parse().map_err(|_| {
            UsageError(format!(
                "--listen is {listen:?}: must be an address and a port such as 10.0.0.2:50062"
            ))
        });
    }
    let host = coordinator.rsplit_once(':').map_or(coordinator, |(host, _)| host);
    let is_here = match host.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(address) => address.is_loopback(),
        Err(_) => host == "localhost",
    };
    let address = if is_here { Ipv4Addr::LOCALHOST } else { Ipv4Addr::UNSPECIFIED };
    Ok(SocketAddr::new(address.into(), 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_never_be_dialled_is_refused() {
        for good in ["10.0.0.1:50061", "[::1]:1", "worker-0.example:50062"] {
            assert!(check_address("--coordinator", good).is_ok(), "{good}");
        }
        for bad in ["nohost", ":1", "10.0.0.1:", "10.0.0.1:0", "10.0.0.1:99999", ""] {
            assert!(check_address("--coordinator", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_worker_beside_its_coordinator_listens_at_the_loopback() {
        let at = |coordinator| listen(&Config::default(), coordinator).unwrap().ip().is_loopback();
        assert!(at("127.0.0.1:1") && at("localhost:1"));
        assert!(!at("10.0.0.1:1") && !at("coordinator.example:1"));
    }
}
