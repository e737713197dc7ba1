//! Opening checkpoints: the valid ones of both layouts, every kind of broken
//! one, and the parts that ranks hold. What is computed from them is not tested here.

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

mod broken;
mod config;
mod config_original;
mod opens;
mod properties;
mod shards;
mod support;
mod writer;
