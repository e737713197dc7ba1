//! gpt-oss: config, checkpoint shards, KV cache, the forward pass, sampling.
//!
//! Deliberately absent: who asked, text, RPC services.
//!
//! Invariant: the answer does not depend on how many ranks there are, nor on
//! what else is in the batch.

pub mod config;
