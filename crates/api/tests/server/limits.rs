//! Requests that are too large or too slow, and connections that are too many.

use crate::client::{A_WHILE, CHAT, Reply, Wire, chat, get, post, request};
use crate::fixture::Setup;
use std::time::Duration;
use tokio::time::Instant;

#[tokio::test]
async fn a_long_body_is_refused_before_it_is_read() {
    let harness = Setup::default().start().await;
    let mut wire = Wire::connect(harness.address).await;
    wire.send(format!("POST {CHAT} HTTP/1.1\r\nhost: t\r\ncontent-length: 999999\r\n\r\n")).await;
    wire.until("request_too_large").await;
    let reply = Reply::parse(&wire.seen);
    assert_eq!((reply.status, reply.error_code().as_str()), (413, "request_too_large"));
}

#[tokio::test]
async fn a_long_body_of_unknown_length_is_refused_when_it_is_too_long() {
    let harness = Setup::default().start().await;
    let mut wire = Wire::connect(harness.address).await;
    wire.send(format!("POST {CHAT} HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n")).await;
    let chunk = format!("4000\r\n{}\r\n", "x".repeat(0x4000));
    for _ in 0..5 {
        wire.send(&chunk).await;
    }
    wire.until("request_too_large").await;
    assert_eq!(Reply::parse(&wire.seen).status, 413);
}

#[tokio::test]
async fn a_body_of_just_the_limit_is_read() {
    let harness = Setup::default().start().await;
    let mut body = chat(false, 1);
    body.push_str(&" ".repeat(64 * 1024 - body.len()));
    assert_eq!(post(harness.address, CHAT, &body).await.status, 200);
    body.push(' ');
    assert_eq!(post(harness.address, CHAT, &body).await.status, 413);
}

#[tokio::test]
async fn large_heads_are_refused() {
    let harness = Setup::default().start().await;
    for (len, has_body) in [(20 * 1024, true), (200 * 1024, false)] {
        let mut wire = Wire::connect(harness.address).await;
        let head = request("GET", "/version", &[("x-large", &"x".repeat(len))], "");
        // What is far too large is cut off while it is sent.
        let mut head = head.as_bytes().chunks(4096);
        let sent = async {
            for part in &mut head {
                wire.send(part).await;
            }
        };
        if tokio::time::timeout(A_WHILE, sent).await.is_err() {
            panic!("the server neither reads nor refuses");
        }
        wire.until("431").await;
        let reply = wire.reply().await;
        assert_eq!(reply.status, 431);
        if has_body {
            assert_eq!(reply.error_code(), "headers_too_large");
        }
    }
}

#[tokio::test]
async fn a_head_that_trickles_is_not_waited_for() {
    let mut setup = Setup::default();
    setup.config.header_timeout = Duration::from_millis(200);
    let harness = setup.start().await;
    for start in ["", "GET /version HTTP/1.1\r\nx-slow: ", "PRI * HTTP/2.0\r\n"] {
        let started = Instant::now();
        let mut wire = Wire::connect(harness.address).await;
        wire.send(start).await;
        let reply = wire.reply().await;
        assert_eq!(reply.status, 0, "{start:?} was answered: {reply:?}");
        let elapsed = started.elapsed();
        assert!(elapsed >= Duration::from_millis(200) && elapsed < Duration::from_secs(3), "{elapsed:?}");
    }
}

#[tokio::test]
async fn a_body_that_trickles_is_not_waited_for() {
    let mut setup = Setup::default();
    setup.config.body_timeout = Duration::from_millis(200);
    let harness = setup.start().await;
    let mut wire = Wire::connect(harness.address).await;
    wire.send(format!("POST {CHAT} HTTP/1.1\r\nhost: t\r\ncontent-length: 100\r\n\r\n{{")).await;
    wire.until("request_timeout").await;
    assert_eq!(Reply::parse(&wire.seen).status, 408);
}

#[tokio::test]
async fn an_idle_connection_is_closed_and_a_busy_one_is_not() {
    let mut setup = Setup { steps: 8, ..Setup::default() };
    setup.config.idle_timeout = Duration::from_millis(200);
    let harness = setup.start().await;
    let busy = crate::client::stream(harness.address, &[], 20).await;

    let mut idle = Wire::connect(harness.address).await;
    let started = Instant::now();
    idle.send("GET /version HTTP/1.1\r\nhost: t\r\n\r\n").await;
    assert_eq!(idle.reply().await.status, 200);
    assert!(started.elapsed() >= Duration::from_millis(200));

    tokio::time::sleep(Duration::from_millis(300)).await;
    harness.allow_steps(100);
    assert!(busy.reply().await.body.ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_a_place() {
    let mut setup = Setup::default();
    setup.config.max_connections = 1;
    let harness = setup.start().await;
    let mut first = Wire::connect(harness.address).await;
    first.send("GET /version HTTP/1.1\r\nhost: t\r\n\r\n").await;
    first.until("version").await;
    let address = harness.address;
    let mut second = tokio::spawn(async move { get(address, "/version").await });
    let early = tokio::time::timeout(Duration::from_millis(100), &mut second).await;
    assert!(early.is_err(), "there were two connections");
    drop(first);
    assert_eq!(second.await.unwrap().status, 200);
}

#[tokio::test]
async fn places_for_generations_are_bounded() {
    let harness = Setup { steps: 8, max_active_requests: 1, ..Setup::default() }.start().await;
    let first = crate::client::stream(harness.address, &[], 20).await;
    let second = post(harness.address, CHAT, &chat(false, 1)).await;
    assert_eq!((second.status, second.error_code().as_str()), (429, "rate_limit_exceeded"));
    assert!(second.header("retry-after").is_some());
    harness.allow_steps(100);
    first.reply().await;
}
