//! The crate against what the reference implementations compute, and against
//! its own promises on arbitrary input.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod constraining;
mod evals;
mod parsing;
mod properties;
mod rendering;
mod tokenizing;
mod wire;
