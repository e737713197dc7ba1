//! A mesh of ranks on threads, over the local transport: what comes home, and
//! what a rank makes of others that fail or lie.

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

mod hostile;
mod layers;
mod parity;
mod world;
