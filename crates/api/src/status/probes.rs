//! Probes: alive, ready, how far, which version. They take no lock that a
//! request holds, and their answers fit into a packet.

use super::{EngineStatus, LoadStatus, Served};
use crate::server::{Phase, Shared};
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// The process is up: restarting it would help nothing.
pub(crate) async fn health() -> StatusCode {
    StatusCode::OK
}

/// What `/ready` and `/v1/load_status` say.
#[derive(Debug, Serialize)]
struct Report {
    /// `loading`, `ready`, `reforming`, `draining` or `failed`.
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    progress: Option<Progress>,
}

#[derive(Debug, Serialize)]
struct Progress {
    bytes: u64,
    total_bytes: u64,
    tensors: usize,
    total_tensors: usize,
    ranks_ready: u32,
    ranks_total: u32,
    elapsed_s: f64,
    time_left_s: Option<f64>,
}

impl From<LoadStatus> for Progress {
    fn from(status: LoadStatus) -> Self {
        let LoadStatus { bytes, total_bytes, tensors, total_tensors, ranks_ready, ranks_total, started } =
            status;
        let rounded = |seconds: f64| (seconds * 10.0).round() / 10.0;
        Self {
            bytes,
            total_bytes,
            tensors,
            total_tensors,
            ranks_ready,
            ranks_total,
            elapsed_s: rounded(started.elapsed().as_secs_f64()),
            time_left_s: status.time_left().map(|left| rounded(left.as_secs_f64())),
        }
    }
}

fn report(shared: &Shared) -> Report {
    let plain = |status| Report { status, reason: None, progress: None };
    if shared.shutdown().phase() != Phase::Serving {
        return plain("draining");
    }
    match &*shared.status() {
        EngineStatus::Loading(load) => {
            Report { reason: of_cluster(shared), progress: Some((*load).into()), ..plain("loading") }
        }
        EngineStatus::Ready(served) if served.engine.stats().is_stopped => {
            Report { reason: Some("the engine has stopped".to_owned()), ..plain("failed") }
        }
        EngineStatus::Ready(served) => match reforming(shared, served) {
            Some(reason) => {
                let progress = shared.cluster().map(|cluster| LoadStatus::from(&**cluster.borrow()).into());
                Report { reason: Some(reason), progress, ..plain("reforming") }
            }
            None => plain("ready"),
        },
        EngineStatus::Failed { reason } => Report { reason: Some(reason.clone()), ..plain("failed") },
    }
}

/// Why no step can run although there is an engine. The cluster knows it before
/// an engine that has nothing to compute.
fn reforming(shared: &Shared, served: &Served) -> Option<String> {
    of_cluster(shared).or_else(|| Some(served.engine.stats().reforming.as_ref()?.reason.clone()))
}

/// What the ranks of a cluster wait for, which may be workers.
fn of_cluster(shared: &Shared) -> Option<String> {
    shared.cluster()?.borrow().state.reason().map(str::to_owned)
}

/// 200 when requests are taken; else 503, and the body says why.
pub(crate) async fn ready(State(shared): State<Shared>) -> Response {
    let report = report(&shared);
    if report.status == "ready" {
        return Json(report).into_response();
    }
    let retry_after = [(header::RETRY_AFTER, HeaderValue::from(1))];
    (StatusCode::SERVICE_UNAVAILABLE, retry_after, Json(report)).into_response()
}

/// The same for people and progress bars: always 200.
pub(crate) async fn load_status(State(shared): State<Shared>) -> Response {
    Json(report(&shared)).into_response()
}

/// The version of this program.
pub(crate) async fn version() -> Response {
    Json(serde_json::json!({ "version": env!("CARGO_PKG_VERSION") })).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn the_time_that_is_left_follows_from_the_bytes() {
        let started = Instant::now() - Duration::from_secs(10);
        let half = LoadStatus { bytes: 50, total_bytes: 100, started, ..LoadStatus::new(1) };
        let left = half.time_left().unwrap().as_secs_f64();
        assert!((10.0..11.0).contains(&left), "{left}");
        assert_eq!(LoadStatus::new(1).time_left(), None);
    }
}
