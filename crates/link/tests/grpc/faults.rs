//! Ranks that end, hang, or never come.

use crate::world::{MAX_BYTES, PATIENCE, World, connect, frame, members};
use chorale_link::{Fault, Transport};
use chorale_plan::{Epoch, Rank};
use std::time::{Duration, Instant};

const SHORT: Duration = Duration::from_millis(200);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rank_that_breaks_off_is_noticed_at_once() {
    let mut world = connect(3, PATIENCE).await;
    let mut first = world.transports.remove(0);
    let waiting = tokio::task::spawn_blocking(move || {
        let started = Instant::now();
        let fault = first.receive(Rank(2)).unwrap_err();
        (fault, started.elapsed(), first)
    });
    world.ends[2].end();
    let (fault, waited, mut first) = waiting.await.unwrap();
    assert!(matches!(fault, Fault::Broken { rank: Rank(2), .. }), "{fault}");
    assert!(waited < PATIENCE / 4, "{waited:?}");
    // The way there is broken, too, as soon as it was tried.
    let fault = (0..1000).find_map(|exchange| first.send(Rank(2), frame(exchange, Vec::new())).err());
    assert_eq!(fault.and_then(|fault| fault.rank()), Some(Rank(2)));
    // The others have each other still.
    first.send(Rank(1), frame(0, b"well".to_vec())).unwrap();
    assert_eq!(world.transports[0].receive(Rank(0)), Ok(frame(0, b"well".to_vec())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rank_that_hangs_is_named_by_who_waits_for_it() {
    let mut world = connect(2, SHORT).await;
    let fault = world.transports[0].receive(Rank(1)).unwrap_err();
    assert_eq!(fault, Fault::Timeout { rank: Rank(1), waited: SHORT });
    // It takes nothing either: sends wait once everything on the way is full.
    let fault = (0..100)
        .find_map(|exchange| world.transports[0].send(Rank(1), frame(exchange, vec![0; MAX_BYTES])).err());
    assert_eq!(fault, Some(Fault::Timeout { rank: Rank(1), waited: SHORT }));
    // And it was late, not lost.
    assert_eq!(world.transports[1].receive(Rank(0)), Ok(frame(0, vec![0; MAX_BYTES])));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_the_epoch_wakes_who_waits() {
    let mut world = connect(2, PATIENCE).await;
    let mut first = world.transports.remove(0);
    let waiting = tokio::task::spawn_blocking(move || (first.receive(Rank(1)), first));
    world.ends[0].end();
    let (received, mut first) = waiting.await.unwrap();
    assert_eq!(received, Err(Fault::Over));
    assert_eq!(first.send(Rank(1), frame(0, Vec::new())), Err(Fault::Over));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rank_that_never_comes_is_named() {
    let mut world = World::bind(2, None).await;
    // Nobody listens at the third's address any more.
    let gone = crate::world::port(None).await;
    let mut addresses: Vec<String> = world.ports.iter().map(|port| port.address().to_string()).collect();
    addresses.push(gone.address().to_string());
    drop(gone);
    let mut members = members(Epoch(1), &addresses, PATIENCE);
    members.iter_mut().for_each(|member| member.connect_timeout = SHORT);
    for outcome in world.try_enter(members).await {
        let error = outcome.unwrap_err();
        assert_eq!(error.rank, Some(Rank(2)));
        assert!(error.reason.contains(&addresses[2]), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_connections_hears_of_the_epochs_end() {
    let world = World::bind(1, None).await;
    let addresses = [world.ports[0].address().to_string(), "127.0.0.1:9".to_owned()];
    let member = members(Epoch(1), &addresses, PATIENCE).remove(0);
    let (_transport, end, connecting) = world.ports[0].join(member);
    let waiting = tokio::spawn(connecting.wait());
    end.end();
    assert_eq!(waiting.await.unwrap().unwrap_err().rank, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_that_is_too_large_is_the_senders_own_mistake() {
    let mut world = connect(2, SHORT).await;
    let fault = world.transports[0].send(Rank(1), frame(0, vec![0; MAX_BYTES + 1])).unwrap_err();
    assert!(matches!(fault, Fault::Malformed { rank: Rank(0), .. }), "{fault}");
    assert!(matches!(world.transports[0].receive(Rank(5)), Err(Fault::Broken { rank: Rank(5), .. })));
    assert!(matches!(world.transports[0].receive(Rank(0)), Err(Fault::Broken { rank: Rank(0), .. })));
}
