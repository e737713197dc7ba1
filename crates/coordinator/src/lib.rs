//! The engine: takes prompts, plans steps over all of them, has the steps
//! executed, and hands each sequence its tokens.
//!
//! Deliberately absent: text, devices, HTTP. Who executes a step is behind
//! [`Executor`]; what a sequence may say is behind [`Constraint`]. Ranks in other
//! processes, and what becomes of a step when one of them is lost, are in
//! [`cluster`].
//!
//! Invariant: exactly one task owns the scheduler. Commands in, plans out.

pub mod cluster;
mod constraint;
mod engine;
mod executor;
mod stream;
mod suspects;

pub use chorale_scheduler::{
    Config as SchedulerConfig, ConfigError, FinishReason, HomeConfig, Pool, Rejected, Request, Share, Stats,
    Usage,
};
pub use constraint::{Constraint, ConstraintError};
pub use engine::{Engine, EngineStats, Reforming, Submission, SubmitError};
pub use executor::{Answer, Ended, Executor, StepError};
pub use stream::{TokenEvent, TokenStream};
