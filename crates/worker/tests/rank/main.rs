//! Ranks on threads, through their handles: the same answers for every world,
//! and a named state for everything that goes wrong.

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

mod dtypes;
mod faults;
mod parity;
mod places;
mod world;
