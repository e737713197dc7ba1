//! Runs the CUDA kernels on the host, to test them without a GPU.
//!
//! The kernels are the same files that nvcc compiles. Here the host's C++
//! compiler does, and every GPU thread is a fiber; what a GPU leaves open is
//! drawn at random from a seed: which block, warp or lane runs next, and how
//! late a copy arrives, or one that runs beside the kernels. A kernel's first block
//! runs up to its `pdl_wait()` as early as any GPU may let it: before the kernel
//! ahead has written, and before older ones have, too, where those ahead call
//! `pdl_trigger()` before they wait. Memory that nobody wrote holds NaN, and what
//! lies beside it cannot be touched; vectors lie at multiples of their size. A
//! kernel that does what it must not ends the process with its name, its block and
//! its thread on standard error.
//!
//! With the feature `races` it also refuses what touches shared memory without an
//! order between the threads, and takes some ten times as long, too long for every
//! change. Who edits a kernel runs what it is part of once:
//!
//! ```sh
//! cargo test -p chorale-emulator --features races --test attention
//! ```
//!
//! It needs Linux on x86-64. Time means nothing here, and neither do the
//! addresses beyond this process.

mod aside;
mod gpu;
mod native;

pub use gpu::{Emulator, Options};
