//! `grpc.health.v1`: serving while generations are let in, and not before,
//! after, or while the server drains. It watches; it changes nothing.

use crate::server::{Phase, Shared};
use chorale_wire::inference::SERVICE_NAME;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

/// The names that can be asked for: the server as a whole, and its service.
const NAMES: [&str; 2] = ["", SERVICE_NAME];

/// Says what is so now.
pub(super) async fn report(shared: &Shared, reporter: &HealthReporter) {
    let status = match shared.ready() {
        Ok(_) => ServingStatus::Serving,
        Err(_) => ServingStatus::NotServing,
    };
    for name in NAMES {
        reporter.set_service_status(name, status).await;
    }
}

/// Says what is so whenever it changes, until the server drains.
pub(super) async fn follow(shared: Shared, reporter: HealthReporter) {
    let mut status = shared.watch_status();
    while shared.shutdown().phase() == Phase::Serving {
        report(&shared, &reporter).await;
        tokio::select! {
            () = shared.shutdown().reached(Phase::Draining) => {}
            () = engine_stops(&shared) => {}
            changed = status.changed() => if changed.is_err() {
                // Whoever started the engine is gone, and says nothing more.
                tokio::select! {
                    () = shared.shutdown().reached(Phase::Draining) => {}
                    () = engine_stops(&shared) => {}
                }
            }
        }
    }
    report(&shared, &reporter).await;
}

/// Returns when the engine that runs now has stopped; never if none runs.
async fn engine_stops(shared: &Shared) {
    let stopped = match shared.ready() {
        Ok(served) => served.engine.watch().wait_for(|stats| stats.is_stopped).await.is_ok(),
        Err(_) => false,
    };
    if !stopped {
        std::future::pending().await
    }
}
