//! What the device needs of a GPU: memory, and kernels that run in order.
//!
//! Two implement it: the driver, through cudarc, and the emulator that the
//! tests use, which runs the same kernels on the host.

#![expect(unsafe_code, reason = "addresses of a GPU's memory are trusted by its kernels")]

use crate::launch::Launches;
use crate::peers::{Exposed, Offer, Reached, unreachable};

/// A GPU, or what stands in for one. Everything that is enqueued runs in order.
pub trait Gpu: Send + Sync {
    /// What the GPU is.
    fn facts(&self) -> &Facts;
    /// Bytes that are free now.
    fn free_bytes(&self) -> Result<usize, GpuError>;
    /// Memory, aligned to 256 bytes. What it holds is unspecified. `len` is not 0.
    fn alloc(&self, len: usize) -> Result<u64, GpuError>;
    /// Gives memory back once all that is enqueued is done.
    ///
    /// # Safety
    /// `address` came from `alloc` with this `len`, and nothing uses it from now on.
    unsafe fn free(&self, address: u64, len: usize);
    /// Enqueues a copy to the device. `bytes` may change when this returns.
    ///
    /// # Safety
    /// `to` and what follows is memory of this GPU.
    unsafe fn upload(&self, bytes: &[u8], to: u64) -> Result<(), GpuError>;
    /// Waits for all that is enqueued, and copies to the host.
    ///
    /// # Safety
    /// `from` and what follows is memory of this GPU.
    unsafe fn download(&self, from: u64, bytes: &mut [u8]) -> Result<(), GpuError>;
    /// Enqueues a copy to the host; the result waits for it, on any thread.
    ///
    /// # Safety
    /// `from` and what follows is memory of this GPU.
    unsafe fn begin_download(&self, from: u64, len: usize) -> Result<Arriving, GpuError>;
    /// Enqueues a copy on the device, or from or to memory of [`Self::alloc_host`];
    /// the ranges do not overlap.
    ///
    /// # Safety
    /// Both ranges are memory of this GPU, or of the host as above.
    unsafe fn copy(&self, from: u64, to: u64, len: usize) -> Result<(), GpuError>;
    /// Describes a bf16 matrix to the bulk tensor copy engine (TMA), for a
    /// kernel's argument; only where [`Facts::is_hopper`].
    fn tensor_map(&self, map: &TensorMap) -> Result<[u64; 16], GpuError>;
    /// Enqueues launches. The driver may keep the list as a graph and replay it
    /// when an equal one comes.
    ///
    /// # Safety
    /// The arguments of each launch are such as its kernel takes, and the
    /// memory that they point to is of this GPU and large enough.
    unsafe fn run(&self, launches: &Launches) -> Result<(), GpuError>;
    /// Waits for all that is enqueued.
    fn wait(&self) -> Result<(), GpuError>;
    /// The queue as CUDA knows it, for libraries that enqueue on it; 0 where all
    /// that was enqueued is done once [`Self::wait`] returns and nothing else can
    /// be enqueued.
    fn raw_stream(&self) -> u64 {
        0
    }
    /// Makes the calling thread one that may use the GPU.
    fn bind(&self) -> Result<(), GpuError>;

    /// Memory of the host that kernels read where it lies, aligned to 256 bytes.
    /// What it holds is unspecified. `len` is not 0.
    fn alloc_host(&self, len: usize) -> Result<u64, GpuError>;
    /// Gives memory of the host back once all that is enqueued is done.
    ///
    /// # Safety
    /// `address` came from `alloc_host` with this `len`, and nothing uses it from now on.
    unsafe fn free_host(&self, address: u64, len: usize);
    /// The point behind all that is enqueued now.
    fn point(&self) -> Result<Point, GpuError>;
    /// Enqueues copies on a queue of their own, behind `after` and what was enqueued
    /// there before; gives the point behind them. Until that is past, nobody knows
    /// what the destinations hold.
    ///
    /// # Safety
    /// The ranges are memory of this GPU or of `alloc_host`. What they hold is not
    /// changed, and what the destinations hold is not read, by anything that may
    /// run between the two points.
    unsafe fn copy_aside(&self, after: Point, copies: &[Transfer]) -> Result<Point, GpuError>;
    /// What is enqueued from now on waits for a point.
    fn follow(&self, point: Point) -> Result<(), GpuError>;
    /// True if the GPU is past a point; does not wait.
    fn is_past(&self, point: Point) -> Result<bool, GpuError>;

    /// Lets other GPUs of this host reach memory that begins at an address of
    /// [`Self::alloc`]; [`GpuError::Unreachable`] where none can.
    fn expose(&self, _address: u64) -> Result<Exposed, GpuError> {
        Err(unreachable("this GPU shares no memory".to_owned()))
    }
    /// Makes kernels of this GPU reach what a rank of this host offers;
    /// [`GpuError::Unreachable`] where they cannot.
    ///
    /// # Safety
    /// The memory lives, and lives until what this gives is dropped.
    unsafe fn reach(&self, _offer: &Offer) -> Result<Box<dyn Reached>, GpuError> {
        Err(unreachable("this GPU reaches no other's memory".to_owned()))
    }
    /// Drops a thing once all that is enqueued is done.
    fn drop_later(&self, thing: Box<dyn Send>) {
        drop(thing);
    }
}

/// A point of a GPU's queues; later ones have higher numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Point(pub u64);

/// A copy of some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Where they are.
    pub from: u64,
    /// Where they go.
    pub to: u64,
    /// How many.
    pub len: usize,
}

/// Bytes on their way to the host: waits for them, on any thread.
pub type Arriving = Box<dyn FnOnce() -> Result<Vec<u8>, GpuError> + Send>;

/// A row-major bf16 matrix of which boxes are copied to shared memory, swizzled
/// over 128 bytes; what lies outside of it reads as 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorMap {
    /// Where it begins, a multiple of 16.
    pub address: u64,
    /// Its rows.
    pub rows: u64,
    /// Its columns.
    pub cols: u64,
    /// From one row to the next, a multiple of 16.
    pub row_bytes: u64,
    /// Rows of a box.
    pub box_rows: u32,
    /// Columns of a box: 64, which is what a swizzle spans.
    pub box_cols: u32,
}

/// What a GPU is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Its marketing name.
    pub name: String,
    /// Compute capability, such as `(9, 0)`.
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub num_sms: u32,
    /// The most shared memory that a block of threads may have, in bytes.
    pub shared_bytes_max: u32,
    /// All memory, in bytes.
    pub memory_bytes: usize,
    /// What its memory delivers at most: its clock by its width.
    pub memory_bytes_per_s: u64,
    /// The driver's CUDA version, such as 13000.
    pub driver: i32,
}

impl Facts {
    /// True where `wgmma`, TMA and their barriers are: `sm_90a`.
    pub fn is_hopper(&self) -> bool {
        self.capability == (9, 0)
    }
}

/// What a GPU refuses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GpuError {
    /// There is no usable GPU here.
    #[error("no CUDA device: {reason}")]
    Absent {
        /// Why, and what would mend it.
        reason: String,
    },
    /// There is not enough memory; ask for less.
    #[error("{bytes} bytes of GPU memory could not be had, {free} are free")]
    OutOfMemory {
        /// How much was asked for at once.
        bytes: usize,
        /// How much there is.
        free: usize,
    },
    /// The host has not enough memory that a GPU can read; ask for less.
    #[error("{bytes} bytes of pinned host memory could not be had")]
    OutOfHostMemory {
        /// How much was asked for at once.
        bytes: usize,
    },
    /// There is no way from one GPU's kernels to another's memory; all else works.
    #[error("no way to the other GPU's memory: {reason}")]
    Unreachable {
        /// Why.
        reason: String,
    },
    /// This build has no machine code for this GPU and could not make any.
    #[error("no kernels for this GPU: {reason}")]
    NoKernels {
        /// Why, and what would mend it.
        reason: String,
    },
    /// The driver failed; the GPU's context can no longer be used.
    #[error("{call} failed: {reason}")]
    Driver {
        /// What was called.
        call: &'static str,
        /// What the driver says.
        reason: String,
    },
}
