//! A rank: a thread that takes its place in a world, loads its shard and runs
//! plans in order; [`join`] makes a process of it. Where the device allows it,
//! a step begins before the last one's tokens have come.
//!
//! The thread is a plain one: devices and async do not mix. Deliberately
//! absent: scheduling and HTTP.
//!
//! Invariant: plans run in step order, each at most once; a rank that cannot
//! tell refuses.

mod finish;
pub mod formats;
pub mod join;
mod place;
mod pulse;
mod rank;
mod runner;

pub use chorale_wire::tls;
pub use rank::{Rank, RankError};
