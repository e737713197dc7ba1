//! Ranks that are processes: frames travel over gRPC, one call for each pair and
//! direction, on a connection of its own.
//!
//! A worker has one [`LinkPort`] for as long as it lives. For each epoch it
//! takes a [`Membership`] there, which gives a [`GrpcTransport`] for the rank's
//! thread at once; who is connected and who is not is known a while later, from
//! [`Connecting`].
//!
//! Deadlines and faults are the thread's; what runs between threads and network
//! are tasks that a fault or the end of the epoch always ends.

mod dial;
mod lane;
mod pieces;
mod port;
mod transport;
mod world;

pub use port::{LinkPort, PortConfig, PortError};
pub use transport::{EndHandle, GrpcTransport};
pub use world::{ConnectError, Connecting, Membership};
