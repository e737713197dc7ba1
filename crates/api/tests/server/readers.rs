//! Clients that ask and do not read: nobody else notices, and they are not kept
//! for ever.

use crate::client::{CHAT, Wire, chat, post, request};
use crate::fixture::Setup;
use std::time::Duration;
use tokio::net::TcpSocket;

/// A connection whose client takes in next to nothing.
async fn narrow(address: std::net::SocketAddr) -> Wire {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(1024).unwrap();
    Wire::over(socket.connect(address).await.unwrap())
}

#[tokio::test]
async fn a_slow_reader_holds_nobody_up_and_is_cut_off() {
    let mut setup = Setup::default();
    setup.config.stalled_reader_timeout = Duration::from_millis(300);
    let harness = setup.start().await;
    let mut slow = Vec::new();
    for _ in 0..4 {
        let mut wire = narrow(harness.address).await;
        // Some megabytes of events.
        let body = serde_json::json!({
            "prompt": "tick", "n": 8, "max_tokens": 4000, "ignore_eos": true, "stream": true,
        });
        wire.send(request("POST", "/v1/completions", &[], &body.to_string())).await;
        slow.push(wire);
    }
    for _ in 0..4 {
        assert_eq!(post(harness.address, CHAT, &chat(false, 20)).await.status, 200);
    }
    harness.eventually("they are gone", |harness| harness.shared.requests().num_active() == 0).await;
    for wire in slow {
        assert!(!wire.reply().await.body.contains("[DONE]"));
    }
}
