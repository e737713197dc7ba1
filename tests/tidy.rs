//! The rules of this repository that a machine can check: what may know what,
//! and what no file may hold.

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which of our crates each crate may use: the map in the README. Two halves,
/// the coordinator's and the worker's, meet only in `plan`.
const MAY_USE: [(&str, &[&str]); 16] = [
    ("plan", &[]),
    ("harmony", &["plan"]),
    ("scheduler", &["plan"]),
    ("wire", &["plan"]),
    ("coordinator", &["scheduler", "wire", "plan"]),
    ("api", &["coordinator", "harmony", "wire", "plan"]),
    ("device", &[]),
    ("cuda", &["device"]),
    ("emulator", &["cuda"]),
    ("link", &["device", "wire", "plan"]),
    ("model", &["link", "device", "plan"]),
    ("nccl", &["link", "cuda", "device", "wire", "plan"]),
    ("worker", &["model", "link", "device", "wire", "plan"]),
    ("kbench", &["model", "link", "cuda", "device", "plan"]),
    ("hub", &[]),
    (
        "cli",
        &[
            "api",
            "coordinator",
            "worker",
            "hub",
            "harmony",
            "model",
            "link",
            "cuda",
            "nccl",
            "device",
            "wire",
            "plan",
        ],
    ),
];

/// The longest a source file may be: one that can be held in one's head.
const MAX_LINES: usize = 500;

/// What sources are written in, and how their first line says what they are.
const LANGUAGES: [(&str, &str); 5] = [("rs", "//!"), ("cu", "//"), ("cuh", "//"), ("cpp", "//"), ("h", "//")];

/// What the top level may hold beside hidden files.
const TOP_LEVEL: [&str; 11] = [
    "Cargo.toml",
    "Cargo.lock",
    "README.md",
    "LICENSE",
    "crates",
    "proto",
    "deploy",
    "helm",
    "tests",
    "benches",
    "target",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Every file below the folders that hold sources, fixtures left out.
fn sources(extension: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders: Vec<PathBuf> = ["crates", "tests", "benches"]
        .map(|folder| root().join(folder))
        .into_iter()
        .filter(|p| p.exists())
        .collect();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() && !["fixtures", "target", "assets", "corpus", "artifacts"].contains(&name) {
                folders.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                files.push(path);
            }
        }
    }
    assert!(!files.is_empty());
    files.sort();
    files
}

#[test]
fn crates_use_only_what_the_map_allows() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let may_use: BTreeMap<&str, BTreeSet<&str>> =
        MAY_USE.iter().map(|(name, uses)| (*name, uses.iter().copied().collect())).collect();
    let ours = |name: &Value| name.as_str().unwrap().strip_prefix("chorale-").map(str::to_owned);
    for package in metadata["packages"].as_array().unwrap() {
        let name = ours(&package["name"]).unwrap();
        if ["e2e", "benches"].contains(&name.as_str()) {
            continue;
        }
        let allowed = may_use.get(name.as_str()).unwrap_or_else(|| panic!("{name} is not in the map"));
        for dependency in package["dependencies"].as_array().unwrap() {
            let Some(used) = ours(&dependency["name"]) else { continue };
            let is_test = dependency["kind"] == "dev";
            assert!(is_test || allowed.contains(used.as_str()), "{name} must not use {used}");
        }
    }
}

#[test]
fn files_are_small_and_say_what_they_are() {
    for (extension, header) in LANGUAGES {
        for path in sources(extension) {
            let text = std::fs::read_to_string(&path).unwrap();
            let file = path.display();
            let lines = text.lines().count();
            assert!(lines <= MAX_LINES, "{file} has {lines} lines");
            let first = text.lines().find(|line| !line.starts_with("#!"));
            assert!(first.is_some_and(|line| line.starts_with(header)), "{file} does not say what it is");
        }
    }
}

#[test]
fn nothing_unfinished_or_nondescript_is_left() {
    // Spelt apart, so that this file does not find itself.
    let refused = [
        ["FIX", "ME"].concat(),
        ["TO", "DO"].concat(),
        ["dbg", "!("].concat(),
        ["unimpl", "emented!"].concat(),
    ];
    let nondescript = ["utils", "util", "helpers", "helper", "common", "core", "misc", "manager", "handler"];
    for path in LANGUAGES.iter().flat_map(|(extension, _)| sources(extension)) {
        let text = std::fs::read_to_string(&path).unwrap();
        for word in &refused {
            assert!(!text.contains(word.as_str()), "{} holds {word}", path.display());
        }
        let stem = path.file_stem().unwrap().to_str().unwrap();
        assert!(!nondescript.contains(&stem), "{} has a name that says nothing", path.display());
    }
}

#[test]
fn the_top_level_holds_what_it_should() {
    for entry in std::fs::read_dir(root()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(name.starts_with('.') || TOP_LEVEL.contains(&name.as_str()), "{name} does not belong there");
    }
}

#[test]
fn unsafe_code_is_allowed_by_name_only_where_files_are_mapped() {
    let allowed: Vec<PathBuf> = sources("rs")
        .into_iter()
        .filter(|path| {
            let text = std::fs::read_to_string(path).unwrap();
            ["#[allow(unsafe", "#[expect(unsafe", "#![allow(unsafe", "#![expect(unsafe"]
                .iter()
                .any(|attribute| text.lines().any(|line| line.trim_start().starts_with(attribute)))
        })
        .collect();
    let expected: Vec<PathBuf> = UNSAFE_FILES.iter().map(|file| root().join(file)).collect();
    assert_eq!(allowed, expected);
}

/// Every file that may hold unsafe code, and why.
const UNSAFE_FILES: [&str; 31] = [
    // Calls CUDA's driver, which is loaded at run time.
    "crates/cuda/src/driver/api.rs",
    "crates/cuda/src/driver/arrivals.rs",
    "crates/cuda/src/driver/aside.rs",
    "crates/cuda/src/driver/context.rs",
    "crates/cuda/src/driver/device.rs",
    "crates/cuda/src/driver/kernels.rs",
    "crates/cuda/src/driver/launching.rs",
    "crates/cuda/src/driver/nvrtc.rs",
    "crates/cuda/src/driver/peers.rs",
    "crates/cuda/src/driver/probe.rs",
    "crates/cuda/src/driver/staging.rs",
    // Launches kernels on memory that the crate owns.
    "crates/cuda/src/gpu.rs",
    "crates/cuda/src/memory.rs",
    // Stands in for a GPU, and touches nothing.
    "crates/cuda/src/paper.rs",
    "crates/cuda/src/peers.rs",
    "crates/cuda/src/stream.rs",
    "crates/cuda/tests/driver/main.rs",
    // Runs kernels that are compiled for the host.
    "crates/emulator/src/aside.rs",
    "crates/emulator/src/gpu.rs",
    "crates/emulator/src/native.rs",
    "crates/emulator/tests/kbench/faulty.rs",
    "crates/emulator/tests/rig/mod.rs",
    // Launches kernels of its own on raw memory.
    "crates/kbench/src/bench/bus.rs",
    "crates/kbench/src/bench/limits.rs",
    "crates/kbench/src/primitives.rs",
    "crates/kbench/src/watched.rs",
    // Maps checkpoint files into memory.
    "crates/model/src/checkpoint/files.rs",
    // Calls NCCL, which is loaded at run time.
    "crates/nccl/src/comm.rs",
    "crates/nccl/src/library.rs",
    "crates/nccl/src/link.rs",
    "crates/nccl/tests/nccl/fake.rs",
];
