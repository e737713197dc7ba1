//! [`Gpu`](crate::Gpu) over CUDA's driver: the only part that needs one, and
//! that at run time only.
//!
//! Deliberately absent: CUDA's runtime and its libraries. All there is is a
//! stream of one context, another for copies beside it, and kernels of our own.

mod absence;
mod api;
mod arrivals;
mod aside;
mod context;
mod device;
mod functions;
mod graphs;
mod kernels;
mod launching;
mod nvrtc;
mod peers;
mod probe;
mod staging;

pub use absence::Absence;
pub use device::{Driver, Mark, Options};
pub use graphs::Counters;
pub use kernels::Kernels;
pub use probe::{Found, probe};
