//! A worker's place in one epoch: the rank's shard loads while the ranks find
//! each other, and what comes of both is told.

use super::Worker;
use crate::{Rank, RankError};
use chorale_link::grpc::{Connecting, EndHandle, Membership};
use chorale_model::LoadProgress;
use chorale_model::checkpoint::Checkpoint;
use chorale_plan::{Assignment, Epoch, FromWorker, Placement};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

/// How often progress is told.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

/// Placements that load at a time; a newer one takes the older one's place.
const MAX_PREPARING: usize = 8;

/// A place in an epoch. Dropping it ends the epoch for this rank at once: a step
/// that runs stops waiting for others.
pub(super) struct Place {
    pub(super) epoch: Epoch,
    end: EndHandle,
    /// Each gives what is to be said when it is done.
    tasks: JoinSet<FromWorker>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.end.end();
    }
}

impl Place {
    /// Takes a place. There is none before it any more.
    pub(super) fn take(worker: &Worker, assignment: Assignment, said: mpsc::Sender<FromWorker>) -> Self {
        let epoch = assignment.epoch;
        let (transport, end, connecting) = worker.port.join(Membership {
            epoch,
            rank: assignment.rank,
            addresses: assignment.addresses.clone(),
            exchange_timeout: Duration::from_millis(assignment.exchange.timeout_ms.into()),
            connect_timeout: worker.config.patience.connect,
        });
        let (progress, reported) = watch::channel(LoadProgress::default());
        let on_progress = Box::new(move |now| {
            progress.send_replace(now);
        });
        let checkpoint: Arc<Checkpoint> = worker.checkpoint.clone();
        let loading = worker.rank.take(assignment, checkpoint, Box::new(transport), on_progress);
        let mut tasks = JoinSet::new();
        tasks.spawn(settle(epoch, loading, connecting, reported, said));
        Self { epoch, end, tasks }
    }

    /// Loads what a new placement asks for beside the steps.
    pub(super) fn prepare(&mut self, rank: &Rank, placement: Placement) {
        let (epoch, version) = (self.epoch, placement.version);
        let unprepared = move |reason| {
            tracing::warn!(version, reason, "a placement cannot be prepared");
            FromWorker::Unprepared { epoch, version, reason }
        };
        if self.tasks.len() >= MAX_PREPARING {
            self.tasks.spawn(async move { unprepared("others are on their way".to_owned()) });
            return;
        }
        let preparing = rank.prepare(placement);
        self.tasks.spawn(async move {
            match preparing.await {
                Ok(()) => FromWorker::Prepared { epoch, version },
                // The old placement serves on.
                Err(error) => unprepared(error.to_string()),
            }
        });
    }

    /// What is to be said next.
    pub(super) async fn next(&mut self) -> FromWorker {
        loop {
            match self.tasks.join_next().await {
                Some(Ok(message)) => return message,
                // A panic has been reported, and the coordinator will miss the answer.
                Some(Err(_)) => {}
                None => std::future::pending().await,
            }
        }
    }
}

/// Waits for the shard and for the connections, whichever fails first.
async fn settle(
    epoch: Epoch,
    loading: impl Future<Output = Result<(), RankError>>,
    connecting: Connecting,
    reported: watch::Receiver<LoadProgress>,
    said: mpsc::Sender<FromWorker>,
) -> FromWorker {
    let loaded = async {
        loading.await.map_err(|error| match error {
            RankError::Carrier { reason } => FromWorker::CarrierFailed { epoch, step: None, reason },
            RankError::Lost { reason, blamed } => FromWorker::Unable { epoch, blamed, reason },
            error => FromWorker::Unable { epoch, blamed: None, reason: error.to_string() },
        })
    };
    let connected = async {
        let unable = |blamed, reason| FromWorker::Unable { epoch, blamed, reason };
        connecting.wait().await.map_err(|error| unable(error.rank, error.reason))
    };
    let settled = async { tokio::try_join!(loaded, connected) };
    let outcome = tokio::select! {
        settled = settled => settled,
        never = report(epoch, reported, said) => match never {},
    };
    match outcome {
        Ok(((), ())) => FromWorker::Ready { epoch },
        Err(unable) => unable,
    }
}

/// Tells how far loading is, when it has come further.
async fn report(
    epoch: Epoch,
    mut reported: watch::Receiver<LoadProgress>,
    said: mpsc::Sender<FromWorker>,
) -> std::convert::Infallible {
    let mut ticks = interval(PROGRESS_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // An error is the end of loading, and nothing more is told.
        if reported.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        let LoadProgress { bytes, total_bytes, tensors, total_tensors } = *reported.borrow_and_update();
        // Progress that does not get through is old when there is room again.
        let _ = said.try_send(FromWorker::Loading {
            epoch,
            bytes,
            total_bytes,
            tensors: u32::try_from(tensors).unwrap_or(u32::MAX),
            total_tensors: u32::try_from(total_tensors).unwrap_or(u32::MAX),
        });
    }
}
