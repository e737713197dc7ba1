//! `chorale serve`: opens the doors, loads the model behind them, and lets go in
//! order when it is told to.

pub(crate) mod banner;
pub(crate) mod begin;
mod doors;
pub(crate) mod load;
pub(crate) mod local;
pub(crate) mod room;
pub(crate) mod signals;

use crate::cluster::Coordinator;
use crate::exit::UsageError;
use crate::setup::Setup;
use anyhow::Context;
use banner::Ready;
use chorale_api::{EngineStatus, GrpcServer, LoadStatus, Server, Shared, Shutdown};
use std::pin::Pin;
use std::time::Duration;
use tokio::sync::watch;

/// Network and engine; the model computes on threads of its own.
const ASYNC_THREADS: usize = 2;

/// After the doors are closed: for what is still on its way, such as a step.
const LAST_TASKS_TIMEOUT: Duration = Duration::from_secs(2);

/// Where the ranks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ranks {
    /// In this process: `chorale serve`.
    Local,
    /// In workers that join: `chorale coordinator`.
    Cluster,
}

/// Runs the command.
pub(crate) fn run(setup: &Setup, ranks: Ranks) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(ASYNC_THREADS)
        .thread_name("serve")
        .enable_all()
        .build()?;
    let served = runtime.block_on(serve(setup, ranks));
    runtime.shutdown_timeout(LAST_TASKS_TIMEOUT);
    served
}

async fn serve(setup: &Setup, ranks: Ranks) -> anyhow::Result<()> {
    let num_ranks = (setup.config.tensor_parallel_size * setup.config.data_parallel_size) as u32;
    let (tell, status) = watch::channel(EngineStatus::Loading(LoadStatus::new(num_ranks)));
    let described = load::describe(setup)?;
    let cluster = match ranks {
        Ranks::Local => None,
        Ranks::Cluster => Some(Coordinator::open(setup, &described).await?),
    };
    let watch = cluster.as_ref().map(Coordinator::watch);
    let shared = Shared::new(doors::shared(setup, &described, watch)?, status);
    let http = Server::bind(doors::http(setup)?, shared.clone()).await?;
    let grpc = GrpcServer::bind(doors::grpc(setup)?, shared.clone()).await?;
    let addresses = banner::Addresses { http: http.url(), grpc: grpc.address() };
    tracing::info!(http = addresses.http, grpc = %addresses.grpc, model = described.name, "listening");
    let (first, then) = (shared.shutdown().clone(), shared.shutdown().clone());
    let is_told = signals::follow(move || first.begin(), move || then.now())?;

    let loading: Pin<Box<dyn Future<Output = anyhow::Result<Ready>>>> = match cluster {
        None => Box::pin(load::start(setup, described, shared.clone(), tell)?),
        Some(cluster) => Box::pin(cluster.start(setup.clone(), described, shared.clone(), tell)),
    };
    let doors = async {
        let (http, grpc) = tokio::join!(http.run(), grpc.run());
        grpc.map(|grpc| http.num_cut + grpc.num_cut)
    };
    let stop = shared.shutdown().clone();
    let engine = async {
        match loading.await {
            Ok(ready) => {
                banner::print(setup, &shared, &addresses, &ready);
                Ok(ready.ended)
            }
            Err(error) => {
                // Probes still learn why, until they give up.
                stop.begin();
                Err(error)
            }
        }
    };
    let (cut, loaded) = tokio::join!(doors, engine);
    let ended = match loaded {
        // Told to end before the model was there: that is in order, too.
        Err(_) if is_told.is_told() => return Ok(()),
        loaded => loaded?,
    };
    let num_cut = cut.context("the gRPC door")?;
    if num_cut > 0 {
        tracing::warn!(num_cut, "answers were cut off by the end of the drain");
    }
    if ended.is_finished() && ended.await.unwrap_or(true) {
        anyhow::bail!("the engine stopped by itself; the log says why");
    }
    Ok(())
}

/// A setting that makes no sense beside another.
fn refuse(why: impl Into<String>) -> anyhow::Error {
    UsageError(why.into()).into()
}

/// For those who wait for the end.
async fn draining(shutdown: &Shutdown) {
    shutdown.reached(chorale_api::Phase::Draining).await;
}
