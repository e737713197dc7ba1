//! The rank's thread, and the handle through which plans reach it.

use chorale_device::Device;
use chorale_link::Link;
use chorale_model::{GptOss, StepError};
use chorale_plan::{StepOutput, StepPlan};
use std::sync::mpsc;
use tokio::sync::oneshot;

/// Plans that wait for the rank: one runs, one is ready to.
const MAX_JOBS: usize = 2;

/// Why a rank gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RankError {
    /// The model could not be loaded.
    #[error("{reason}")]
    Load {
        /// Why.
        reason: String,
    },
    /// The plan breaks the contract; nothing was computed, and the next one may be better.
    #[error("{reason}")]
    Refused {
        /// Why.
        reason: String,
    },
    /// The device or another rank failed; the step is lost.
    #[error("{reason}")]
    Lost {
        /// Why.
        reason: String,
    },
    /// The rank's thread has ended.
    #[error("the rank has stopped")]
    Stopped,
}

struct Job {
    plan: StepPlan,
    reply: oneshot::Sender<Result<StepOutput, RankError>>,
}

/// A rank that runs plans. Dropping it ends its thread after the running plan.
#[derive(Debug)]
pub struct Rank {
    jobs: mpsc::SyncSender<Job>,
}

impl Rank {
    /// Starts a thread that loads a model and then runs plans. The receiver
    /// tells when the model is there, with what `describe` says of it.
    pub fn start<D, L, T, E>(
        load: impl FnOnce() -> Result<GptOss<D, L>, E> + Send + 'static,
        describe: impl FnOnce(&GptOss<D, L>) -> T + Send + 'static,
    ) -> std::io::Result<(Self, oneshot::Receiver<Result<T, RankError>>)>
    where
        D: Device + 'static,
        L: Link<D> + 'static,
        T: Send + 'static,
        E: std::fmt::Display,
    {
        let (jobs, inbox) = mpsc::sync_channel(MAX_JOBS);
        let (announce, loaded) = oneshot::channel();
        std::thread::Builder::new().name("rank".to_owned()).spawn(move || {
            match load() {
                Ok(model) => {
                    // Whoever asked may have gone; the jobs' end says so below.
                    let _ = announce.send(Ok(describe(&model)));
                    run(model, &inbox);
                }
                Err(error) => {
                    let _ = announce.send(Err(RankError::Load { reason: error.to_string() }));
                }
            }
        })?;
        Ok((Self { jobs }, loaded))
    }

    /// Runs a plan after those that were handed in before.
    pub async fn step(&self, plan: StepPlan) -> Result<StepOutput, RankError> {
        let (reply, answer) = oneshot::channel();
        self.jobs.try_send(Job { plan, reply }).map_err(|error| match error {
            mpsc::TrySendError::Full(_) => {
                RankError::Refused { reason: format!("{MAX_JOBS} plans wait already") }
            }
            mpsc::TrySendError::Disconnected(_) => RankError::Stopped,
        })?;
        answer.await.unwrap_or(Err(RankError::Stopped))
    }
}

fn run<D: Device, L: Link<D>>(mut model: GptOss<D, L>, inbox: &mpsc::Receiver<Job>) {
    let mut last_step = None;
    while let Ok(Job { plan, reply }) = inbox.recv() {
        let answer = in_order(last_step, plan.step).and_then(|()| {
            last_step = Some(plan.step);
            model.step(&plan).map_err(|error| match error {
                StepError::Plan(_) => RankError::Refused { reason: error.to_string() },
                StepError::Lost(_) => RankError::Lost { reason: error.to_string() },
            })
        });
        // A planner that left takes its plan's answer with it.
        let _ = reply.send(answer);
    }
}

/// A plan that repeats or skips comes from a planner that lost count.
fn in_order(last_step: Option<u64>, step: u64) -> Result<(), RankError> {
    match last_step {
        Some(last) if step != last + 1 => {
            Err(RankError::Refused { reason: format!("step {step} does not follow step {last}") })
        }
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_neither_repeat_nor_skip() {
        assert_eq!(in_order(None, 7), Ok(()));
        assert_eq!(in_order(Some(7), 8), Ok(()));
        assert!(in_order(Some(7), 7).is_err());
        assert!(in_order(Some(7), 9).is_err());
    }
}
