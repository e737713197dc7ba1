//! Compiles the kernels, and the emulator that runs them, with the host's C++
//! compiler.
//!
//! An object is compiled again only if its source or a header is newer, so
//! that whoever works on a kernel waits for that kernel alone.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::SystemTime;

/// Kernels read the same bytes as different types, as nvcc lets them.
const FLAGS: [&str; 10] = [
    "-std=c++17",
    "-O2",
    "-g1",
    "-fno-strict-aliasing",
    "-Wall",
    "-Wextra",
    "-Wno-sign-compare",
    "-Wno-unused-function",
    "-Wno-unknown-pragmas",
    "-DCHORALE_EMULATED",
];

fn main() {
    let manifest = variable_path("CARGO_MANIFEST_DIR");
    let folders = [manifest.join("../cuda/kernels"), manifest.join("cpp")];
    println!("cargo:rerun-if-changed=build.rs");
    for folder in &folders {
        println!("cargo:rerun-if-changed={}", folder.display());
    }
    let target = |name| env::var_os(format!("CARGO_CFG_TARGET_{name}")).unwrap_or_default();
    if target("ARCH") != "x86_64" || target("OS") != "linux" {
        // The library says so when it is asked for an emulator.
        return;
    }

    let objects = variable_path("OUT_DIR").join("objects");
    fs::create_dir_all(&objects).unwrap_or_else(|error| fail(&format!("{}: {error}", objects.display())));
    let jobs: Vec<Job> = sources(&folders).into_iter().map(|source| Job::new(source, &objects)).collect();
    let newest_header = headers(&folders).iter().map(|path| changed(path)).max().flatten();
    compile(jobs.iter().filter(|job| job.is_due(newest_header)).collect(), &folders);

    let mut library = cc::Build::new();
    library.cpp(true).cargo_warnings(false);
    // Nothing refers to a kernel but its own registration.
    library.link_lib_modifier("+whole-archive");
    library.objects(jobs.iter().map(|job| &job.object));
    library.compile("chorale_emulator");
}

struct Job {
    source: PathBuf,
    object: PathBuf,
}

impl Job {
    fn new(source: PathBuf, objects: &Path) -> Self {
        let name = source.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Self { source, object: objects.join(name + ".o") }
    }

    /// True if the object is older than what it is made of.
    fn is_due(&self, newest_header: Option<SystemTime>) -> bool {
        let made = changed(&self.object);
        made.is_none()
            || made < changed(&self.source)
            || made < newest_header
            || made < changed("build.rs".as_ref())
    }

    /// A file that holds the kernels of this one in a namespace of their own:
    /// files that nvcc never links may call different things by the same name.
    fn wrapper(&self) -> Result<PathBuf, String> {
        let error = |error| format!("{}: {error}", self.source.display());
        let source = fs::canonicalize(&self.source).map_err(error)?;
        let is_hopper = source.to_string_lossy().ends_with("_sm90.cu");
        let header = if is_hopper { "hopper.cuh" } else { "gpu.cuh" };
        let wrapper = self.object.with_extension("cpp");
        let kernels = source.display();
        let text = format!("#include \"{header}\"\nnamespace {{\n#include \"{kernels}\"\n}}\n");
        fs::write(&wrapper, text).map_err(error)?;
        Ok(wrapper)
    }

    /// What the compiler says, or its complaint as an error.
    fn run(&self, folders: &[PathBuf]) -> Result<String, String> {
        let compiler = cc::Build::new()
            .cpp(true)
            .cargo_metadata(false)
            .opt_level(2)
            .try_get_compiler()
            .map_err(|error| format!("the emulator needs a C++ compiler; CXX names one. {error}"))?;
        let mut command = compiler.to_command();
        command.args(FLAGS).args(simd_flags());
        for folder in folders {
            command.arg("-I").arg(folder);
        }
        command.arg("-c");
        let finds_races = env::var_os("CARGO_FEATURE_RACES").is_some();
        if self.source.extension().is_some_and(|extension| extension == "cu") {
            command.args(ALIGNMENT);
            command.args(RACES.iter().filter(|_| finds_races)).arg(self.wrapper()?);
        } else {
            // The emulator's own accesses are nobody's.
            command.args(RACES.last().filter(|_| finds_races)).arg(&self.source);
        }
        // A name of its own until it is whole: an interrupted build leaves none.
        let partial = self.object.with_extension("partial");
        command.arg("-o").arg(&partial);
        let said = output(&mut command)?;
        fs::rename(&partial, &self.object).map_err(|error| format!("{}: {error}", partial.display()))?;
        Ok(said)
    }
}

/// A GPU refuses a vector that is not at a multiple of its size; the host would not
/// mind. `cpp/faults.cpp` says where.
const ALIGNMENT: [&str; 2] = ["-fsanitize=alignment", "-fsanitize-undefined-trap-on-error"];

/// The compiler then announces each access to memory, as to a thread sanitizer:
/// `cpp/races.cpp` listens.
const RACES: [&str; 3] =
    ["-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0", "-DCHORALE_RACES"];

/// The tests run where they are built, so they may use what this machine has.
#[cfg(target_arch = "x86_64")]
fn simd_flags() -> &'static [&'static str] {
    let has_both = std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma");
    if has_both { &["-mavx2", "-mfma"] } else { &[] }
}

#[cfg(not(target_arch = "x86_64"))]
fn simd_flags() -> &'static [&'static str] {
    &[]
}

fn output(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("the emulator needs a C++ compiler: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(said) } else { Err(said) }
}

/// Runs the compiler for each job, as many at a time as there are processors.
fn compile(jobs: Vec<&Job>, folders: &[PathBuf]) {
    let failed = AtomicBool::new(false);
    let left = Mutex::new(jobs);
    let next = || left.lock().ok().and_then(|mut left| left.pop());
    let workers = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(job) = next() {
                    match job.run(folders) {
                        Ok(said) => said.lines().for_each(|line| println!("cargo:warning={line}")),
                        Err(said) => {
                            eprintln!("{}:\n{said}", job.source.display());
                            failed.store(true, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    if failed.into_inner() {
        fail("not everything compiles; the compiler's words are above");
    }
}

fn sources(folders: &[PathBuf]) -> Vec<PathBuf> {
    with_extensions(folders, &["cu", "cpp"])
}

fn headers(folders: &[PathBuf]) -> Vec<PathBuf> {
    with_extensions(folders, &["cuh", "h"])
}

fn with_extensions(folders: &[PathBuf], extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in folders {
        let entries =
            fs::read_dir(folder).unwrap_or_else(|error| fail(&format!("{}: {error}", folder.display())));
        let paths = entries.flatten().map(|entry| entry.path());
        found.extend(
            paths.filter(|path| path.extension().is_some_and(|e| extensions.iter().any(|known| e == *known))),
        );
    }
    found.sort();
    found
}

fn changed(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

fn variable_path(name: &str) -> PathBuf {
    env::var_os(name).map_or_else(|| fail(&format!("cargo did not set {name}")), PathBuf::from)
}

fn fail(reason: &str) -> ! {
    eprintln!("chorale-emulator: {reason}");
    exit(1)
}
