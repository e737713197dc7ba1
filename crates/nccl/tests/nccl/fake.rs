//! The stand-in for NCCL: compiled for each test that uses one, so that none
//! sees another's state.

#![expect(unsafe_code, reason = "loads the stand-in, and gives it addresses of the test's own memory")]

use chorale_nccl::{Bind, Comm, Library, NcclError, Operation};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Compiles a stand-in, with words for the compiler such as `-DVERSION=21500`.
pub(crate) fn build(words: &[&str]) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("libfake_nccl_{}_{number}.so", std::process::id());
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fake_nccl/fake_nccl.c");
    let done = Command::new("cc")
        .args(["-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-o"])
        .arg(&path)
        .args(words)
        .arg(source)
        .status();
    assert!(done.unwrap().success());
    path
}

/// Loads a stand-in; its file goes.
pub(crate) fn open(words: &[&str]) -> Arc<Library> {
    let path = build(words);
    let library = Library::open(Some(&path));
    std::fs::remove_file(path).unwrap();
    Arc::new(library.unwrap())
}

/// A stand-in whose network can be made to fail.
pub(crate) struct Failing {
    pub(crate) library: Arc<Library>,
    handle: libloading::Library,
}

impl Failing {
    pub(crate) fn open() -> Self {
        let path = build(&[]);
        let library = Arc::new(Library::open(Some(&path)).unwrap());
        // SAFETY: it is the stand-in that is loaded already.
        let handle = unsafe { libloading::Library::new(&path) }.unwrap();
        std::fs::remove_file(path).unwrap();
        Self { library, handle }
    }

    /// Every communicator of this rank fails from now on with `ncclSystemError`.
    pub(crate) fn fail(&self, rank: i32) {
        // SAFETY: the stand-in declares it so.
        unsafe {
            let fail: libloading::Symbol<'_, unsafe extern "C" fn(i32, i32)> =
                self.handle.get("fakeNcclFail").unwrap();
            fail(rank, 2);
        }
    }
}

/// Makes no thread another: there is no GPU.
pub(crate) fn unbound() -> Bind {
    Arc::new(|| ())
}

/// Enqueues exchanges of the test's own memory.
pub(crate) fn enqueue(comm: &Comm, operations: &[Operation]) -> Result<(), NcclError> {
    // SAFETY: the addresses are of vectors that the test keeps, and what the stand-in
    // has taken in is done when this returns.
    unsafe { comm.enqueue(0, operations) }
}

/// The address of a test's memory.
pub(crate) fn at<T>(values: &[T]) -> u64 {
    values.as_ptr() as u64
}

/// The address of a test's memory, to be written.
pub(crate) fn at_mut<T>(values: &mut [T]) -> u64 {
    values.as_mut_ptr() as u64
}
