//! Compiles kernels for the GPU at hand, where the build had no compiler.

#![expect(unsafe_code, reason = "looks up and calls NVRTC's functions")]
#![expect(non_snake_case, reason = "the functions have CUDA's names")]

use super::functions::{Refused, functions};
use super::kernels::is_hopper_only;
use crate::gpu::GpuError;
use cudarc::nvrtc::sys;
use libloading::Library;
use sha2::{Digest, Sha256};
use std::ffi::{CString, c_char, c_int};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

/// What the library is called. What an older one makes runs on a newer driver.
const LIBRARIES: [&str; 3] = ["libnvrtc.so.13", "libnvrtc.so", "libnvrtc.so.12"];

/// Files that are compiled at once.
const THREADS_MAX: usize = 8;

functions! { Nvrtc, cudarc::nvrtc::sys, sys::nvrtcResult:
    nvrtcVersion(major: *mut c_int, minor: *mut c_int);
    nvrtcCreateProgram(
        program: *mut sys::nvrtcProgram,
        source: *const c_char,
        name: *const c_char,
        num_headers: c_int,
        headers: *const *const c_char,
        header_names: *const *const c_char,
    );
    nvrtcDestroyProgram(program: *mut sys::nvrtcProgram);
    nvrtcCompileProgram(program: sys::nvrtcProgram, num_options: c_int, options: *const *const c_char);
    nvrtcGetProgramLogSize(program: sys::nvrtcProgram, bytes: *mut usize);
    nvrtcGetProgramLog(program: sys::nvrtcProgram, log: *mut c_char);
    nvrtcGetCUBINSize(program: sys::nvrtcProgram, bytes: *mut usize);
    nvrtcGetCUBIN(program: sys::nvrtcProgram, code: *mut c_char);
}

/// A file's name and its text.
type File<'a> = (&'a str, &'a str);

/// Compiles files for a compute capability; gives each one's name and machine
/// code. What is in the cache already is not compiled again.
pub(super) fn compile<'a>(
    sources: &[File<'a>],
    headers: &[File<'_>],
    capability: (u32, u32),
    cache: Option<&Path>,
) -> Result<Vec<(&'a str, Vec<u8>)>, GpuError> {
    let nvrtc = loaded()?;
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    let work = || {
        while let Some(source) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
            let code = one(nvrtc, *source, headers, capability, cache).map(|code| (source.0, code));
            done.lock().unwrap_or_else(PoisonError::into_inner).push(code);
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores.clamp(1, THREADS_MAX).min(sources.len()) {
            scope.spawn(work);
        }
    });
    done.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter().collect()
}

fn no_kernels(reason: impl Into<String>) -> GpuError {
    GpuError::NoKernels { reason: reason.into() }
}

fn loaded() -> Result<&'static Nvrtc, GpuError> {
    static LOADED: OnceLock<Result<Nvrtc, GpuError>> = OnceLock::new();
    LOADED.get_or_init(load).as_ref().map_err(Clone::clone)
}

fn load() -> Result<Nvrtc, GpuError> {
    // SAFETY: loading NVRTC runs what it runs in any program that uses it.
    let library = LIBRARIES.iter().find_map(|name| unsafe { Library::new(*name) }.ok());
    let library = library.ok_or_else(|| {
        no_kernels(
            "this program was built without a CUDA compiler and compiles its kernels at the first start, for which \
             libnvrtc.so.13 is not found. Install CUDA's NVRTC (package cuda-nvrtc-13-0, or `pip install \
             nvidia-cuda-nvrtc` and its folder on LD_LIBRARY_PATH), or build with nvcc",
        )
    })?;
    // Functions of it are called until the process ends.
    let library: &'static Library = Box::leak(Box::new(library));
    // SAFETY: it is NVRTC.
    unsafe { Nvrtc::find(library) }.map_err(|function| no_kernels(format!("libnvrtc lacks {function}")))
}

/// One file's machine code, from the cache or compiled.
fn one(
    nvrtc: &Nvrtc,
    (name, text): File<'_>,
    headers: &[File<'_>],
    (major, minor): (u32, u32),
    cache: Option<&Path>,
) -> Result<Vec<u8>, GpuError> {
    let failed =
        |refused: Refused| no_kernels(format!("{name}: {} gives error {}", refused.call, refused.code));
    let (mut version, mut release) = (0, 0);
    // SAFETY: it writes two numbers.
    unsafe { nvrtc.nvrtcVersion(&raw mut version, &raw mut release) }.map_err(failed)?;
    let suffix = if is_hopper_only(name) { "a" } else { "" };
    let options = [
        "--std=c++17".to_owned(),
        format!("--gpu-architecture=sm_{major}{minor}{suffix}"),
        "-default-device".into(),
    ];

    let mut digest = Sha256::new();
    for part in
        [name, text, &format!("{version}.{release}")].into_iter().chain(options.iter().map(String::as_str))
    {
        digest.update(part);
        digest.update([0]);
    }
    for (name, text) in headers {
        digest.update(name);
        digest.update([0]);
        digest.update(text);
        digest.update([0]);
    }
    let digest: String = digest.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    let kept = cache.map(|cache| cache.join(format!("{}-{digest}.cubin", name.trim_end_matches(".cu"))));
    if let Some(code) = kept.as_deref().and_then(read_cubin) {
        return Ok(code);
    }
    let code = build(nvrtc, (name, text), headers, &options)?;
    if let Some(path) = kept
        && let Err(error) = keep(&path, &code)
    {
        tracing::warn!(path = %path.display(), %error, "compiled kernels are not kept: the next start takes as long");
    }
    Ok(code)
}

/// A file of the cache. Written at once, so it is whole if it is there; what is
/// something else is compiled anew.
fn read_cubin(path: &Path) -> Option<Vec<u8>> {
    std::fs::read(path).ok().filter(|code| code.starts_with(b"\x7fELF"))
}

/// Writes a file of the cache under another name first, for another process may
/// do the same or be killed.
fn keep(path: &Path, code: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let unfinished: PathBuf = path.with_extension(format!("{}.unfinished", std::process::id()));
    let mut file = std::fs::File::create(&unfinished)?;
    file.write_all(code)?;
    file.sync_all()?;
    std::fs::rename(&unfinished, path)
}

fn build(
    nvrtc: &Nvrtc,
    (name, text): File<'_>,
    headers: &[File<'_>],
    options: &[String],
) -> Result<Vec<u8>, GpuError> {
    let failed =
        |refused: Refused| no_kernels(format!("{name}: {} gives error {}", refused.call, refused.code));
    let strings = |texts: &mut dyn Iterator<Item = &str>| -> Result<Vec<CString>, GpuError> {
        texts.map(|text| CString::new(text).map_err(|_| no_kernels(format!("{name} holds a 0")))).collect()
    };
    let pointers = |strings: &[CString]| strings.iter().map(|text| text.as_ptr()).collect::<Vec<_>>();
    let own = strings(&mut [text, name].into_iter())?;
    let header_texts = strings(&mut headers.iter().map(|(_, text)| *text))?;
    let header_names = strings(&mut headers.iter().map(|(name, _)| *name))?;
    let options = strings(&mut options.iter().map(String::as_str))?;

    let mut program = null_mut();
    // SAFETY: all texts end with a 0 and outlive the program.
    unsafe {
        nvrtc.nvrtcCreateProgram(
            &raw mut program,
            own[0].as_ptr(),
            own[1].as_ptr(),
            count(&header_texts),
            pointers(&header_texts).as_ptr(),
            pointers(&header_names).as_ptr(),
        )
    }
    .map_err(failed)?;
    // SAFETY: the program lives.
    let compiled =
        unsafe { nvrtc.nvrtcCompileProgram(program, count(&options), pointers(&options).as_ptr()) };
    let code = match compiled {
        // SAFETY: the program lives; each is asked how long it is.
        Ok(()) => filled(
            |bytes| unsafe { nvrtc.nvrtcGetCUBINSize(program, bytes) },
            |room| unsafe { nvrtc.nvrtcGetCUBIN(program, room) },
        )
        .map_err(failed),
        Err(refused) => {
            // SAFETY: as above.
            let log = filled(
                |bytes| unsafe { nvrtc.nvrtcGetProgramLogSize(program, bytes) },
                |room| unsafe { nvrtc.nvrtcGetProgramLog(program, room) },
            );
            let log = String::from_utf8_lossy(&log.unwrap_or_default()).trim_end_matches('\0').to_owned();
            Err(no_kernels(format!("{name} does not compile (error {}): {log}", refused.code)))
        }
    };
    // SAFETY: nobody else has it.
    let _ = unsafe { nvrtc.nvrtcDestroyProgram(&raw mut program) };
    code
}

fn count<T>(list: &[T]) -> c_int {
    c_int::try_from(list.len()).unwrap_or(c_int::MAX)
}

/// What NVRTC writes to as much room as it asks for.
fn filled(
    size: impl FnOnce(*mut usize) -> Result<(), Refused>,
    write: impl FnOnce(*mut c_char) -> Result<(), Refused>,
) -> Result<Vec<u8>, Refused> {
    let mut bytes = 0;
    size(&raw mut bytes)?;
    let mut room = vec![0_u8; bytes];
    write(room.as_mut_ptr().cast())?;
    Ok(room)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sources are what nvcc compiles, and NVRTC has fewer headers.
    #[test]
    fn all_kernels_compile() {
        if let Err(absent) = loaded() {
            std::io::stderr()
                .write_all(format!("all_kernels_compile is skipped: {absent}\n").as_bytes())
                .unwrap();
            return;
        }
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
        let mut files: Vec<(String, String)> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| {
                let text = std::fs::read_to_string(&path).unwrap();
                (path.file_name().unwrap().to_str().unwrap().to_owned(), text)
            })
            .collect();
        files.sort();
        let of = |extension: &str| -> Vec<File<'_>> {
            let with = files.iter().filter(|(name, _)| name.ends_with(extension));
            with.map(|(name, text)| (name.as_str(), text.as_str())).collect()
        };
        let compiled = compile(&of(".cu"), &of(".cuh"), (9, 0), None).unwrap();
        assert_eq!(compiled.len(), of(".cu").len());
        assert!(compiled.iter().all(|(_, code)| code.starts_with(b"\x7fELF")));
    }
}
