//! The ways in which a generation ends before its time: by its id, or because
//! its client is gone.

use crate::client::{CHAT, Wire, chat, get, post, request, send, stream};
use crate::fixture::{Harness, Setup};
use chorale_api::KeySettings;

async fn engine_is_idle(harness: &Harness) {
    harness
        .eventually("no request and no sequence is left", |harness| {
            let stats = harness.engine.stats();
            let num_sequences = stats.scheduler.num_running + stats.scheduler.num_waiting();
            harness.shared.requests().num_active() == 0 && num_sequences == 0
        })
        .await;
}

#[tokio::test]
async fn a_stream_is_cancelled_by_its_id() {
    let harness = Setup { steps: 8, ..Setup::default() }.start().await;
    let running = stream(harness.address, &[("x-request-id", "r-1")], 2000).await;

    let list = get(harness.address, "/v1/requests").await.json();
    let listed = &list["data"][0];
    assert_eq!((listed["id"].as_str(), listed["state"].as_str()), (Some("r-1"), Some("running")));
    assert_eq!(listed["model"], crate::fixture::MODEL);
    assert!(listed["prompt_tokens"].as_u64().unwrap() > 10 && listed["output_tokens"].as_u64().unwrap() > 0);
    assert!(!list.to_string().contains("clock go"), "{list}");

    let cancelled = post(harness.address, "/v1/requests/chatcmpl-r-1/cancel", "").await;
    assert_eq!((cancelled.status, cancelled.json()["num_cancelled"].as_u64()), (200, Some(1)));
    harness.allow_steps(2);
    let reply = running.reply().await;
    assert!(reply.body.contains("cancelled"), "{}", reply.body);
    engine_is_idle(&harness).await;
    let again = post(harness.address, "/v1/requests/r-1/cancel", "").await;
    assert_eq!((again.status, again.error_code().as_str()), (404, "not_found"));
}

#[tokio::test]
async fn an_answer_that_is_not_streamed_is_cancelled_as_well() {
    let harness = Setup { steps: 8, ..Setup::default() }.start().await;
    let mut wire = Wire::connect(harness.address).await;
    wire.send(request("POST", CHAT, &[("x-request-id", "r-2")], &chat(false, 2000))).await;
    harness.eventually("it runs", |harness| harness.engine.stats().num_steps > 5).await;
    assert_eq!(post(harness.address, "/v1/requests/r-2/cancel", "").await.status, 200);
    harness.allow_steps(2);
    let reply = wire.reply().await;
    assert_eq!((reply.status, reply.error_code().as_str()), (499, "cancelled"));
    engine_is_idle(&harness).await;
}

#[tokio::test]
async fn nobody_cancels_the_requests_of_others() {
    let root = KeySettings { admin: true, ..KeySettings::new("root", "secret-root") };
    let keys = vec![KeySettings::new("a", "secret-a"), KeySettings::new("b", "secret-b"), root];
    let harness = Setup { keys, steps: 8, ..Setup::default() }.start().await;
    let running = stream(harness.address, &[("x-api-key", "secret-a"), ("x-request-id", "r-3")], 2000).await;
    let cancel = async |secret| {
        send(harness.address, "POST", "/v1/requests/r-3/cancel", &[("x-api-key", secret)], "").await.status
    };
    let list = async |secret| {
        let reply = send(harness.address, "GET", "/v1/requests", &[("x-api-key", secret)], "").await.json();
        reply["data"].as_array().unwrap().len()
    };
    assert_eq!((list("secret-a").await, list("secret-b").await, list("secret-root").await), (1, 0, 1));
    assert_eq!(cancel("secret-b").await, 404);
    assert_eq!(cancel("secret-root").await, 200);
    harness.allow_steps(2);
    running.reply().await;
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_stream_within_a_step() {
    let harness = Setup { steps: 8, ..Setup::default() }.start().await;
    let running = stream(harness.address, &[], 2000).await;
    drop(running);
    harness.eventually("the place is free", |harness| harness.shared.requests().num_active() == 0).await;
    let before = harness.engine.stats().num_steps;
    // One step is under way; after it the sequence is swept.
    harness.allow_steps(1000);
    engine_is_idle(&harness).await;
    assert!(harness.engine.stats().num_steps <= before + 2, "{:?}", harness.engine.stats());
}

#[tokio::test]
async fn a_client_that_leaves_before_its_answer_ends_it_too() {
    let harness = Setup { steps: 8, ..Setup::default() }.start().await;
    let mut wire = Wire::connect(harness.address).await;
    wire.send(request("POST", CHAT, &[], &chat(false, 2000))).await;
    harness.eventually("it runs", |harness| harness.engine.stats().num_steps > 5).await;
    drop(wire);
    harness.eventually("the place is free", |harness| harness.shared.requests().num_active() == 0).await;
    harness.allow_steps(1000);
    engine_is_idle(&harness).await;
}
