//! What a pull asks for, and what it leaves in the cache.

use std::fs;
use std::path::Path;

use super::mock_hub::{MockHub, git_id};
use super::{COMMIT, NEXT_COMMIT, Script, User, id, impatient, names};
use crate::hub;

const SHARDS: [&str; 3] = [
    "model-00000-of-00002.safetensors",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
];

#[test]
fn a_sharded_model_is_its_configuration_and_the_shards_that_the_index_names() {
    let hub = MockHub::sharded();
    let user = User::of(&hub);
    let directory = user.pull().unwrap();
    let mut expected = vec!["config.json", "generation_config.json", "model.safetensors.index.json"];
    expected.extend(SHARDS);
    expected.sort_unstable();
    assert_eq!(names(&directory), expected);
    for name in &expected {
        assert_eq!(fs::read(directory.join(name)).unwrap(), hub.content(name), "{name}");
    }

    let mut asked: Vec<_> = hub.requests().into_iter().map(|request| request.path).collect();
    asked.sort();
    asked.dedup();
    let mut needed = vec!["/api/models/org/model/revision/main?blobs=true".to_owned()];
    needed.extend(expected.iter().map(|name| format!("/org/model/resolve/{COMMIT}/{name}")));
    needed.extend(SHARDS.map(|name| format!("/stored/{name}")));
    needed.sort();
    assert_eq!(asked, needed, "nothing else is asked for, and each at the commit");
    assert_eq!(hub.requests().len(), needed.len(), "each once");
}

#[test]
fn a_model_in_one_file_needs_no_index_and_no_generation_config() {
    let hub = MockHub::single();
    let user = User::of(&hub);
    assert_eq!(names(&user.pull().unwrap()), ["config.json", "model.safetensors"]);
}

#[test]
fn the_cache_is_laid_out_as_the_python_client_lays_it_out() {
    let hub = MockHub::single();
    let user = User::of(&hub);
    let directory = user.pull().unwrap();
    let root = user.root();
    assert_eq!(directory, root.join("snapshots").join(COMMIT));
    assert_eq!(names(&root), ["blobs", "refs", "snapshots"]);
    assert_eq!(fs::read_to_string(root.join("refs/main")).unwrap(), COMMIT);
    let (config, weights) = (git_id(b"{}"), hub.sha256("model.safetensors"));
    let mut blobs = vec![config.clone(), weights.clone()];
    blobs.sort();
    assert_eq!(user.blobs(), blobs);
    let link = |name: &str| fs::read_link(directory.join(name)).unwrap();
    assert_eq!(link("config.json"), Path::new("../../blobs").join(config));
    assert_eq!(link("model.safetensors"), Path::new("../../blobs").join(weights));
    assert_eq!(names(&user.options.cache_dir), [".locks", "models--org--model"]);
}

#[test]
fn a_revision_with_slashes_is_one_part_of_the_url_and_several_of_the_path() {
    let hub = MockHub::single();
    let mut user = User::of(&hub);
    user.options.revision = Some("refs/pr/1".into());
    user.pull().unwrap();
    assert_eq!(hub.requests()[0].path, "/api/models/org/model/revision/refs%2Fpr%2F1?blobs=true");
    assert_eq!(fs::read_to_string(user.root().join("refs/refs/pr/1")).unwrap(), COMMIT);
}

#[test]
fn the_token_goes_to_the_hub_and_not_to_the_host_that_it_redirects_to() {
    let hub = MockHub::single();
    User::of(&hub).pull().unwrap();
    for request in hub.requests() {
        let is_hub = request.host.starts_with("127.0.0.1");
        assert_eq!(request.token.as_deref(), is_hub.then_some("Bearer hf_test"), "{request:?}");
        assert_eq!(is_hub, !request.path.starts_with("/stored/"));
    }
}

#[test]
fn a_renamed_repository_is_followed_with_the_token_and_kept_under_the_name_that_was_asked_for() {
    let hub = MockHub::single();
    let user = User::of(&hub);
    let directory = hub::pull(&"org/old".parse().unwrap(), &user.options, impatient(), &|_| {}).unwrap();
    assert!(directory.starts_with(user.options.cache_dir.join("models--org--old")));
    assert_eq!(fs::read(directory.join("model.safetensors")).unwrap(), hub.content("model.safetensors"));
    for request in hub.requests() {
        assert_eq!(request.token.is_some(), !request.path.starts_with("/stored/"), "{request:?}");
    }
}

#[test]
fn a_pull_of_what_is_here_asks_for_the_listing_and_moves_nothing() {
    let hub = MockHub::sharded();
    let user = User::of(&hub);
    user.pull().unwrap();
    let num_requests = hub.requests().len();
    let script = Script::default();
    hub::pull(&id(), &user.options, impatient(), &|event| script.hear(event)).unwrap();
    assert_eq!(hub.requests().len(), num_requests + 1);
    assert_eq!(script.lines(), [""; 0]);
}

#[test]
fn a_new_commit_with_the_same_files_is_linked_and_not_downloaded() {
    let hub = MockHub::sharded();
    let user = User::of(&hub);
    user.pull().unwrap();
    hub.commit_again();
    let num_requests = hub.requests().len();
    let directory = user.resolve().unwrap();
    assert_eq!(hub.requests().len(), num_requests + 1);
    assert!(directory.ends_with(NEXT_COMMIT));
    assert_eq!(fs::read(directory.join(SHARDS[1])).unwrap(), hub.content(SHARDS[1]));
    assert_eq!(fs::read_to_string(user.root().join("refs/main")).unwrap(), NEXT_COMMIT);
}

#[test]
fn a_blob_of_the_wrong_size_is_downloaded_again() {
    let hub = MockHub::single();
    let user = User::of(&hub);
    let directory = user.pull().unwrap();
    let blob = user.root().join("blobs").join(hub.sha256("model.safetensors"));
    fs::write(&blob, "cut").unwrap();
    user.pull().unwrap();
    assert_eq!(fs::read(directory.join("model.safetensors")).unwrap(), hub.content("model.safetensors"));
}

#[test]
fn progress_tells_what_comes_and_what_came() {
    let hub = MockHub::single();
    let user = User::of(&hub);
    user.leave_partial(&hub.sha256("model.safetensors"), &hub.content("model.safetensors")[..100_000]);
    let script = Script::default();
    hub::resolve(&id(), &user.options, impatient(), &|event| script.hear(event)).unwrap();
    assert_eq!(
        script.lines(),
        [
            "planned 1 files, 300000 bytes",
            "model.safetensors started at 100000 of 300000",
            "model.safetensors finished",
            "finished",
        ]
    );
}

#[test]
fn pulls_at_once_into_one_cache_download_each_file_once() {
    let hub = MockHub::sharded();
    let user = User::of(&hub);
    std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..4).map(|_| scope.spawn(|| user.pull().unwrap())).collect();
        for pull in pulls {
            assert!(pull.join().unwrap().ends_with(COMMIT));
        }
    });
    for shard in SHARDS {
        assert_eq!(hub.requests_for(shard).len(), 2, "one to the hub and one to the store");
        let path = user.root().join("snapshots").join(COMMIT).join(shard);
        assert_eq!(fs::read(path).unwrap(), hub.content(shard));
    }
    assert!(user.blobs().iter().all(|name| !name.ends_with(".incomplete")));
}

#[test]
fn a_description_is_the_small_files_and_leaves_the_pull_to_do() {
    let hub = MockHub::sharded();
    let mut user = User::of(&hub);
    let described = user.describe().unwrap();
    assert!(!described.has_weights);
    let small = ["config.json", "generation_config.json", "model.safetensors.index.json"];
    assert_eq!(names(&described.directory), small);
    assert!(hub.requests().iter().all(|request| !request.path.contains("/stored/")), "no shard is asked for");

    let directory = user.pull().unwrap();
    assert_eq!(directory, described.directory);
    let num_requests = hub.requests().len();
    user.options.offline = true;
    assert!(user.describe().unwrap().has_weights);
    assert_eq!(hub.requests().len(), num_requests, "what was pulled needs no network");
}
