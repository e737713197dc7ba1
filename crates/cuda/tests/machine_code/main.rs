//! What the compiler made of the kernels, for each GPU: registers, spills, and
//! the instructions that a kernel was written for.
//!
//! Reads the fatbins of this build, so it needs the CUDA compiler that made
//! them, and no GPU. The limits are in `kernels/budgets.toml`. The table:
//!
//!     cargo test -p chorale-cuda --test machine_code -- --nocapture

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

mod budgets;
mod dump;

use budgets::Budgets;
use dump::Code;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The code of all kernels, or `None` where there is no compiler, which is told
/// even if the harness keeps what tests print.
fn code() -> Option<&'static [Code]> {
    static CODE: OnceLock<Option<Vec<Code>>> = OnceLock::new();
    CODE.get_or_init(read).as_deref()
}

fn read() -> Option<Vec<Code>> {
    let nvcc = Path::new(env!("CHORALE_KERNELS_NVCC"));
    let cuobjdump = nvcc.with_file_name("cuobjdump");
    if nvcc.as_os_str().is_empty() || !cuobjdump.is_file() {
        let reason =
            "this build had no CUDA compiler with cuobjdump beside it; .ci/cuda-toolchain installs one";
        std::io::stderr().write_all(format!("machine_code is skipped: {reason}\n").as_bytes()).unwrap();
        return None;
    }
    Some(built("fatbin").iter().flat_map(|fatbin| dump::read(&cuobjdump, fatbin)).collect())
}

/// What the build made of each file of kernels.
fn built(extension: &str) -> Vec<PathBuf> {
    let stems = env!("CHORALE_KERNELS_FILES").split_whitespace();
    stems.map(|stem| Path::new(env!("CHORALE_KERNELS_OUT")).join(stem).with_extension(extension)).collect()
}

fn crate_folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn kernels_keep_to_their_budgets() {
    let Some(all) = code() else { return };
    println!("{}", table(all));
    let budgets = Budgets::read(&crate_folder().join("kernels/budgets.toml"));
    let names: BTreeSet<&str> = all.iter().map(|code| code.kernel.as_str()).collect();
    let broken: Vec<String> =
        all.iter().flat_map(|code| budgets.broken_by(code)).chain(budgets.idle(&names)).collect();
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

/// What the compiler warned of, such as `wgmma` that it could not overlap.
#[test]
fn the_compiler_has_nothing_to_say() {
    let logs: String = built("log").iter().map(|log| std::fs::read_to_string(log).unwrap()).collect();
    let warnings: Vec<&str> = logs.lines().filter(|line| !line.trim().is_empty()).collect();
    assert!(warnings.is_empty(), "\n{}", warnings.join("\n"));
}

#[test]
fn all_kernels_are_launched_and_all_that_is_launched_is_a_kernel() {
    let Some(all) = code() else { return };
    let kernels: BTreeSet<&str> = all.iter().map(|code| code.kernel.as_str()).collect();
    let launched = launched();
    // kbench and the emulator's tests launch those that show what primitives do.
    let is_idle = |kernel: &&&str| !launched.contains(**kernel) && !kernel.starts_with("selftest_");
    let idle: Vec<&&str> = kernels.iter().filter(is_idle).collect();
    assert!(idle.is_empty(), "no Rust file names these kernels: {idle:?}");

    // A name is taken for a kernel's if it begins like one.
    let first_word = |name: &str| name.split('_').next().unwrap().to_owned();
    let families: BTreeSet<String> = kernels.iter().map(|kernel| first_word(kernel)).collect();
    let missing: Vec<&String> = launched
        .iter()
        .filter(|name| {
            name.contains('_') && families.contains(&first_word(name)) && !kernels.contains(name.as_str())
        })
        .collect();
    assert!(missing.is_empty(), "no source has these kernels: {missing:?}");
}

/// All quoted names in the sources that launch kernels.
fn launched() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut folders = vec![crate_folder().join("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                if !path.ends_with("driver") {
                    folders.push(path);
                }
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let is_name =
                |text: &&str| text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
            names.extend(text.split('"').skip(1).step_by(2).filter(is_name).map(str::to_owned));
        }
    }
    names
}

/// A line for each kernel; its numbers in the order of the GPUs.
fn table(all: &[Code]) -> String {
    let mut by_kernel: BTreeMap<&str, Vec<&Code>> = BTreeMap::new();
    for code in all {
        by_kernel.entry(&code.kernel).or_default().push(code);
    }
    let mut text =
        format!("{:<28}{:<27}{:<24}{:<32}{:>8}\n", "kernel", "GPUs", "registers", "instructions", "shared");
    for (kernel, codes) in by_kernel {
        let column = |value: &dyn Fn(&Code) -> String, width: usize| {
            let values: Vec<String> = codes.iter().map(|code| format!("{:>width$}", value(code))).collect();
            values.join(" ")
        };
        let gpus = column(&|code| code.gpu.trim_start_matches("sm_").to_owned(), 3);
        let registers = column(&|code| code.registers.to_string(), 3);
        let instructions = column(&|code| code.instructions.len().to_string(), 5);
        let shared = codes.iter().map(|code| code.shared_bytes).max().unwrap();
        writeln!(text, "{kernel:<28}{gpus:<27}{registers:<24}{instructions:<32}{shared:>8}").unwrap();
    }
    text
}
