//! Who computes a step: the ranks, wherever they are.

use chorale_plan::{StepOutput, StepPlan};
use std::future::Future;

/// Computes plans, one after the other.
pub trait Executor: Send + 'static {
    /// Computes a plan and gives what it sampled. The future may be dropped
    /// only when the engine ends.
    fn step(&mut self, plan: StepPlan) -> impl Future<Output = Result<StepOutput, ExecutorError>> + Send;
}

/// The ranks gave no answer, and will not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the step could not be computed: {reason}")]
pub struct ExecutorError {
    /// Why.
    pub reason: String,
}
