//! Ranks that talk over loopback: what is sent arrives, and what fails names
//! the rank that failed.

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

mod faults;
mod silence;
mod strangers;
mod tls;
mod world;

use chorale_link::{Fault, Frame, Transport};
use chorale_plan::{Epoch, Rank};
use std::time::Duration;
use world::{PATIENCE, World, connect, frame, members};

/// What one rank says to another in an exchange: of any size, and never twice
/// the same.
fn said(from: usize, to: usize, exchange: u32) -> Frame {
    let seed = (from * 31 + to * 7 + exchange as usize * 131) % 1009;
    let len = [0, 1, 5, 1000, 16_384, 70_000, 1_100_000][seed % 7];
    frame(exchange, (0..len).map(|index| ((index * seed) >> 3) as u8).collect())
}

/// What every rank does in step with the others.
fn exchange_all(rank: usize, num_ranks: usize, transport: &mut impl Transport) {
    let others = || (0..num_ranks).filter(|other| *other != rank);
    for exchange in 0..30 {
        for to in others() {
            transport.send(Rank(to as u32), said(rank, to, exchange)).unwrap();
        }
        for from in others() {
            assert_eq!(transport.receive(Rank(from as u32)), Ok(said(from, rank, exchange)));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_arrive_whole_and_in_order_in_worlds_of_all_sizes() {
    for num_ranks in 1..=4 {
        let World { ports, transports, .. } = connect(num_ranks, PATIENCE).await;
        let threads: Vec<_> = (0..num_ranks)
            .zip(transports)
            .map(|(rank, mut transport)| {
                tokio::task::spawn_blocking(move || exchange_all(rank, num_ranks, &mut transport))
            })
            .collect();
        for thread in threads {
            thread.await.unwrap();
        }
        drop(ports);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_port_serves_one_epoch_after_the_other() {
    let mut world = connect(2, PATIENCE).await;
    for epoch in 2..5 {
        // The older epoch is not ended first: the new one does that.
        let older = std::mem::take(&mut world.transports);
        let addresses: Vec<String> = world.ports.iter().map(|port| port.address().to_string()).collect();
        world.enter(members(Epoch(epoch), &addresses, PATIENCE)).await;
        for (rank, mut transport) in older.into_iter().enumerate() {
            assert_eq!(transport.receive(Rank(1 - rank as u32)), Err(Fault::Over));
        }
        let [first, second] = world.transports.as_mut_slice() else { panic!("two ranks") };
        first.send(Rank(1), frame(0, b"new".to_vec())).unwrap();
        assert_eq!(second.receive(Rank(0)), Ok(frame(0, b"new".to_vec())));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rank_that_goes_has_said_what_it_sent() {
    let mut world = connect(2, PATIENCE).await;
    let mut last = world.transports.pop().unwrap();
    let mut first = world.transports.pop().unwrap();
    for exchange in 0..4 {
        last.send(Rank(0), said(1, 0, exchange)).unwrap();
    }
    drop(last);
    for exchange in 0..4 {
        assert_eq!(first.receive(Rank(1)), Ok(said(1, 0, exchange)));
    }
    assert!(matches!(first.receive(Rank(1)), Err(Fault::Broken { rank: Rank(1), .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranks_that_know_of_an_epoch_early_are_held() {
    let world = World::bind(2, None).await;
    let addresses: Vec<String> = world.ports.iter().map(|port| port.address().to_string()).collect();
    let mut members = members(Epoch(1), &addresses, PATIENCE);
    let (_late, late_member) = (&world.ports[1], members.pop().unwrap());
    let (mut early, _, connecting) = world.ports[0].join(members.pop().unwrap());
    // Sent before anybody is there: it waits as any other frame.
    early.send(Rank(1), frame(0, b"early".to_vec())).unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let (mut late, _, late_connecting) = world.ports[1].join(late_member);
    connecting.wait().await.unwrap();
    late_connecting.wait().await.unwrap();
    assert_eq!(late.receive(Rank(0)), Ok(frame(0, b"early".to_vec())));
}
