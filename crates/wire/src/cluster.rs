//! What the coordinator and its workers say to each other,
//! `chorale.cluster.v1`: the messages, and the contract's types that they become.
//!
//! `From` makes messages and cannot fail; `TryFrom` reads what a peer sent and
//! names the field that is wrong. What is read is in its bounds, so that nobody
//! after it indexes, allocates or waits by a number that was made up.

mod coordinator;
mod format;
mod mask;
mod packed;
mod sampling;
mod step;
mod worker;
mod world;

pub use coordinator::MAX_TIMEOUT_MS;
pub use step::MAX_SLICES;
pub use world::{MAX_EXPERTS, MAX_LAYERS, MAX_RANKS};

/// What the protos say, in Rust: messages, the service's trait and its client.
#[allow(missing_docs, clippy::all, clippy::unwrap_used)]
pub mod v1 {
    tonic::include_proto!("chorale.cluster.v1");
}

use crate::InvalidField;

/// Reasons are for people: longer ones are cut before they are sent.
pub const MAX_REASON_BYTES: usize = 4096;

/// As much of a reason as travels.
fn cut(mut reason: String) -> String {
    reason.truncate(reason.floor_char_boundary(MAX_REASON_BYTES));
    reason
}

/// A field that is a message of its own.
fn inner<M, T>(field: &str, message: Option<M>) -> Result<T, InvalidField>
where
    T: TryFrom<M, Error = InvalidField>,
{
    T::try_from(crate::field::present(field, message)?).map_err(|error| error.within(field))
}

/// A list of messages.
fn items<M, T>(field: &str, messages: Vec<M>, max: usize) -> Result<Vec<T>, InvalidField>
where
    T: TryFrom<M, Error = InvalidField>,
{
    let messages = crate::field::at_most(field, messages, max)?;
    let read = |(index, message)| T::try_from(message).map_err(|error| error.within_item(field, index));
    messages.into_iter().enumerate().map(read).collect()
}
