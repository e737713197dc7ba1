//! Exchanges between ranks that stay on the GPUs, by NVIDIA's NCCL; what is small
//! goes by kernels of our own where GPUs of one host reach each other's memory.
//!
//! The library is loaded at run time: without it everything else works as
//! before. Deliberately absent: what is computed, and who the ranks are.

mod agreement;
mod bring_up;
mod circles;
mod claims;
mod comm;
mod counted;
mod error;
mod joining;
mod library;
mod link;
mod member;
mod room;
mod shares;

pub use agreement::{SMALL_BYTES, small_exchange_bytes};
pub use bring_up::{Beginning, BringUpError, Comms, bring_up};
pub use circles::Circles;
pub use comm::{Abort, Bind, Comm, Kind, Members, Operation};
pub use error::{NcclError, Version};
pub use joining::NcclLinks;
pub use library::{ID_BYTES, Id, Library};
pub use link::NcclLink;
pub use room::link_bytes;
