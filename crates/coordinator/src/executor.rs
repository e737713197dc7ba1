//! Who computes a step: the ranks, wherever they are.

use chorale_plan::{StepOutput, StepPlan};
use chorale_scheduler::HomeConfig;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

/// What a step sampled, once it has.
pub type Answer = Pin<Box<dyn Future<Output = Result<StepOutput, StepError>> + Send>>;

/// Computes plans, one after the other.
pub trait Executor: Send + 'static {
    /// Hands a plan in. Plans are computed in the order of the calls, and the
    /// next may be handed in before the last one is answered: as many as the
    /// scheduler has in flight. Answers are dropped unawaited only when the
    /// engine ends or an older step was lost.
    fn step(&mut self, plan: Arc<StepPlan>) -> Answer;

    /// Waits until there are ranks to compute on again, and says what homes they
    /// make: asked after a step was lost or the ranks have moved. Nothing is
    /// forgotten if the future is dropped and asked for anew.
    ///
    /// Executors whose ranks never come back leave it at this.
    fn homes(&mut self) -> impl Future<Output = Result<Vec<HomeConfig>, Ended>> + Send {
        std::future::ready(Err(Ended { reason: "there are no other ranks".to_owned() }))
    }
}

/// Why a step gave nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// The step is void, and with it all that was computed before; the ranks may
    /// come back.
    #[error("the step was lost: {reason}")]
    Lost {
        /// Why.
        reason: String,
    },
    /// The step was not begun: the ranks have changed since its plan was made.
    /// What they computed before is void, but no sequence can be the cause.
    #[error("the ranks have changed: {reason}")]
    Moved {
        /// Why.
        reason: String,
    },
    /// The ranks gave no answer, and will not.
    #[error("the step could not be computed: {reason}")]
    Ended {
        /// Why.
        reason: String,
    },
}

/// There will be no ranks any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there are no ranks to compute on: {reason}")]
pub struct Ended {
    /// Why.
    pub reason: String,
}
