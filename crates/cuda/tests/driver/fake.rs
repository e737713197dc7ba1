//! The fake libraries: how they are built, and what a test asks of them.

use std::ffi::{CString, c_char};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The variable that names what an inner process runs.
pub(crate) const SCENARIO: &str = "CHORALE_DRIVER_SCENARIO";

/// What an inner process finds.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Machine {
    Nothing,
    OldDriver,
    Driver,
    DriverAndCompiler,
}

/// Runs a scenario in a process of its own.
pub(crate) fn run_inside(scenario: &str, machine: Machine, variables: &[(&str, &str)]) {
    let folders = built();
    let path = match machine {
        Machine::Nothing => folders.join("nothing"),
        Machine::OldDriver => folders.join("old"),
        Machine::Driver => folders.join("driver"),
        Machine::DriverAndCompiler => {
            let [driver, compiler] =
                ["driver", "compiler"].map(|name| folders.join(name).display().to_string());
            format!("{driver}:{compiler}").into()
        }
    };
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "inside", "--nocapture"])
        .env(SCENARIO, scenario)
        .env("LD_LIBRARY_PATH", path)
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{scenario}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Builds the libraries, once for all tests; gives the folder that holds one
/// folder for each.
fn built() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake_libcuda");
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fake-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("nothing")).unwrap();
        for (name, source, library, option) in [
            ("driver", "libcuda.c", "libcuda.so.1", "-DWHOLE"),
            ("old", "libcuda.c", "libcuda.so.1", "-DOLD"),
            ("compiler", "libnvrtc.c", "libnvrtc.so.13", "-DWHOLE"),
        ] {
            std::fs::create_dir_all(folder.join(name)).unwrap();
            let mut compiler = Command::new("cc");
            compiler.args(["-O1", "-shared", "-fPIC", "-w", option, "-o"]);
            compiler.arg(folder.join(name).join(library)).arg(sources.join(source)).arg("-lpthread");
            let output = compiler.output().unwrap();
            assert!(output.status.success(), "{compiler:?}\n{}", String::from_utf8_lossy(&output.stderr));
        }
        folder
    })
}

fn library() -> libloading::Library {
    // SAFETY: it is the fake, which the driver loaded already.
    unsafe { libloading::Library::new("libcuda.so.1") }.unwrap()
}

/// What the driver was asked to do since the last time.
pub(crate) fn take_log() -> String {
    type Take = unsafe extern "C" fn(*mut c_char, usize);
    let mut room = vec![0_u8; 1 << 16];
    let library = library();
    // SAFETY: that is the function's type, and there is that much room.
    unsafe {
        let take: libloading::Symbol<'_, Take> = library.get("fake_take_log").unwrap();
        take(room.as_mut_ptr().cast(), room.len());
    }
    String::from_utf8(room).unwrap().trim_end_matches('\0').to_owned()
}

/// Lets a call fail with a code, once so many of it went well.
pub(crate) fn refuse(call: &str, code: u32, after: i32) {
    type Refuse = unsafe extern "C" fn(*const c_char, u32, i32);
    let call = CString::new(call).unwrap().into_raw();
    // SAFETY: that is the function's type, and the name is never freed.
    unsafe {
        let library = library();
        let refuse: libloading::Symbol<'_, Refuse> = library.get("fake_refuse").unwrap();
        refuse(call, code, after);
    }
}

/// Calls so far that take or give back memory.
pub(crate) fn memory_calls() -> i32 {
    type Calls = unsafe extern "C" fn() -> i32;
    let library = library();
    // SAFETY: that is the function's type.
    unsafe {
        let calls: libloading::Symbol<'_, Calls> = library.get("fake_memory_calls").unwrap();
        calls()
    }
}

/// How many sources were compiled.
pub(crate) fn compiled() -> i32 {
    type Compiled = unsafe extern "C" fn() -> i32;
    // SAFETY: it is the fake, and that is the function's type.
    unsafe {
        let library = libloading::Library::new("libnvrtc.so.13").unwrap();
        let compiled: libloading::Symbol<'_, Compiled> = library.get("fake_compiled").unwrap();
        compiled()
    }
}
