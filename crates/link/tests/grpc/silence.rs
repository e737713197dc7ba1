//! Connections on which nothing arrives: between ranks that have nothing to say,
//! and over a network that drops everything without a word.

use crate::world::{PATIENCE, World, connect, frame, members};
use chorale_link::{Fault, Transport};
use chorale_plan::{Epoch, Rank};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// A way to a port that can stop passing anything on. Nothing is closed.
struct Way {
    address: SocketAddr,
    cut: CancellationToken,
    _serving: AbortOnDropHandle<()>,
}

async fn way_to(port: SocketAddr) -> Way {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let cut = CancellationToken::new();
    let is_cut = cut.clone();
    let serving = tokio::spawn(async move {
        loop {
            let (near, _) = listener.accept().await.unwrap();
            let far = TcpStream::connect(port).await.unwrap();
            let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
            tokio::spawn(pass_on(near_in, far_out, is_cut.clone()));
            tokio::spawn(pass_on(far_in, near_out, is_cut.clone()));
        }
    });
    Way { address, cut, _serving: AbortOnDropHandle::new(serving) }
}

async fn pass_on(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, cut: CancellationToken) {
    let mut bytes = vec![0; 1 << 16];
    while let Some(Ok(num @ 1..)) = cut.run_until_cancelled(from.read(&mut bytes)).await {
        if to.write_all(&bytes[..num]).await.is_err() {
            return;
        }
    }
    if cut.is_cancelled() {
        // Both ends stay open, and hear nothing.
        std::future::pending::<()>().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranks_that_silently_lose_each_other_find_out_within_seconds() {
    let mut world = World::bind(2, None).await;
    let mut ways = Vec::new();
    for port in &world.ports {
        ways.push(way_to(port.address()).await);
    }
    let addresses: Vec<String> = ways.iter().map(|way| way.address.to_string()).collect();
    world.enter(members(Epoch(1), &addresses, PATIENCE)).await;
    world.transports[0].send(Rank(1), frame(0, b"before".to_vec())).unwrap();
    assert_eq!(world.transports[1].receive(Rank(0)), Ok(frame(0, b"before".to_vec())));

    ways.iter().for_each(|way| way.cut.cancel());
    let started = Instant::now();
    let waiting = world.transports.into_iter().zip([1, 0]).map(|(mut transport, other)| {
        tokio::task::spawn_blocking(move || {
            // What is sent goes nowhere, and nobody says so.
            transport.send(Rank(other), frame(1, b"lost".to_vec())).unwrap();
            (other, transport.receive(Rank(other)), transport)
        })
    });
    for waiting in waiting.collect::<Vec<_>>() {
        let (other, received, _transport) = waiting.await.unwrap();
        assert!(
            matches!(received, Err(Fault::Broken { rank, .. }) if rank == Rank(other)),
            "rank {other}: {received:?}"
        );
    }
    let waited = started.elapsed();
    assert!(waited < PATIENCE / 2, "{waited:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranks_that_compute_for_long_are_not_lost() {
    let mut world = connect(2, PATIENCE).await;
    // Longer than a silent connection may be: pings are answered meanwhile.
    tokio::time::sleep(Duration::from_secs(6)).await;
    for (from, to) in [(0, 1), (1, 0)] {
        world.transports[from].send(Rank(to as u32), frame(0, b"done".to_vec())).unwrap();
        assert_eq!(world.transports[to].receive(Rank(from as u32)), Ok(frame(0, b"done".to_vec())));
    }
}
