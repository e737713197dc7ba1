//! Compiles the kernels where there is an nvcc, and embeds them: one fatbin for
//! each file. Where there is none, embeds the sources, for NVRTC.
//!
//! `CHORALE_NVCC` names a compiler, or `none` for the sources. Fatbins are kept
//! below the target folder by what they are made of, so that no profile
//! compiles again what another one did, and what is unchanged costs nothing.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::sync::Mutex;

/// Code of a generic kernel. GPUs of one generation run the code of its first
/// member, so 8.6 and 8.7 take 8.0's, 10.3 takes 10.0's and 12.1 takes 12.0's;
/// what is newer than all compiles the last entry at its first start.
const GENERIC: [&str; 6] = [
    "arch=compute_80,code=sm_80",
    "arch=compute_89,code=sm_89",
    "arch=compute_90,code=sm_90",
    "arch=compute_100,code=sm_100",
    "arch=compute_120,code=sm_120",
    "arch=compute_80,code=compute_80",
];

/// Code of a kernel in a file `*_sm90.cu`: Hopper's own instructions are no
/// other GPU's.
const HOPPER: [&str; 1] = ["arch=compute_90a,code=sm_90a"];

/// Spills and local memory are told, and a test refuses what is told.
const FLAGS: [&str; 5] =
    ["-std=c++17", "-O3", "-fatbin", "--compress-mode=size", "-Xptxas=-warn-spills,-warn-lmem-usage"];

/// The only major version: older ones lack GPUs, newer ones need newer drivers
/// than the one that we ask for.
const NVCC_MAJOR: u32 = 13;

fn main() {
    let folder = variable_path("CARGO_MANIFEST_DIR").join("kernels");
    let out = variable_path("OUT_DIR");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={}", folder.display());
    for name in ["CHORALE_NVCC", "CUDA_HOME"] {
        println!("cargo:rerun-if-env-changed={name}");
    }

    let sources = read(&folder, "cu");
    let headers = read(&folder, "cuh");
    let compiler = find_nvcc(&target_folder(&out));
    let embedded = match &compiler {
        Some(nvcc) => {
            Embedded { fatbins: compile_all(nvcc, &folder, &sources, &headers, &out), ..Embedded::default() }
        }
        None => Embedded { sources: &sources, headers: &headers, ..Embedded::default() },
    };
    write_if_new(&out.join("embedded.rs"), embedded.code().as_bytes());
    // For the test that reads the machine code.
    let stems: Vec<&str> = embedded.fatbins.iter().map(|(stem, _)| stem.as_str()).collect();
    println!("cargo:rustc-env=CHORALE_KERNELS_FILES={}", stems.join(" "));
    let program = compiler.map(|nvcc| nvcc.program.display().to_string()).unwrap_or_default();
    println!("cargo:rustc-env=CHORALE_KERNELS_NVCC={program}");
    println!("cargo:rustc-env=CHORALE_KERNELS_OUT={}", out.display());
}

/// A kernel source or a header.
struct Source {
    stem: String,
    path: PathBuf,
    text: String,
}

/// What goes into the crate.
#[derive(Default)]
struct Embedded<'a> {
    fatbins: Vec<(String, PathBuf)>,
    sources: &'a [Source],
    headers: &'a [Source],
}

impl Embedded<'_> {
    /// The Rust file that `driver::kernels` includes.
    fn code(&self) -> String {
        let mut code = String::new();
        let mut list = |name: &str, kind: &str, entries: Vec<String>| {
            let _ = writeln!(code, "const {name}: &[(&str, {kind})] = &[{}];", entries.concat());
        };
        let file = |source: &Source| {
            let name = source.path.file_name().unwrap_or_default().to_string_lossy();
            format!("\n    ({name:?}, include_str!({:?})),", source.path.display().to_string())
        };
        let fatbins = self.fatbins.iter();
        let fatbins = fatbins.map(|(stem, path)| {
            format!("\n    ({stem:?}, include_bytes!({:?})),", path.display().to_string())
        });
        list("FATBINS", "&[u8]", fatbins.collect());
        list("SOURCES", "&str", self.sources.iter().map(file).collect());
        list("HEADERS", "&str", self.headers.iter().map(file).collect());
        code
    }
}

/// The CUDA compiler.
struct Nvcc {
    program: PathBuf,
    version: String,
}

/// The compiler that `CHORALE_NVCC` names, else the first of the right version
/// in the places where one may be.
fn find_nvcc(target: &Path) -> Option<Nvcc> {
    if let Some(named) = env::var_os("CHORALE_NVCC").filter(|named| !named.is_empty()) {
        if named == "none" {
            return None;
        }
        let nvcc = ask_nvcc(Path::new(&named)).unwrap_or_else(|why| fail(&format!("CHORALE_NVCC: {why}")));
        println!("cargo:rerun-if-changed={}", nvcc.program.display());
        return Some(nvcc);
    }
    // What .ci/cuda-toolchain installs goes to this workspace's own target.
    let workspace = variable_path("CARGO_MANIFEST_DIR").join("../../target");
    let installed = [target, &workspace].map(|target| target.join("cuda-toolchain/cuda/bin/nvcc"));
    let home = env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("bin/nvcc"));
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&path).map(|folder| folder.join("nvcc"));
    for program in installed.into_iter().chain(home).chain(on_path).filter(|program| program.is_file()) {
        match ask_nvcc(&program) {
            Ok(nvcc) => {
                println!("cargo:rerun-if-changed={}", nvcc.program.display());
                return Some(nvcc);
            }
            Err(why) => println!("cargo:warning=passing over a CUDA compiler: {why}"),
        }
    }
    None
}

fn ask_nvcc(program: &Path) -> Result<Nvcc, String> {
    let name = program.display();
    let output =
        Command::new(program).arg("--version").output().map_err(|error| format!("{name}: {error}"))?;
    let version = String::from_utf8_lossy(&output.stdout).into_owned();
    let release = version.split("release ").nth(1).and_then(|rest| rest.split(',').next());
    let release = release.ok_or_else(|| format!("{name} does not tell its version"))?;
    let major = release.split('.').next().and_then(|major| major.parse::<u32>().ok());
    if major != Some(NVCC_MAJOR) {
        return Err(format!("{name} is of CUDA {release}, CUDA {NVCC_MAJOR} is needed"));
    }
    let program = program.canonicalize().unwrap_or_else(|_| program.to_owned());
    Ok(Nvcc { program, version })
}

/// Compiles what no earlier build did, as many files at once as Cargo allows
/// jobs; gives each file's stem and its fatbin in `out`.
fn compile_all(
    nvcc: &Nvcc,
    folder: &Path,
    sources: &[Source],
    headers: &[Source],
    out: &Path,
) -> Vec<(String, PathBuf)> {
    let kept = target_folder(out).join("cuda-kernels");
    fs::create_dir_all(&kept).unwrap_or_else(|error| fail(&format!("{}: {error}", kept.display())));
    let jobs = env::var_os("NUM_JOBS").and_then(|jobs| jobs.to_str()?.parse().ok()).unwrap_or(1_usize);
    let waiting = Mutex::new(sources.iter());
    let failures = Mutex::new(String::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, sources.len().max(1)) {
            scope.spawn(|| {
                let next = || waiting.lock().ok()?.next();
                while let Some(source) = next() {
                    if let Err(message) = compile(nvcc, folder, source, headers, &kept, out)
                        && let Ok(mut failures) = failures.lock()
                    {
                        failures.push_str(&message);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap_or_default();
    if !failures.is_empty() {
        fail(&failures);
    }
    sources.iter().map(|source| (source.stem.clone(), out.join(format!("{}.fatbin", source.stem)))).collect()
}

fn compile(
    nvcc: &Nvcc,
    folder: &Path,
    source: &Source,
    headers: &[Source],
    kept: &Path,
    out: &Path,
) -> Result<(), String> {
    let stem = &source.stem;
    let targets: &[&str] = if stem.ends_with("_sm90") { &HOPPER } else { &GENERIC };
    let mut digest = DefaultHasher::new();
    (&nvcc.version, FLAGS, targets, &source.text).hash(&mut digest);
    for header in included(&source.text, headers) {
        (&header.stem, &header.text).hash(&mut digest);
    }
    let name = format!("{stem}-{:016x}", digest.finish());
    let fatbin = kept.join(format!("{name}.fatbin"));
    let log = kept.join(format!("{name}.log"));
    if !fatbin.is_file() || !log.is_file() {
        let unfinished = out.join(format!("{stem}.unfinished"));
        let mut command = Command::new(&nvcc.program);
        command.args(FLAGS).args(targets.iter().map(|target| format!("-gencode={target}")));
        command.arg(&source.path).arg("-o").arg(&unfinished).current_dir(folder);
        let output = command.output().map_err(|error| format!("{}: {error}\n", nvcc.program.display()))?;
        let messages = [output.stdout, output.stderr].concat();
        let messages = String::from_utf8_lossy(&messages);
        if !output.status.success() {
            return Err(format!("{command:?}\n{messages}"));
        }
        remove_others(kept, stem);
        // What nvcc says of a kernel that it accepts stays beside the fatbin.
        let place = || {
            fs::write(&log, messages.as_bytes())?;
            fs::copy(&unfinished, fatbin.with_extension(format!("{}", std::process::id())))?;
            fs::rename(fatbin.with_extension(format!("{}", std::process::id())), &fatbin)?;
            fs::remove_file(&unfinished)
        };
        place().map_err(|error| format!("{}: {error}\n", fatbin.display()))?;
    }
    let text = fs::read_to_string(&log).unwrap_or_default();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        println!("cargo:warning={stem}.cu: {line}");
    }
    write_if_new(&out.join(format!("{stem}.log")), text.as_bytes());
    let code = fs::read(&fatbin).map_err(|error| format!("{}: {error}\n", fatbin.display()))?;
    write_if_new(&out.join(format!("{stem}.fatbin")), &code);
    Ok(())
}

/// The headers that a text includes, and those that they include.
fn included<'a>(text: &str, headers: &'a [Source]) -> Vec<&'a Source> {
    let mut found = BTreeSet::new();
    let mut texts = vec![text];
    while let Some(text) = texts.pop() {
        let lines =
            text.lines().filter_map(|line| line.trim().strip_prefix("#include \"")?.strip_suffix('"'));
        for name in lines {
            let index = headers.iter().position(|header| header.path.ends_with(name));
            if let Some(index) = index.filter(|&index| found.insert(index)) {
                texts.push(&headers[index].text);
            }
        }
    }
    found.into_iter().map(|index| &headers[index]).collect()
}

/// Forgets the fatbins of a file's earlier contents.
fn remove_others(kept: &Path, stem: &str) {
    for entry in fs::read_dir(kept).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let digest = name.strip_prefix(stem).and_then(|rest| rest.strip_prefix('-')?.split('.').next());
        if digest.is_some_and(|digest| digest.len() == 16) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// All files of a folder that have an extension, in order.
fn read(folder: &Path, extension: &str) -> Vec<Source> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|found| found == extension));
    paths.sort();
    let read = |path: PathBuf| {
        let text =
            fs::read_to_string(&path).unwrap_or_else(|error| fail(&format!("{}: {error}", path.display())));
        Source { stem: path.file_stem().unwrap_or_default().to_string_lossy().into_owned(), text, path }
    };
    paths.into_iter().map(read).collect()
}

/// The folder that holds the profiles' folders: above `<profile>/build/<crate>/out`.
fn target_folder(out: &Path) -> PathBuf {
    out.ancestors().nth(4).unwrap_or(out).to_owned()
}

fn variable_path(name: &str) -> PathBuf {
    env::var_os(name).unwrap_or_else(|| OsString::from(".")).into()
}

/// Leaves a file that holds this already as it is, so that nothing is built anew.
fn write_if_new(path: &Path, bytes: &[u8]) {
    if fs::read(path).is_ok_and(|found| found == bytes) {
        return;
    }
    fs::write(path, bytes).unwrap_or_else(|error| fail(&format!("{}: {error}", path.display())));
}

fn fail(message: &str) -> ! {
    eprintln!("{message}");
    exit(1)
}
