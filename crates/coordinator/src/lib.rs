//! The engine: takes prompts, plans steps over all of them, has the steps
//! executed, and hands each sequence its tokens.
//!
//! Deliberately absent: text, devices, HTTP. Who executes a step is behind
//! [`Executor`]; what a sequence may say is behind [`Constraint`].
//!
//! Invariant: exactly one task owns the scheduler. Commands in, plans out.

mod constraint;
mod engine;
mod executor;
mod stream;

pub use chorale_scheduler::{
    Config as SchedulerConfig, ConfigError, FinishReason, HomeConfig, Pool, Rejected, Request, Share, Stats,
    Usage,
};
pub use constraint::{Constraint, ConstraintError};
pub use engine::{Engine, EngineStats, Submission, SubmitError};
pub use executor::{Executor, ExecutorError};
pub use stream::{TokenEvent, TokenStream};
