//! The ranks of this process behind the engine's own interface: what a cluster
//! of other processes is to it, too.

use chorale_coordinator::{Executor, ExecutorError};
use chorale_plan::{StepOutput, StepPlan};
use chorale_worker::Rank;

/// One rank, on a thread of this process.
pub(super) struct LocalRank(pub(super) Rank);

impl Executor for LocalRank {
    async fn step(&mut self, plan: StepPlan) -> Result<StepOutput, ExecutorError> {
        self.0.step(plan).await.map_err(|error| ExecutorError { reason: error.to_string() })
    }
}
