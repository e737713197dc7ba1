//! The CUDA device: its kernels, and how they are queued and launched.
//!
//! [`Cuda`] implements `Device` over a [`Gpu`]: the driver's, or the emulator's
//! that tests use. Deliberately absent: models, ranks and the network.
//!
//! Invariant: an operation asserts all that its kernels assume before it queues
//! them, so that no argument of a caller makes a kernel leave its memory.

mod attention;
mod batch;
mod cuda;
mod driver;
mod exchange;
mod experts;
mod gpu;
mod groups;
mod kv_cache;
mod launch;
mod linear;
mod matrix;
mod memory;
mod product;
mod qkv;
mod route;
mod rows;
mod sample;
mod stream;

pub use cuda::Cuda;
pub use driver::{Absence, Counters, Driver, Found, Kernels, Mark, Options, probe};
pub use exchange::{Buffer, CHOICE_BYTES, Gathered, MAX_PARTS, Share, claim, part_bytes};
pub use gpu::{Arriving, Facts, Gpu, GpuError, TensorMap};
pub use launch::{Call, Kernel, Launches};
pub use matrix::Matrix;
pub use route::Routing;
