//! The library: how it is built, and which kernels are in it.

use chorale_cuda::{Driver, Kernels, Options};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, OnceLock};

/// The variable that names what an inner process runs.
pub(crate) const SCENARIO: &str = "CHORALE_DRIVER_SCENARIO";

/// Runs a scenario in a process of its own.
pub(crate) fn run_inside(scenario: &str, capability: &str, num_sms: &str) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "inside", "--nocapture"])
        .env(SCENARIO, scenario)
        .env("LD_LIBRARY_PATH", built())
        .env("FAKE_CAPABILITY", capability)
        .env("FAKE_SMS", num_sms)
        .env("FAKE_BYTES", (4_u64 << 30).to_string())
        .output()
        .unwrap();
    let said = [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat();
    assert!(output.status.success(), "{scenario}: {}\n{said}", output.status);
    eprintln!("{said}");
}

/// Builds the library, once for all tests; gives its folder.
fn built() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cuda/tests/fake_libcuda/libcuda.c");
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("libcuda-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let object = folder.join("libcuda.o");
        let mut compiler = Command::new("cc");
        compiler.args(["-O1", "-c", "-fPIC", "-w", "-DEMULATED", "-o"]).arg(&object).arg(source);
        succeeded(&compiler.output().unwrap());
        // All kernels, to which nothing refers but what registers them.
        let mut linker = Command::new("c++");
        linker.args(["-shared", "-o"]).arg(folder.join("libcuda.so.1")).arg(object);
        linker.arg("-Wl,--whole-archive").arg(concat!(env!("OUT_DIR"), "/libchorale_emulator.a"));
        linker.args(["-Wl,--no-whole-archive", "-lpthread"]);
        succeeded(&linker.output().unwrap());
        folder
    })
}

fn succeeded(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Opens the GPU with all kernels, by name: a line of each in its file's module.
pub(crate) fn open() -> Arc<Driver> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cuda/kernels");
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "cu") {
            let text = std::fs::read_to_string(&path).unwrap();
            let names = text.lines().filter_map(|line| {
                // `KERNEL(name, …`, or a macro of the same shape.
                let (word, rest) = line.split_once('(')?;
                let is_macro = word.chars().all(|c| c.is_ascii_uppercase() || c == '_') && !word.is_empty();
                let name = rest.split(',').next().filter(|_| is_macro)?;
                Some(format!("kernel {name}\n"))
            });
            let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
            files.push((stem, format!("module\n{}", names.collect::<String>())));
        }
    }
    files.sort();
    let fatbins: Vec<(&str, &[u8])> =
        files.iter().map(|(stem, text)| (stem.as_str(), text.as_bytes())).collect();
    let kernels = Kernels { fatbins: &fatbins, sources: &[], headers: &[] };
    Driver::open(0, &Options { kernels, cache: None, with_graphs: true }).unwrap()
}
