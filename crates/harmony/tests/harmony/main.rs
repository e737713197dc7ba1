//! The crate against what the reference implementations compute, and against
//! its own promises on arbitrary input.

mod evals;
mod parsing;
mod properties;
mod rendering;
mod tokenizing;
mod wire;
