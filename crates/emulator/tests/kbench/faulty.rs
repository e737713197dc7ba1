//! An emulated GPU that does not come through one of its kernels.

#![expect(unsafe_code, reason = "hands on what it is given")]

use chorale_cuda::{Arriving, Facts, Gpu, GpuError, Launches, Point, TensorMap, Transfer};
use chorale_emulator::Emulator;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What becomes of it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It does not come back from the kernel.
    Hangs,
    /// All calls fail from then on.
    Breaks,
    /// The kernel does not run, and nobody says so.
    Lies,
}

pub(crate) struct Faulty {
    gpu: Arc<Emulator>,
    kernel: &'static str,
    fault: Fault,
    is_broken: AtomicBool,
}

impl Faulty {
    pub(crate) fn new(gpu: Arc<Emulator>, kernel: &'static str, fault: Fault) -> Arc<Self> {
        Arc::new(Self { gpu, kernel, fault, is_broken: AtomicBool::new(false) })
    }

    fn is_well(&self) -> Result<(), GpuError> {
        if !self.is_broken.load(Ordering::Relaxed) {
            return Ok(());
        }
        Err(GpuError::Driver { call: "cuStreamSynchronize", reason: "an illegal address".to_owned() })
    }
}

impl Gpu for Faulty {
    fn facts(&self) -> &Facts {
        self.gpu.facts()
    }

    fn free_bytes(&self) -> Result<usize, GpuError> {
        self.is_well().and_then(|()| self.gpu.free_bytes())
    }

    fn alloc(&self, len: usize) -> Result<u64, GpuError> {
        self.is_well().and_then(|()| self.gpu.alloc(len))
    }

    unsafe fn free(&self, address: u64, len: usize) {
        // SAFETY: the caller's.
        unsafe { self.gpu.free(address, len) }
    }

    unsafe fn upload(&self, bytes: &[u8], to: u64) -> Result<(), GpuError> {
        // SAFETY: the caller's.
        self.is_well().and_then(|()| unsafe { self.gpu.upload(bytes, to) })
    }

    unsafe fn download(&self, from: u64, bytes: &mut [u8]) -> Result<(), GpuError> {
        // SAFETY: the caller's.
        self.is_well().and_then(|()| unsafe { self.gpu.download(from, bytes) })
    }

    unsafe fn begin_download(&self, from: u64, len: usize) -> Result<Arriving, GpuError> {
        // SAFETY: the caller's.
        self.is_well().and_then(|()| unsafe { self.gpu.begin_download(from, len) })
    }

    unsafe fn copy(&self, from: u64, to: u64, len: usize) -> Result<(), GpuError> {
        // SAFETY: the caller's.
        self.is_well().and_then(|()| unsafe { self.gpu.copy(from, to, len) })
    }

    fn tensor_map(&self, map: &TensorMap) -> Result<[u64; 16], GpuError> {
        self.gpu.tensor_map(map)
    }

    unsafe fn run(&self, launches: &Launches) -> Result<(), GpuError> {
        self.is_well()?;
        if launches.iter().any(|(call, _)| call.kernel.name == self.kernel) {
            match self.fault {
                Fault::Hangs => loop {
                    std::thread::park();
                },
                // As a GPU: whoever asks next hears of it.
                Fault::Breaks => self.is_broken.store(true, Ordering::Relaxed),
                Fault::Lies => {}
            }
            return Ok(());
        }
        // SAFETY: the caller's.
        unsafe { self.gpu.run(launches) }
    }

    fn wait(&self) -> Result<(), GpuError> {
        self.is_well().and_then(|()| self.gpu.wait())
    }

    fn bind(&self) -> Result<(), GpuError> {
        self.gpu.bind()
    }

    fn alloc_host(&self, len: usize) -> Result<u64, GpuError> {
        self.is_well().and_then(|()| self.gpu.alloc_host(len))
    }

    unsafe fn free_host(&self, address: u64, len: usize) {
        // SAFETY: the caller's.
        unsafe { self.gpu.free_host(address, len) }
    }

    fn point(&self) -> Result<Point, GpuError> {
        self.gpu.point()
    }

    unsafe fn copy_aside(&self, after: Point, copies: &[Transfer]) -> Result<Point, GpuError> {
        // SAFETY: the caller's.
        unsafe { self.gpu.copy_aside(after, copies) }
    }

    fn follow(&self, point: Point) -> Result<(), GpuError> {
        self.gpu.follow(point)
    }

    fn is_past(&self, point: Point) -> Result<bool, GpuError> {
        self.gpu.is_past(point)
    }
}
