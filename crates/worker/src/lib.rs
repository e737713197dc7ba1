//! A rank: a thread that loads its shard and runs plans in order.
//!
//! The thread is a plain one: devices and async do not mix. Deliberately
//! absent: scheduling and HTTP.
//!
//! Invariant: plans run in step order, each at most once; a rank that cannot
//! tell refuses.

mod runner;

pub use runner::{Rank, RankError};
