//! What is answered from the cache, and when nobody is asked at all.

use std::fs;

use super::mock_hub::{Fault, MockHub};
use super::{COMMIT, NEXT_COMMIT, User};
use crate::Error;

#[test]
fn offline_with_a_cache_asks_nobody() {
    let hub = MockHub::sharded();
    let mut user = User::of(&hub);
    let directory = user.pull().unwrap();
    let num_requests = hub.requests().len();
    user.options.offline = true;
    assert_eq!(user.resolve().unwrap(), directory);
    user.options.revision = Some(COMMIT.into());
    assert_eq!(user.resolve().unwrap(), directory);
    assert_eq!(hub.requests().len(), num_requests);
}

#[test]
fn offline_without_a_cache_names_what_is_missing_and_the_remedy() {
    let hub = MockHub::sharded();
    let mut user = User::of(&hub);
    user.options.offline = true;
    let text = user.resolve().unwrap_err().to_string();
    assert!(text.contains("`org/model`") && text.contains("`main`"), "{text}");
    assert!(text.contains("chorale pull org/model"), "{text}");

    user.options.offline = false;
    let shard = "model-00001-of-00002.safetensors";
    fs::remove_file(user.pull().unwrap().join(shard)).unwrap();
    let num_requests = hub.requests().len();
    user.options.offline = true;
    let error = user.resolve().unwrap_err();
    assert!(matches!(&error, Error::NotCached { file, .. } if file == shard), "{error}");
    assert!(matches!(user.pull(), Err(Error::Offline { .. })));
    assert_eq!(hub.requests().len(), num_requests);
}

#[test]
fn a_commit_that_is_here_needs_no_network() {
    let hub = MockHub::sharded();
    let mut user = User::of(&hub);
    user.options.revision = Some(COMMIT.into());
    let directory = user.pull().unwrap();
    assert!(!user.root().join("refs").exists(), "a commit is no branch");
    let num_requests = hub.requests().len();
    assert_eq!(user.resolve().unwrap(), directory);
    assert_eq!(user.pull().unwrap(), directory);
    assert_eq!(hub.requests().len(), num_requests);
    user.options.revision = Some(NEXT_COMMIT.into());
    assert!(user.resolve().unwrap().ends_with(NEXT_COMMIT));
}

#[test]
fn a_branch_falls_back_to_the_cache_when_the_hub_is_down_and_a_pull_does_not() {
    let hub = MockHub::sharded();
    let mut user = User::of(&hub);
    let directory = user.pull().unwrap();
    hub.fail("listing", &[Fault::Status(503, ""); 2]);
    assert_eq!(user.resolve().unwrap(), directory);

    user.options.endpoint = closed_port();
    assert_eq!(user.resolve().unwrap(), directory);
    let error = user.pull().unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains(&user.options.endpoint), "{error}");
}

#[test]
fn a_branch_falls_back_when_an_update_breaks_half_way() {
    let hub = MockHub::single();
    let user = User::of(&hub);
    let directory = user.pull().unwrap();
    hub.commit_again();
    fs::remove_file(user.root().join("blobs").join(hub.sha256("model.safetensors"))).unwrap();
    // The old commit is whole, the content that the new one shares with it is not here.
    fs::remove_file(directory.join("model.safetensors")).unwrap();
    fs::write(directory.join("model.safetensors"), "the old weights").unwrap();
    hub.fail("model.safetensors", &[Fault::CutAfter(0); 20]);
    assert_eq!(user.resolve().unwrap(), directory);
    assert_eq!(fs::read_to_string(user.root().join("refs/main")).unwrap(), COMMIT);
}

#[test]
fn a_refusal_is_not_papered_over_with_the_cache() {
    let hub = MockHub::sharded();
    let user = User::of(&hub);
    user.pull().unwrap();
    hub.fail("listing", &[Fault::Status(403, "")]);
    assert!(matches!(user.resolve(), Err(Error::Denied { .. })));
}

/// A loopback address that refuses connections.
fn closed_port() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}
