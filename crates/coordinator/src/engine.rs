//! The engine loop: plan, execute, commit, deliver, again and again.

use crate::constraint::{Constraint, ConstraintError};
use crate::executor::Executor;
use crate::stream::{TokenEvent, TokenStream};
use chorale_plan::{SequenceId, StepPlan};
use chorale_scheduler::{Config, ConfigError, Progress, Rejected, Request, Scheduler, Stats};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};

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
    /// True when the loop has ended: on request, or because the ranks failed.
    pub is_stopped: bool,
}

/// Commands that may wait: submissions are answered one by one between steps,
/// so this bounds how many clients are kept waiting for a yes or no.
const MAX_COMMANDS: usize = 1024;

/// How often a waiting engine looks for sequences whose deadline passed.
const IDLE_TICK: Duration = Duration::from_millis(100);

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
    /// every stream is gone, when it is stopped, or when the ranks fail.
    pub fn start(
        config: Config,
        executor: impl Executor,
    ) -> Result<(Self, tokio::task::JoinHandle<()>), ConfigError> {
        let scheduler = Scheduler::new(config)?;
        let (commands, inbox) = mpsc::channel(MAX_COMMANDS);
        let (publish, stats) = watch::channel(Arc::new(EngineStats::default()));
        let engine_loop = Loop {
            scheduler,
            executor,
            inbox,
            streams: BTreeMap::new(),
            started: Instant::now(),
            stats: EngineStats::default(),
            publish,
            is_stopping: false,
        };
        Ok((Self { commands, stats }, tokio::spawn(engine_loop.run())))
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

/// One client.
struct Subscriber {
    events: mpsc::Sender<TokenEvent>,
    constraint: Option<Box<dyn Constraint>>,
}

/// What the one task owns.
struct Loop<E> {
    scheduler: Scheduler,
    executor: E,
    inbox: mpsc::Receiver<Command>,
    streams: BTreeMap<SequenceId, Subscriber>,
    started: Instant,
    stats: EngineStats,
    publish: watch::Sender<Arc<EngineStats>>,
    is_stopping: bool,
}

impl<E: Executor> Loop<E> {
    async fn run(mut self) {
        while self.take_commands().await {
            self.drop_abandoned();
            let expired = self.scheduler.expire(self.now_ms());
            self.deliver(expired.into());
            let Some(plan) = self.scheduler.schedule(self.now_ms()) else {
                self.publish();
                continue;
            };
            if let Err(reason) = self.step(plan).await {
                tracing::error!(reason, "the engine stops");
                self.fail_all(&reason);
                break;
            }
            self.publish();
        }
        self.fail_all("the engine was stopped");
        self.stats.is_stopped = true;
        self.publish();
    }

    /// Waits while there is nothing to do; false when the loop is to end.
    async fn take_commands(&mut self) -> bool {
        if self.scheduler.is_idle() {
            match self.inbox.recv().await {
                Some(command) => self.apply(command),
                None => return false,
            }
        } else if self.scheduler.stats().num_running == 0 {
            // Everything that is here waits for something: look again soon.
            if let Ok(Some(command)) = tokio::time::timeout(IDLE_TICK, self.inbox.recv()).await {
                self.apply(command);
            }
        }
        while let Ok(command) = self.inbox.try_recv() {
            self.apply(command);
        }
        !self.is_stopping
    }

    fn apply(&mut self, command: Command) {
        match command {
            Command::Submit(submission, reply) => {
                let answer = self.submit(*submission);
                // A client that left while it waited is swept before the next plan.
                let _ = reply.send(answer);
            }
            Command::Cancel(sequence) => {
                let progress = self.scheduler.cancel(sequence);
                self.deliver(progress.into_iter().collect());
            }
            Command::Stop => self.is_stopping = true,
        }
    }

    fn submit(&mut self, submission: Submission) -> Result<TokenStream, Rejected> {
        let Submission { request, constraint } = submission;
        // Room for everything that can be said: the loop never waits for a client.
        let capacity = request.max_tokens.get() as usize + 1;
        let sequence = self.scheduler.submit(request, self.now_ms())?;
        let (events, receiver) = mpsc::channel(capacity);
        self.streams.insert(sequence, Subscriber { events, constraint });
        Ok(TokenStream { sequence, events: receiver })
    }

    /// Cancels the sequences whose clients left.
    fn drop_abandoned(&mut self) {
        let abandoned: Vec<SequenceId> = self
            .streams
            .iter()
            .filter(|(_, subscriber)| subscriber.events.is_closed())
            .map(|(sequence, _)| *sequence)
            .collect();
        for sequence in abandoned {
            self.streams.remove(&sequence);
            self.scheduler.cancel(sequence);
        }
    }

    async fn step(&mut self, mut plan: StepPlan) -> Result<(), String> {
        self.constrain(&mut plan);
        let started = Instant::now();
        let num_rows: usize = plan.slices.iter().map(|slice| slice.tokens.len()).sum();
        let output = self.executor.step(plan.clone()).await.map_err(|error| error.to_string())?;
        self.stats.num_steps += 1;
        self.stats.num_rows += num_rows as u64;
        self.stats.last_step_rows = num_rows as u32;
        self.stats.last_step = started.elapsed();
        let progress = self.scheduler.commit(&plan, &output);
        self.deliver(progress.into());
        Ok(())
    }

    /// Asks each grammar what its sequence may say. One that cannot tell ends
    /// its sequence, whose slice is then computed for nobody.
    fn constrain(&mut self, plan: &mut StepPlan) {
        let mut failed = Vec::new();
        for slice in &mut plan.slices {
            let Some(params) = &mut slice.sample else { continue };
            let subscriber = self.streams.get_mut(&slice.sequence);
            let Some(constraint) = subscriber.and_then(|subscriber| subscriber.constraint.as_mut()) else {
                continue;
            };
            match constraint.allowed() {
                Ok(mask) => params.allowed = mask,
                Err(error) => failed.push((slice.sequence, error)),
            }
        }
        for (sequence, error) in failed {
            self.fail(sequence, &error);
        }
    }

    /// Hands out what happened. A sequence whose grammar fails ends here.
    fn deliver(&mut self, mut progress: VecDeque<Progress>) {
        while let Some(progress) = progress.pop_front() {
            match progress {
                Progress::Sampled(sample) => {
                    let sequence = sample.sequence;
                    let Some(subscriber) = self.streams.get_mut(&sequence) else { continue };
                    let accepted = match &mut subscriber.constraint {
                        Some(constraint) => constraint.accept(sample.token),
                        None => Ok(()),
                    };
                    // A client that left is swept before the next plan.
                    let _ = subscriber.events.try_send(TokenEvent::Token(sample));
                    if let Err(error) = accepted {
                        self.fail(sequence, &error);
                    }
                }
                Progress::Finished { sequence, reason, usage } => {
                    if let Some(subscriber) = self.streams.remove(&sequence) {
                        let _ = subscriber.events.try_send(TokenEvent::Finished { reason, usage });
                    }
                }
            }
        }
    }

    fn fail(&mut self, sequence: SequenceId, error: &ConstraintError) {
        tracing::error!(sequence = sequence.0, %error, "a sequence fails");
        self.scheduler.cancel(sequence);
        if let Some(subscriber) = self.streams.remove(&sequence) {
            let _ = subscriber.events.try_send(TokenEvent::Failed { reason: error.to_string() });
        }
    }

    fn fail_all(&mut self, reason: &str) {
        for (sequence, subscriber) in std::mem::take(&mut self.streams) {
            self.scheduler.cancel(sequence);
            let _ = subscriber.events.try_send(TokenEvent::Failed { reason: reason.to_owned() });
        }
    }

    fn publish(&mut self) {
        self.stats.scheduler = self.scheduler.stats();
        self.publish.send_replace(Arc::new(self.stats.clone()));
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}
