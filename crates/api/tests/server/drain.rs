//! The end: what is refused, what may finish, and when nothing is waited for.

use crate::client::{CHAT, chat, get, post, stream};
use crate::fixture::Setup;
use chorale_api::Drained;
use std::time::Duration;
use tokio::time::Instant;

#[tokio::test]
async fn a_running_stream_ends_well_and_nothing_new_begins() {
    let harness = Setup { steps: 8, ..Setup::default() }.start().await;
    let running = stream(harness.address, &[], 20).await;
    harness.shared.shutdown().begin();

    let ready = get(harness.address, "/ready").await;
    assert_eq!((ready.status, ready.json()["status"].as_str()), (503, Some("draining")));
    assert_eq!(get(harness.address, "/health").await.status, 200);
    let refused = post(harness.address, CHAT, &chat(false, 1)).await;
    assert_eq!((refused.status, refused.error_code().as_str()), (503, "unavailable"));
    assert!(refused.header("retry-after").is_some());
    assert_eq!(refused.header("connection"), Some("close"));

    harness.allow_steps(100);
    assert!(running.reply().await.body.ends_with("data: [DONE]\n\n"));
    assert_eq!(harness.ended().await, Drained { num_cut: 0 });
}

#[tokio::test]
async fn a_server_without_requests_ends_at_once() {
    let harness = Setup::default().start().await;
    let mut idle = crate::client::Wire::connect(harness.address).await;
    idle.send("GET /version HTTP/1.1\r\nhost: t\r\n\r\n").await;
    idle.until("version").await;
    let started = Instant::now();
    harness.shared.shutdown().begin();
    assert_eq!(harness.ended().await, Drained { num_cut: 0 });
    assert!(started.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn a_stream_that_does_not_end_is_cut_off_in_time() {
    let mut setup = Setup { steps: 8, ..Setup::default() };
    setup.config.drain_timeout = Duration::from_millis(200);
    let harness = setup.start().await;
    let running = stream(harness.address, &[], 20).await;
    let started = Instant::now();
    harness.shared.shutdown().begin();
    let requests = harness.shared.requests().clone();
    assert_eq!(harness.ended().await, Drained { num_cut: 1 });
    assert!((200..4000).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
    assert!(!running.reply().await.body.contains("[DONE]"));
    assert_eq!(requests.num_active(), 0);
}

#[tokio::test]
async fn a_second_signal_waits_for_nothing() {
    let harness = Setup { steps: 8, ..Setup::default() }.start().await;
    let _running = stream(harness.address, &[], 20).await;
    let shutdown = harness.shared.shutdown().clone();
    shutdown.begin();
    let started = Instant::now();
    shutdown.now();
    assert_eq!(harness.ended().await, Drained { num_cut: 1 });
    assert!(started.elapsed() < Duration::from_secs(3));
}
