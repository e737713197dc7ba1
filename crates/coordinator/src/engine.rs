//! The handle on the engine: prompts go in, streams and numbers come out. What
//! runs behind it is in `turning`.

mod turning;

use crate::constraint::Constraint;
use crate::executor::Executor;
use crate::stream::TokenStream;
use chorale_plan::SequenceId;
use chorale_scheduler::{Config, ConfigError, Rejected, Request, Scheduler, Stats};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use turning::Loop;

/// A prompt to be continued, and what limits its continuation.
pub struct Submission {
    /// What the scheduler is told.
    pub request: Request,
    /// A grammar, where the answer has one.
    pub constraint: Option<Box<dyn Constraint>>,
}

/// Why a prompt was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The scheduler refused it.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// The engine ends and takes nothing more.
    #[error("the engine is stopping")]
    Stopping,
}

/// The engine in numbers, after its last step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EngineStats {
    /// The scheduler's.
    pub scheduler: Stats,
    /// Steps computed since the start.
    pub num_steps: u64,
    /// Rows computed since the start.
    pub num_rows: u64,
    /// How many rows the last step had.
    pub last_step_rows: u32,
    /// How long the last step took.
    pub last_step: Duration,
    /// Steps that were lost since the start.
    pub num_lost_steps: u64,
    /// Set while no step can run: the ranks come together anew.
    pub reforming: Option<Reforming>,
    /// Times that the engine went on with other ranks.
    pub num_recoveries: u64,
    /// How long no step could run, the last time.
    pub last_pause: Duration,
    /// How long no step could run, all times together.
    pub total_pause: Duration,
    /// True when the loop has ended: on request, or because the ranks failed.
    pub is_stopped: bool,
}

/// Why no step can run, and since when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reforming {
    /// Why.
    pub reason: String,
    /// Since when.
    pub since: Instant,
}

impl EngineStats {
    /// True while no step can run because the ranks come together anew.
    pub fn is_reforming(&self) -> bool {
        self.reforming.is_some()
    }
}

/// Commands that may wait: submissions are answered one by one between steps,
/// so this bounds how many clients are kept waiting for a yes or no.
const MAX_COMMANDS: usize = 1024;

/// A handle on the running engine; clones are the same engine.
#[derive(Clone, Debug)]
pub struct Engine {
    commands: mpsc::Sender<Command>,
    stats: watch::Receiver<Arc<EngineStats>>,
}

enum Command {
    Submit(Box<Submission>, oneshot::Sender<Result<TokenStream, Rejected>>),
    Cancel(SequenceId),
    Stop,
}

impl Engine {
    /// Starts the loop on the current runtime. It ends when every handle and
    /// every stream is gone, when it is stopped, or when the ranks end.
    pub fn start(
        config: Config,
        executor: impl Executor,
    ) -> Result<(Self, tokio::task::JoinHandle<()>), ConfigError> {
        let scheduler = Scheduler::new(config)?;
        let (commands, inbox) = mpsc::channel(MAX_COMMANDS);
        let (publish, stats) = watch::channel(Arc::new(EngineStats::default()));
        let engine_loop = Loop::new(scheduler, inbox, publish);
        Ok((Self { commands, stats }, tokio::spawn(engine_loop.run(executor))))
    }

    /// Hands in a prompt. The answer comes after the step that is running.
    pub async fn submit(&self, submission: Submission) -> Result<TokenStream, SubmitError> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Submit(Box::new(submission), reply);
        self.commands.send(command).await.map_err(|_| SubmitError::Stopping)?;
        Ok(answer.await.map_err(|_| SubmitError::Stopping)??)
    }

    /// Ends a sequence; its stream says so. Unknown ones are ignored.
    pub async fn cancel(&self, sequence: SequenceId) {
        // A stopped engine has no sequences.
        let _ = self.commands.send(Command::Cancel(sequence)).await;
    }

    /// Ends the loop after the step that is running; streams that are open fail.
    pub async fn stop(&self) {
        let _ = self.commands.send(Command::Stop).await;
    }

    /// The numbers after the last step.
    pub fn stats(&self) -> Arc<EngineStats> {
        self.stats.borrow().clone()
    }

    /// Follows the numbers, step by step.
    pub fn watch(&self) -> watch::Receiver<Arc<EngineStats>> {
        self.stats.clone()
    }
}
