//! Scripts in, traces out: what is planned in which step, as a picture.
//!
//! A script is a line of words. `3+2` submits a prompt of 3 tokens that wants 2;
//! behind slashes it may have a priority `p-1`, a key `k2` of weight `w3`, `c8` for
//! 8 first tokens that all prompts share, a salt `s1`, `off` for no prefix caching,
//! `e2` to sample the end at its second token, a deadline `d30` in ms. `;` runs a
//! step, `x0` cancels, `!` loses all ranks; at its end the script runs on until
//! all is done. A step takes 10 ms.
//!
//! In a trace, `s1@0[5+7]*` is a slice of sequence 1 at home 0, 7 tokens from
//! position 5 on; `*` marks a sampled slice, `~` the token of the step before.

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

mod bounds;
mod cache;
mod fairness;
mod order;
mod pipeline;
mod play;
mod preemption;
mod window;
