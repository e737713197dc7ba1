//! The contract between the scheduler's side and the workers' side.
//!
//! One [`StepPlan`] goes out, one [`StepOutput`] comes back, and nothing else
//! crosses in steady state; [`ToWorker`] and [`FromWorker`] are all that is
//! ever said. Plain data: no I/O, no async, no serialisation.
//!
//! Invariant: a value of these types means the same on every machine. No
//! method does work beyond arithmetic.

mod cluster;
mod ids;
mod join;
mod sampling;
mod step;
mod world;

pub use cluster::{
    Assignment, Carrier, DenseFormat, ExchangeOptions, ExpertResidency, FromWorker, KvFormat, Offer, OneShot,
    PROTOCOL, Pulse, Room, RowFormat, Standing, StepReport, ToWorker,
};
pub use ids::{BlockId, Rank, SequenceId, TokenId};
pub use join::{StepJoin, WrongAnswer};
pub use sampling::{Penalties, Sample, SamplingParams, TokenCount, TokenLogprob, TokenMask};
pub use step::{BlockTable, SequenceSlice, SliceTokens, StepOutput, StepPlan};
pub use world::{Epoch, Placement, Shape};
