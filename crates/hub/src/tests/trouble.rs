//! Connections that break, stall and lie, and a disk that is full.

use std::fs;
use std::time::Duration;

use super::mock_hub::{Fault, MockHub};
use super::{User, id, impatient};
use crate::patience::Patience;
use crate::{Error, hub};

const WEIGHTS: &str = "model.safetensors";

/// What was asked of the host that stores the weights, request by request.
fn ranges(hub: &MockHub) -> Vec<Option<String>> {
    let stored = hub.requests_for(WEIGHTS).into_iter().filter(|request| request.path.starts_with("/stored/"));
    stored.map(|request| request.range).collect()
}

fn range(start: usize) -> Option<String> {
    Some(format!("bytes={start}-"))
}

fn assert_pulled(hub: &MockHub, user: &User) {
    let directory = user.pull().unwrap();
    assert_eq!(fs::read(directory.join(WEIGHTS)).unwrap(), hub.content(WEIGHTS));
    assert!(user.blobs().iter().all(|name| !name.ends_with(".incomplete")));
}

#[test]
fn a_cut_connection_is_resumed_where_it_broke() {
    let hub = MockHub::single();
    hub.fail(WEIGHTS, &[Fault::CutAfter(100_000), Fault::CutAfter(50_000)]);
    assert_pulled(&hub, &User::of(&hub));
    assert_eq!(ranges(&hub), [None, range(100_000), range(150_000)]);
}

#[test]
fn an_interrupted_run_is_resumed_by_the_next() {
    let hub = MockHub::single();
    let mut user = User::of(&hub);
    hub.fail(WEIGHTS, &[Fault::CutAfter(120_000)]);
    let once = Patience { attempts: 1, ..impatient() };
    let error = hub::pull(&id(), &user.options, once, &|_| {}).unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    assert!(!user.root().join("refs/main").exists(), "a branch does not stand for half a model");
    user.options.offline = true;
    assert!(user.resolve().is_err());
    user.options.offline = false;
    assert_pulled(&hub, &user);
    assert_eq!(ranges(&hub), [None, range(120_000)]);
}

#[test]
fn a_connection_that_falls_silent_is_given_up_and_resumed() {
    let hub = MockHub::single();
    let user = User::of(&hub);
    hub.fail(WEIGHTS, &[Fault::StallAfter(70_000)]);
    let brief = Patience { stall: Duration::from_secs(1), ..impatient() };
    hub::pull(&id(), &user.options, brief, &|_| {}).unwrap();
    assert_pulled(&hub, &user);
    assert_eq!(ranges(&hub), [None, range(70_000)]);
}

#[test]
fn progress_made_between_failures_keeps_it_going() {
    let hub = MockHub::single();
    hub.fail(WEIGHTS, &[Fault::CutAfter(20_000); 12]);
    assert_pulled(&hub, &User::of(&hub));
    assert_eq!(ranges(&hub).len(), 13, "three times as many as failures in a row are allowed");
}

#[test]
fn failures_without_progress_end_it() {
    let hub = MockHub::single();
    hub.fail(WEIGHTS, &[Fault::CutAfter(0); 20]);
    let error = User::of(&hub).pull().unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    assert_eq!(ranges(&hub).len(), 4);
}

#[test]
fn a_busy_hub_is_asked_again() {
    let hub = MockHub::single();
    hub.fail("listing", &[Fault::Status(503, ""), Fault::Status(429, "")]);
    hub.fail(WEIGHTS, &[Fault::Status(502, ""), Fault::Status(500, "")]);
    assert_pulled(&hub, &User::of(&hub));
}

#[test]
fn a_host_that_cannot_resume_sends_it_all_again() {
    let hub = MockHub::single();
    hub.fail(WEIGHTS, &[Fault::CutAfter(100_000), Fault::IgnoreRange]);
    assert_pulled(&hub, &User::of(&hub));
    assert_eq!(ranges(&hub), [None, range(100_000)]);
}

#[test]
fn a_wrong_hash_is_an_error_and_leaves_nothing_behind() {
    let hub = MockHub::single();
    let user = User::of(&hub);
    hub.fail(WEIGHTS, &[Fault::WrongBytes]);
    let error = user.pull().unwrap_err();
    assert!(matches!(&error, Error::Mismatch { file, what: "hash", .. } if file == WEIGHTS), "{error}");
    assert!(error.to_string().contains(&hub.sha256(WEIGHTS)), "{error}");
    assert_eq!(user.blobs().len(), 1, "only config.json");
    assert_pulled(&hub, &user);
}

#[test]
fn a_small_file_is_checked_too() {
    let hub = MockHub::single();
    hub.fail("config.json", &[Fault::WrongBytes]);
    let error = User::of(&hub).pull().unwrap_err();
    assert!(matches!(&error, Error::Mismatch { file, .. } if file == "config.json"), "{error}");
}

#[test]
fn what_an_earlier_run_left_is_not_trusted() {
    let hub = MockHub::single();
    let user = User::of(&hub);
    user.leave_partial(&hub.sha256(WEIGHTS), &[7; 100_000]);
    assert_pulled(&hub, &user);
    assert_eq!(ranges(&hub), [range(100_000), None]);
}

#[test]
fn a_left_file_that_is_too_long_is_begun_again() {
    let hub = MockHub::single();
    let user = User::of(&hub);
    user.leave_partial(&hub.sha256(WEIGHTS), &[7; 300_001]);
    assert_pulled(&hub, &user);
    assert_eq!(ranges(&hub), [None]);
}

#[test]
fn a_left_file_that_is_complete_needs_no_request() {
    let hub = MockHub::single();
    let user = User::of(&hub);
    user.leave_partial(&hub.sha256(WEIGHTS), hub.content(WEIGHTS));
    assert_pulled(&hub, &user);
    assert_eq!(ranges(&hub), []);
}

#[test]
fn one_shard_that_fails_ends_the_others() {
    let hub = MockHub::sharded();
    let shards = ["model-00000-of-00002.safetensors", "model-00001-of-00002.safetensors"];
    hub.fail(shards[0], &[Fault::StallAfter(1000); 20]);
    hub.fail(shards[1], &[Fault::WrongBytes]);
    let minute = Duration::from_secs(60);
    let patient = Patience { stall: Duration::from_secs(1), pause: minute, pause_max: minute, ..impatient() };
    let error = hub::pull(&id(), &User::of(&hub).options, patient, &|_| {}).unwrap_err();
    assert!(matches!(&error, Error::Mismatch { file, .. } if file == shards[1]), "{error}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_called_by_its_name() {
    let hub = MockHub::single();
    let user = User::of(&hub);
    fs::create_dir_all(user.root().join("blobs")).unwrap();
    let partial = user.root().join("blobs").join(format!("{}.incomplete", hub.sha256(WEIGHTS)));
    // A device on which every write finds the disk full.
    std::os::unix::fs::symlink("/dev/full", &partial).unwrap();
    let error = user.pull().unwrap_err();
    assert!(matches!(error, Error::DiskFull { num_bytes: 300_000, .. }), "{error}");
    assert!(error.to_string().contains("HF_HUB_CACHE"), "{error}");
}

#[test]
fn a_cache_that_cannot_be_written_is_an_error_with_a_remedy() {
    let error = Error::writing("/cache".as_ref(), 0)(std::io::ErrorKind::ReadOnlyFilesystem.into());
    assert!(matches!(error, Error::NotWritable { .. }), "{error}");
    assert!(error.to_string().contains("--cache-dir"), "{error}");
}
