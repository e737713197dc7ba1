//! How far the server is, as messages. The numbers come from whoever loads.

use crate::server::{Phase, Shared};
use crate::status::EngineStatus;
use chorale_wire::inference::{LoadProgress, LoadStatus, v1};
use futures_util::Stream;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Status;

/// What is so now.
pub(super) fn status(shared: &Shared) -> LoadStatus {
    if shared.shutdown().phase() != Phase::Serving {
        return LoadStatus::Draining;
    }
    match &*shared.status() {
        EngineStatus::Loading(load) => LoadStatus::Loading(LoadProgress {
            bytes_loaded: load.bytes,
            bytes_total: load.total_bytes,
            tensors_loaded: load.tensors as u64,
            tensors_total: load.total_tensors as u64,
            ranks_ready: load.ranks_ready,
            ranks_total: load.ranks_total,
            elapsed_ms: load.started.elapsed().as_millis() as u64,
            remaining_ms: load.time_left().map(|left| left.as_millis() as u64),
        }),
        EngineStatus::Ready(served) if served.engine.stats().is_stopped => {
            LoadStatus::Failed("the engine has stopped".to_owned())
        }
        EngineStatus::Ready(_) => LoadStatus::Ready,
        EngineStatus::Failed { reason } => LoadStatus::Failed(reason.clone()),
    }
}

/// A client that looks on.
struct Watcher {
    shared: Shared,
    changes: watch::Receiver<EngineStatus>,
    interval: Duration,
    /// When the next status may be sent; `None` after the last.
    next: Option<Instant>,
}

/// What is so now, then whenever it changes but no sooner than `interval` after
/// the one before, up to the first that is not loading.
pub(super) fn watch(
    shared: Shared,
    interval: Duration,
) -> impl Stream<Item = Result<v1::WatchLoadStatusResponse, Status>> + Send {
    let mut changes = shared.watch_status();
    changes.mark_changed();
    let watcher = Watcher { shared, changes, interval, next: Some(Instant::now()) };
    futures_util::stream::unfold(watcher, |mut watcher| async move {
        let status = watcher.next().await?;
        Some((Ok(status.into()), watcher))
    })
}

impl Watcher {
    async fn next(&mut self) -> Option<LoadStatus> {
        let next = self.next?;
        let draining = self.shared.shutdown().reached(Phase::Draining);
        let change = async {
            tokio::time::sleep_until(next).await;
            // Without a sender only draining can still change anything.
            if self.changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = draining => {}
            () = change => {}
        }
        let status = status(&self.shared);
        let is_loading = matches!(status, LoadStatus::Loading(_));
        self.next = is_loading.then(|| Instant::now() + self.interval);
        Some(status)
    }
}
