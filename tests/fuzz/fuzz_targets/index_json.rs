//! Any text is an index or an error, and no index leads out of its directory.
//! Seeds: the fixtures' `model.safetensors.index.json`.

#![no_main]

use chorale_model::checkpoint::Index;
use libfuzzer_sys::fuzz_target;
use std::path::{Component, Path};

fuzz_target!(|text: &str| {
    let Ok(index) = Index::parse(Path::new("index.json"), text) else { return };
    assert!(!index.files.is_empty());
    for path in index.files.values() {
        let inside = |component| matches!(component, Component::Normal(_));
        assert!(!path.is_empty() && Path::new(path).components().all(inside), "{path:?}");
    }
});
