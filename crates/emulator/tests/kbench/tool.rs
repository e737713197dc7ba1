//! The tool: what it says of GPUs that are well, and of those that are not.

use super::{BREAKS, CANNOT_OPEN, FATAL, HANGS, HOPPER, LIES, OLD};
use chorale_kbench::primitives::PRIMITIVES;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub(crate) const CASES: [(&str, fn()); 10] = [
    ("primitives_hold_in_a_child", primitives_hold_in_a_child),
    ("every_measurement_runs_through", every_measurement_runs_through),
    ("a_kernel_that_hangs_is_named_and_the_rest_goes_on", hangs),
    ("a_broken_context_voids_nothing_else", breaks),
    ("what_fails_is_looked_at_kernel_by_kernel", lies),
    ("the_budget_ends_it_and_what_is_left_is_named", budget),
    ("results_are_there_after_a_kill", killed),
    ("a_gpu_that_cannot_be_opened_ends_it", cannot_open),
    ("all_can_be_done_in_one_process", here),
    ("no_gpu_is_status_3_and_a_wrong_call_2", statuses),
];

/// How many primitives there are below Hopper.
fn num_generic() -> usize {
    PRIMITIVES.iter().filter(|primitive| !primitive.is_hopper_only).count()
}

/// What the fatal kernel is of.
const FATAL_CHECK: &str = "copies arrive in shared memory, and zeros where they are not valid";

/// A run of the tool, and where its results are.
struct Tool {
    command: Command,
    folder: TempDir,
}

impl Tool {
    fn new(device: usize, words: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["kbench", "--device", &device.to_string()]).args(words.split_whitespace());
        command.arg("--json").arg(folder.path().join("results.json"));
        Self { command, folder }
    }

    fn run(&mut self) -> (Output, Value) {
        let output = self.command.output().unwrap();
        (output, read(&self.file()))
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("results.json")
    }
}

fn read(file: &Path) -> Value {
    std::fs::read(file).map_or(Value::Null, |bytes| serde_json::from_slice(&bytes).unwrap())
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The checks that hold, and what is said of those that do not.
fn checks(results: &Value) -> (Vec<&str>, Vec<(&str, &str)>) {
    let all = results["checks"].as_array().unwrap().iter();
    let (failed, held): (Vec<_>, Vec<_>) = all.partition(|check| check["failure"].is_string());
    (
        held.iter().map(|check| check["name"].as_str().unwrap()).collect(),
        failed
            .iter()
            .map(|check| (check["name"].as_str().unwrap(), check["failure"].as_str().unwrap()))
            .collect(),
    )
}

fn primitives_hold_in_a_child() {
    let (output, results) = Tool::new(HOPPER, "--check --only primitives").run();
    let (held, failed) = checks(&results);
    assert!(output.status.success() && failed.is_empty(), "{}", text(&output));
    assert!(held.len() > num_generic() && results["is_whole"] == true);
    assert_eq!(results["machine"]["capability"], serde_json::json!([9, 0]));
    assert!(text(&output).contains("0 failed"), "{}", text(&output));
}

fn every_measurement_runs_through() {
    let measure = |device: usize| {
        let (output, results) = Tool::new(device, "--bench").run();
        assert!(output.status.success(), "{}", text(&output));
        let measured: Vec<&Value> = results["measurements"].as_array().unwrap().iter().collect();
        for what in [
            "limit: copying memory",
            "limit: bf16 product",
            "limit: host to GPU, copied",
            "limit: host to GPU, read by kernels",
            "load",
            "decode step",
            "decode step, launched one by one",
            "decode step, batch-invariant",
            "decode step, next weights asked for early",
            "decode step, fp8 pages",
            "decode step, int8 weights",
            "decode step, int8 weights, fp8 pages",
            "prompt",
            "prompt, batch-invariant",
            "prompt, fp8 pages",
            "decode step, experts with the host",
            "prompt, experts with the host",
            "qkv product",
            "qkv product, int8",
            "attention",
            "attention, fp8",
            "experts",
            "sum and norm",
            "head",
        ] {
            assert!(measured.iter().any(|one| one["what"] == what), "{what} was not measured");
        }
        let hosted = measured.iter().filter(|one| one["what"].as_str().unwrap().contains("with the host"));
        for one in hosted {
            assert!(one["share_of_limit"].as_f64().is_some_and(|share| share > 0.0), "{one}");
        }
    };
    std::thread::scope(|scope| {
        let both = [OLD, HOPPER].map(|device| scope.spawn(move || measure(device)));
        both.into_iter().for_each(|one| one.join().unwrap());
    });
}

fn hangs() {
    let (output, results) = Tool::new(HANGS, "--check --only primitives --patience 1").run();
    let (held, failed) = checks(&results);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert_eq!(held.len(), num_generic() - 1);
    let [(name, why)] = failed[..] else { panic!("{failed:?}") };
    assert_eq!(name, FATAL_CHECK);
    assert!(why.contains("the GPU hangs") && why.contains(FATAL), "{why}");
    assert!(why.contains("kernel by kernel: the GPU hangs"), "{why}");
}

fn breaks() {
    let (output, results) = Tool::new(BREAKS, "--check --only primitives").run();
    let (held, failed) = checks(&results);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert_eq!(held.len(), num_generic() - 1);
    let [(name, why)] = failed[..] else { panic!("{failed:?}") };
    assert_eq!(name, FATAL_CHECK);
    assert!(why.contains("illegal address"), "{why}");
    // Alone it is named, with what it was given.
    assert!(
        why.contains("kernel by kernel") && why.contains(&format!("kernel {FATAL}, grid [1, 1, 1]")),
        "{why}"
    );
}

fn lies() {
    let (output, results) = Tool::new(LIES, "--check --only primitives").run();
    let (held, failed) = checks(&results);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let [(_, why)] = failed[..] else { panic!("{failed:?}") };
    assert!(held.len() == num_generic() - 1 && why.contains("kernel by kernel: "), "{why}");
    // What failed stands at the end, where it is seen.
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.lines().rev().take(12).any(|line| line.starts_with("FAIL primitives")), "{said}");
}

fn budget() {
    let started = Instant::now();
    let (output, results) = Tool::new(HANGS, "--check --only primitives --budget 3 --patience 100").run();
    assert!(started.elapsed() < Duration::from_secs(20));
    assert!(output.status.success() && results["is_whole"] == true, "{}", text(&output));
    let (held, failed) = checks(&results);
    assert!(failed.is_empty() && !held.is_empty(), "{}", text(&output));
    let skipped = results["skipped"].as_array().unwrap();
    assert_eq!(skipped.len(), num_generic() - held.len());
    assert!(skipped[0]["why"].as_str().unwrap().contains("in the midst of it"));
    assert!(skipped[1..].iter().all(|one| one["why"] == "no time was left"));
    assert!(text(&output).contains("not done, no time was left"), "{}", text(&output));
}

fn killed() {
    let mut tool = Tool::new(HANGS, "--check --only primitives --patience 100");
    let mut process = tool.command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let started = Instant::now();
    while read(&tool.file())["checks"].as_array().is_none_or(Vec::is_empty) {
        assert!(started.elapsed() < Duration::from_secs(60), "nothing was kept");
        std::thread::yield_now();
    }
    process.kill().unwrap();
    process.wait().unwrap();
    let results = read(&tool.file());
    assert!(results["is_whole"] == false && !checks(&results).0.is_empty());
    // It is told as what it is.
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["kbench", "--digest"])
        .arg(tool.file())
        .output()
        .unwrap();
    assert!(text(&output).contains("CUT OFF"), "{}", text(&output));
}

fn cannot_open() {
    let (output, results) = Tool::new(CANNOT_OPEN, "--check --only primitives").run();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(results["failures"][0]["why"].as_str().unwrap().contains("no way in"), "{results}");
    assert_eq!(results["skipped"].as_array().unwrap().len(), num_generic());
}

fn here() {
    for words in ["--here --check --only primitives", "--here --one-by-one --check --only primitives"] {
        let (output, results) = Tool::new(OLD, words).run();
        assert!(output.status.success(), "{}", text(&output));
        assert_eq!(checks(&results).0.len(), num_generic());
    }
    let (output, results) = Tool::new(BREAKS, "--here --check --only primitives").run();
    assert_eq!(output.status.code(), Some(4), "{}", text(&output));
    assert!(!results["skipped"].as_array().unwrap().is_empty());
    let (output, results) = Tool::new(HANGS, "--here --check --only primitives --patience 1").run();
    assert_eq!(output.status.code(), None, "{}", text(&output));
    assert!(text(&output).contains(FATAL) && results["is_whole"] == false, "{}", text(&output));
}

fn statuses() {
    assert_eq!(Tool::new(99, "--check").run().0.status.code(), Some(3));
    assert_eq!(Tool::new(OLD, "--chek").run().0.status.code(), Some(2));
}
