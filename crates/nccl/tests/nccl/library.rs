//! What is said of libraries that cannot be used.

use crate::fake;
use chorale_nccl::{Library, NcclError};
use std::path::Path;

#[test]
fn a_library_that_is_nowhere_is_looked_for_where_it_was_said_to_be() {
    let missing = Path::new("/nowhere/libnccl.so.2");
    let error = Library::open(Some(missing)).unwrap_err();
    let NcclError::NotFound { tried } = &error else { panic!("{error}") };
    assert!(tried.contains("/nowhere/libnccl.so.2"), "{tried}");
    assert!(error.to_string().contains("install"), "{error}");
}

#[test]
fn what_is_no_library_is_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "no library").unwrap();
    let error = Library::open(Some(file.path())).unwrap_err().to_string();
    assert!(error.contains(file.path().to_str().unwrap()), "{error}");
}

#[test]
fn versions_that_are_too_old_and_missing_functions_are_refused_by_name() {
    let error = Library::open(Some(&fake::build(&["-DVERSION=22105"]))).unwrap_err().to_string();
    assert!(error.contains("is NCCL 2.21.5; 2.22.0 or newer is needed"), "{error}");
    let error = Library::open(Some(&fake::build(&["-DLACKING"]))).unwrap_err().to_string();
    assert!(error.contains("has no ncclSend"), "{error}");
}

#[test]
fn a_library_that_will_do_says_what_it_is() {
    let library = fake::open(&[]);
    assert_eq!(library.version().to_string(), "2.28.9");
    let (one, other) = (library.unique_id().unwrap(), library.unique_id().unwrap());
    assert_ne!(one, other);
    // Nobody will come: what the stand-in keeps for them goes here.
    for id in [one, other] {
        let path = id.0.split(|byte| *byte == 0).next().unwrap();
        std::fs::remove_file(std::str::from_utf8(path).unwrap()).unwrap();
    }
}
