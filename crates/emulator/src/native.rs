//! The half of the emulator that is C++: see `cpp/launch.h`.

#![expect(unsafe_code, reason = "calls C++")]

use chorale_cuda::Launches;
use std::ffi::{CStr, CString};

/// What of a GPU matters to a launch.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Machine {
    pub(crate) seed: u64,
    pub(crate) shared_bytes_max: u32,
    pub(crate) is_hopper: u32,
}

/// Memory of `len` bytes, aligned to 256, or none if the host has no room.
pub(crate) fn alloc(len: usize) -> Option<u64> {
    // SAFETY: it takes any size, and returns null or memory.
    let address = unsafe { linked::emulator_alloc(len) };
    (!address.is_null()).then_some(address as u64)
}

/// Gives memory back.
///
/// # Safety
/// `address` came from `alloc`, and nothing uses it from now on.
pub(crate) unsafe fn free(address: u64) {
    // SAFETY: as the caller promises.
    unsafe { linked::emulator_free(address as *mut _) }
}

/// Runs launches in order, or says what is wrong with one: then none has run.
///
/// # Safety
/// The arguments are such as the kernels take, and what they point to exists.
pub(crate) unsafe fn run(launches: &Launches, machine: &Machine) -> Result<(), String> {
    let names: Vec<CString> = launches
        .iter()
        .map(|(call, _)| {
            CString::new(call.kernel.name).map_err(|_| format!("{:?} is no name", call.kernel.name))
        })
        .collect::<Result<_, _>>()?;
    let calls: Vec<linked::LaunchCall> = launches
        .iter()
        .zip(&names)
        .map(|((call, args), name)| linked::LaunchCall {
            kernel: name.as_ptr(),
            args: args.as_ptr(),
            args_bytes: args.len(),
            threads: call.kernel.threads,
            grid: call.grid,
            shared_bytes: call.shared_bytes,
        })
        .collect();
    // SAFETY: names and arguments outlive the call; the kernels are trusted as
    // the caller promises. What is returned lasts until this thread's next call.
    let problem = unsafe { CStr::from_ptr(linked::emulator_run(calls.as_ptr(), calls.len(), machine)) };
    if problem.is_empty() { Ok(()) } else { Err(problem.to_string_lossy().into_owned()) }
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod linked {
    use super::Machine;
    use std::ffi::{c_char, c_void};

    #[repr(C)]
    pub(super) struct LaunchCall {
        pub(super) kernel: *const c_char,
        pub(super) args: *const u8,
        pub(super) args_bytes: usize,
        pub(super) threads: u32,
        pub(super) grid: [u32; 3],
        pub(super) shared_bytes: u32,
    }

    unsafe extern "C" {
        pub(super) fn emulator_alloc(bytes: usize) -> *mut c_void;
        pub(super) fn emulator_free(memory: *mut c_void);
        pub(super) fn emulator_run(
            calls: *const LaunchCall,
            count: usize,
            machine: *const Machine,
        ) -> *const c_char;
    }
}

/// Never called: without Linux on x86-64 there is no emulator.
#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
mod linked {
    use super::Machine;
    use std::ffi::{c_char, c_void};

    pub(super) struct LaunchCall {
        pub(super) kernel: *const c_char,
        pub(super) args: *const u8,
        pub(super) args_bytes: usize,
        pub(super) threads: u32,
        pub(super) grid: [u32; 3],
        pub(super) shared_bytes: u32,
    }

    pub(super) unsafe fn emulator_alloc(_: usize) -> *mut c_void {
        std::ptr::null_mut()
    }

    pub(super) unsafe fn emulator_free(_: *mut c_void) {}

    pub(super) unsafe fn emulator_run(_: *const LaunchCall, _: usize, _: *const Machine) -> *const c_char {
        c"the emulator needs Linux on x86-64".as_ptr()
    }
}
