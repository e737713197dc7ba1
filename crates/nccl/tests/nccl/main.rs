//! What of NCCL can be shown without a GPU: over a stand-in for the library that
//! exchanges host memory between threads.

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

mod bring_up;
mod comm;
mod engine;
mod fake;
mod faults;
#[path = "../../../link/tests/mesh/layers.rs"]
mod layers;
mod library;
mod pair;
mod parity;
mod real;
mod small;
mod worker;
mod world;
