//! The CUDA device: its kernels, and how they are queued and launched.
//!
//! [`Cuda`] implements `Device` over a [`Gpu`]: the driver's, or the emulator's
//! that tests use. Experts may lie with the host, and GPUs of a host may write to
//! each other's memory: which do, a link decides. Deliberately absent: models,
//! placement and the network.
//!
//! Invariant: an operation asserts all that its kernels assume before it queues
//! them, so that no argument of a caller makes a kernel leave its memory.

mod ahead;
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
mod one_shot;
mod options;
mod paper;
mod peers;
mod product;
mod qkv;
mod route;
mod rows;
mod sample;
mod stream;

pub use cuda::Cuda;
pub use driver::{Absence, Counters, Driver, Found, Kernels, Mark, Options, probe};
pub use exchange::{Buffer, CHOICE_BYTES, Gathered, MAX_PARTS, Share, claim, part_bytes};
pub use experts::{ExpertCounts, ExpertFill, ExpertRoom, ExpertTraffic, packed_expert_bytes};
pub use gpu::{Arriving, Facts, Gpu, GpuError, Point, TensorMap, Transfer};
pub use groups::groups_bytes;
pub use launch::{Call, Kernel, Launches};
pub use matrix::Matrix;
pub use one_shot::{Area, Circle, CircleAbort, CircleWatch, Failure, KeptArea, Ways, area_room};
pub use options::CudaOptions;
pub use paper::Paper;
pub use peers::{Exposed, OFFER_BYTES, Offer, Reached};
pub use route::Routing;
