//! The golden checkpoints: what two independent implementations computed, and
//! what an engine must not notice, slices, neighbours and pages.

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

mod agreement;
mod dtypes;
mod engine;
mod invariance;
mod ranks;
mod tensors;

const MODELS: [&str; 3] = ["a-small", "b-awkward", "c-ratio"];
