//! Protobuf: the messages of every service, and their conversions to and from
//! plain data; and what carries them inside a cluster: its certificates
//! ([`tls`]) and the connections of its ports ([`listener`]). It does not know
//! what messages are for.
//!
//! Invariant: no message type is used outside a conversion; unknown or
//! out-of-range input is an error here and nowhere later.

pub mod cluster;
mod field;
pub mod inference;
pub mod link;
pub mod listener;
pub mod tls;

pub use field::InvalidField;
