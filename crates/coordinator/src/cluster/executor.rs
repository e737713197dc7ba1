//! The cluster as the engine sees it: something that computes steps.

use super::membership::World;
use crate::executor::{Answer, Ended, Executor, StepError};
use chorale_plan::{Epoch, StepOutput, StepPlan};
use chorale_scheduler::HomeConfig;
use std::future::ready;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};

/// A step that is wanted of a world.
pub(super) struct Request {
    pub(super) epoch: Epoch,
    pub(super) plan: Arc<StepPlan>,
    pub(super) reply: oneshot::Sender<Result<StepOutput, StepError>>,
}

/// Computes steps on the ranks of a cluster. Ask it for [`Executor::homes`] before
/// the engine is started: that waits for the first ranks.
#[derive(Debug)]
pub struct ClusterExecutor {
    pub(super) requests: mpsc::Sender<Request>,
    pub(super) world: watch::Receiver<Option<Arc<World>>>,
    /// The world that plans are made for.
    pub(super) epoch: Option<Epoch>,
    pub(super) max_sequence_tokens: Option<u32>,
}

impl ClusterExecutor {
    /// The longest sequence that every home has room for, known as soon as there
    /// were homes, and then for good: it depends on how they keep keys and values.
    pub fn max_sequence_tokens(&self) -> Option<u32> {
        self.max_sequence_tokens
    }
}

impl Executor for ClusterExecutor {
    fn step(&mut self, plan: Arc<StepPlan>) -> Answer {
        let Some(epoch) = self.epoch else {
            let reason = "nobody has asked for the homes yet".to_owned();
            return Box::pin(ready(Err(StepError::Moved { reason })));
        };
        let (reply, answer) = oneshot::channel();
        let ended = || StepError::Ended { reason: "the coordinator ends".to_owned() };
        let requests = self.requests.clone();
        Box::pin(async move {
            requests.send(Request { epoch, plan, reply }).await.map_err(|_| ended())?;
            answer.await.map_err(|_| ended())?
        })
    }

    async fn homes(&mut self) -> Result<Vec<HomeConfig>, Ended> {
        self.epoch = None;
        loop {
            if let Some(world) = self.world.borrow_and_update().clone() {
                self.epoch = Some(world.epoch);
                self.max_sequence_tokens = Some(world.max_sequence_tokens);
                return Ok(world.homes.clone());
            }
            let changed = self.world.changed().await;
            changed.map_err(|_| Ended { reason: "the coordinator ends".to_owned() })?;
        }
    }
}
