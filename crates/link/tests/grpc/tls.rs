//! Only those who belong to the cluster talk to each other.

use crate::world::{PATIENCE, World, frame, members, port};
use chorale_link::Transport;
use chorale_plan::{Epoch, Rank};
use chorale_wire::tls::{Tls, make_certificates};
use std::path::Path;
use std::time::Duration;

/// A new cluster's certificates.
fn cluster(folder: &Path, name: &str) -> Tls {
    make_certificates(&folder.join(name), &["worker"]).unwrap();
    Tls::load(&folder.join(name).join("worker")).unwrap()
}

/// Whether two ranks with these certificates find each other.
async fn meet(first: Option<Tls>, second: Option<Tls>) -> Result<World, String> {
    let ports = vec![port(first).await, port(second).await];
    let addresses: Vec<String> = ports.iter().map(|port| port.address().to_string()).collect();
    let mut world = World { ports, transports: Vec::new(), ends: Vec::new() };
    let mut members = members(Epoch(1), &addresses, PATIENCE);
    members.iter_mut().for_each(|member| member.connect_timeout = Duration::from_secs(1));
    match world.try_enter(members).await.into_iter().find_map(Result::err) {
        Some(error) => Err(error.reason),
        None => Ok(world),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranks_of_one_authority_find_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let tls = cluster(folder.path(), "one");
    let mut world = meet(Some(tls.clone()), Some(tls)).await.map_err(|reason| panic!("{reason}")).unwrap();
    let sent = frame(0, vec![7; 3_000_000]);
    world.transports[0].send(Rank(1), sent.clone()).unwrap();
    assert_eq!(world.transports[1].receive(Rank(0)), Ok(sent));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_refused_on_both_sides() {
    let folder = tempfile::tempdir().unwrap();
    let tls = cluster(folder.path(), "one");
    let other = cluster(folder.path(), "other");
    let reason = meet(Some(tls.clone()), Some(other)).await.err().unwrap();
    assert!(reason.contains("certificate"), "{reason}");
    for (first, second) in [(Some(tls.clone()), None), (None, Some(tls))] {
        assert!(meet(first, second).await.is_err(), "plaintext is for both or for none");
    }
}
