//! What the hub says no to, each told apart and each with its remedy.

use super::User;
use super::mock_hub::{Fault, MockHub};
use crate::Error;

const WEIGHTS: &str = "model.safetensors";

#[test]
fn a_repository_that_wants_a_login_says_how_to_get_in() {
    for status in [401, 403] {
        let hub = MockHub::single();
        hub.fail("listing", &[Fault::Status(status, "")]);
        let error = User::of(&hub).pull().unwrap_err();
        assert!(matches!(error, Error::Denied { status: s, .. } if s == status), "{error}");
        let text = error.to_string();
        assert!(text.contains("HF_TOKEN") && text.contains("licence"), "{text}");
        assert!(text.contains(&format!("{}/org/model", hub.endpoint())), "{text}");
        assert_eq!(hub.requests().len(), 1, "no use in asking again");
    }
}

#[test]
fn a_gated_file_is_refused_as_its_repository_is() {
    let hub = MockHub::single();
    hub.fail(WEIGHTS, &[Fault::Status(403, "GatedRepo")]);
    let error = User::of(&hub).pull().unwrap_err();
    assert!(matches!(error, Error::Denied { status: 403, .. }), "{error}");
}

#[test]
fn a_missing_repository_revision_and_file_are_three_errors() {
    let hub = MockHub::single();
    hub.fail("listing", &[Fault::Status(404, "RepoNotFound")]);
    let mut user = User::of(&hub);
    let error = user.pull().unwrap_err();
    assert!(matches!(error, Error::NoRepository { .. }), "{error}");

    user.options.revision = Some("nope".into());
    let error = user.pull().unwrap_err();
    assert!(matches!(&error, Error::NoRevision { revision, .. } if revision == "nope"), "{error}");

    user.options.revision = None;
    hub.fail(WEIGHTS, &[Fault::Status(404, "EntryNotFound")]);
    let error = user.pull().unwrap_err();
    assert!(matches!(&error, Error::NoFile { file, .. } if file == WEIGHTS), "{error}");
}

#[test]
fn a_repository_that_is_no_model_is_told_by_what_it_lacks() {
    let hub = MockHub::serving(vec![("README.md".into(), b"# x".to_vec())]);
    let error = User::of(&hub).pull().unwrap_err();
    assert!(matches!(&error, Error::NoFile { file, .. } if file == "config.json"), "{error}");

    let files = vec![("config.json".into(), b"{}".to_vec()), ("pytorch_model.bin".into(), b"x".to_vec())];
    let error = User::of(&MockHub::serving(files)).pull().unwrap_err();
    assert!(matches!(&error, Error::NoFile { file, .. } if file == WEIGHTS), "{error}");
}

#[test]
fn an_index_that_names_what_is_not_there_is_an_error() {
    let index = br#"{"weight_map": {"a": "lost.safetensors"}}"#.to_vec();
    let hub = MockHub::serving(vec![
        ("config.json".into(), b"{}".to_vec()),
        ("model.safetensors.index.json".into(), index),
    ]);
    let error = User::of(&hub).pull().unwrap_err();
    assert!(matches!(&error, Error::NoFile { file, .. } if file == "lost.safetensors"), "{error}");
}

#[test]
fn what_cannot_be_used_is_refused_before_anything_is_asked() {
    let hub = MockHub::single();
    let mut user = User::of(&hub);
    user.options.revision = Some("../main".into());
    assert!(matches!(user.pull(), Err(Error::Revision { .. })));
    user.options.revision = None;
    user.options.token = Some("hf_\nx".into());
    let error = user.pull().unwrap_err();
    assert!(matches!(error, Error::Variable { name: "HF_TOKEN", .. }), "{error}");
    assert!(!error.to_string().contains("hf_"), "{error}");
    user.options.token = None;
    user.options.endpoint = "huggingface.co".into();
    assert!(matches!(user.pull(), Err(Error::Variable { name: "HF_ENDPOINT", .. })));
    assert_eq!(hub.requests(), []);
}
