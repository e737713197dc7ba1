//! Exchanges between ranks that stay on the GPUs, by NVIDIA's NCCL.
//!
//! The library is loaded at run time: without it everything else works as
//! before. Deliberately absent: what is computed, and who the ranks are.

mod bring_up;
mod claims;
mod comm;
mod counted;
mod error;
mod joining;
mod library;
mod link;
mod member;
mod shares;

pub use bring_up::{Beginning, BringUpError, Comms, bring_up};
pub use comm::{Abort, Comm, Kind, Members, Operation};
pub use error::{NcclError, Version};
pub use joining::NcclLinks;
pub use library::{ID_BYTES, Id, Library};
pub use link::NcclLink;
