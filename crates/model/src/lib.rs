//! gpt-oss: config, checkpoint shards, KV cache, the forward pass, sampling.
//!
//! Deliberately absent: who asked, text, RPC services.
//!
//! Invariant: the answer does not depend on how many ranks there are, nor on
//! what else is in the batch.

mod batch;
pub mod budget;
pub mod checkpoint;
pub mod config;
mod forward;
mod layers;
mod observe;
pub mod offline;
mod place;
mod seat;
pub mod shard;
mod weights;

pub use batch::PlanError;
pub use forward::{GptOss, StepError, Submitted};
pub use observe::{Observer, Stage};
pub use place::Preparation;
pub use seat::{Room, Seat};
pub use weights::{LoadError, LoadProgress, OnProgress, Weights};
