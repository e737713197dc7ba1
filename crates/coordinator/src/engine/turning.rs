//! The engine loop: plan, execute, commit, deliver, again and again. When a step
//! is lost, wait for ranks and compute everything again: clients see a pause.

use super::{Command, EngineStats, Reforming, Submission};
use crate::constraint::{Constraint, ConstraintError};
use crate::executor::{Answer, Executor, StepError};
use crate::stream::{TokenEvent, TokenStream};
use crate::suspects::{Suspects, Turn};
use chorale_plan::{SequenceId, StepPlan};
use chorale_scheduler::{HomeConfig, Progress, Rejected, Scheduler};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

/// How often a waiting engine looks for sequences whose deadline passed.
const IDLE_TICK: Duration = Duration::from_millis(100);

/// One client.
struct Subscriber {
    events: mpsc::Sender<TokenEvent>,
    constraint: Option<Box<dyn Constraint>>,
}

/// A step that was handed in.
struct Running {
    plan: Arc<StepPlan>,
    answer: Answer,
    started: Instant,
}

/// What the one task owns.
pub(super) struct Loop {
    scheduler: Scheduler,
    /// The oldest first.
    running: VecDeque<Running>,
    inbox: mpsc::Receiver<Command>,
    streams: BTreeMap<SequenceId, Subscriber>,
    suspects: Suspects,
    started: Instant,
    /// When the last step ended: the next one computes from then on, or from
    /// when it was handed in.
    last_end: Instant,
    stats: EngineStats,
    publish: watch::Sender<Arc<EngineStats>>,
    is_stopping: bool,
    /// There was nothing to plan the last time.
    is_stuck: bool,
    /// Every handle is gone: no command will come.
    is_unheard: bool,
}

/// Why the loop cannot go on.
struct Stopped {
    reason: String,
}

impl Loop {
    pub(super) fn new(
        scheduler: Scheduler,
        inbox: mpsc::Receiver<Command>,
        publish: watch::Sender<Arc<EngineStats>>,
    ) -> Self {
        Self {
            scheduler,
            running: VecDeque::new(),
            inbox,
            streams: BTreeMap::new(),
            suspects: Suspects::default(),
            started: Instant::now(),
            last_end: Instant::now(),
            stats: EngineStats::default(),
            publish,
            is_stopping: false,
            is_stuck: false,
            is_unheard: false,
        }
    }

    pub(super) async fn run(mut self, mut executor: impl Executor) {
        while self.take_commands().await {
            self.sweep();
            while let Some(plan) = self.scheduler.schedule(self.now_ms()) {
                self.hand_in(plan, &mut executor);
            }
            self.is_stuck = self.running.is_empty();
            let Some(oldest) = self.running.pop_front() else {
                self.publish();
                continue;
            };
            if let Err(Stopped { reason }) = self.finish(oldest, &mut executor).await {
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
        } else if self.is_stuck {
            // Everything that is here waits for something: look again soon.
            if let Ok(Some(command)) = tokio::time::timeout(IDLE_TICK, self.inbox.recv()).await {
                self.apply(command);
            }
        }
        self.apply_all();
        !self.is_stopping
    }

    fn apply_all(&mut self) {
        while let Ok(command) = self.inbox.try_recv() {
            self.apply(command);
        }
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
        let Submission { mut request, constraint } = submission;
        // What a grammar allows next depends on the token before.
        request.known_tokens_only |= constraint.is_some();
        // Room for everything that can be said: the loop never waits for a client.
        let capacity = request.max_tokens.get() as usize + 1;
        let sequence = self.scheduler.submit(request, self.now_ms())?;
        if self.suspects.is_trying() {
            self.scheduler.hold(sequence);
        }
        let (events, receiver) = mpsc::channel(capacity);
        self.streams.insert(sequence, Subscriber { events, constraint });
        Ok(TokenStream { sequence, events: receiver })
    }

    /// Ends what need not go on: clients that left, time that is up. The next
    /// suspect has its turn when the last one is cleared or gone.
    fn sweep(&mut self) {
        let is_abandoned = |(_, subscriber): &(_, &Subscriber)| subscriber.events.is_closed();
        let abandoned: Vec<SequenceId> =
            self.streams.iter().filter(is_abandoned).map(|(sequence, _)| *sequence).collect();
        for sequence in abandoned {
            self.streams.remove(&sequence);
            self.suspects.forget(sequence);
            self.scheduler.cancel(sequence);
        }
        let expired = self.scheduler.expire(self.now_ms());
        self.deliver(expired.into());
        match self.suspects.next() {
            Turn::Nobody => {}
            Turn::Suspect(sequence) => self.scheduler.release(sequence),
            Turn::Everybody => self.streams.keys().for_each(|sequence| self.scheduler.release(*sequence)),
        }
    }

    fn hand_in(&mut self, mut plan: StepPlan, executor: &mut impl Executor) {
        self.constrain(&mut plan);
        let plan = Arc::new(plan);
        let answer = executor.step(Arc::clone(&plan));
        self.running.push_back(Running { plan, answer, started: Instant::now() });
    }

    /// Waits for a step, and goes on from what became of it.
    async fn finish(&mut self, step: Running, executor: &mut impl Executor) -> Result<(), Stopped> {
        let Running { plan, answer, started } = step;
        let error = match answer.await {
            Ok(output) => {
                let num_rows: usize = plan.slices.iter().map(|slice| slice.tokens.len()).sum();
                self.stats.num_steps += 1;
                self.stats.num_rows += num_rows as u64;
                self.stats.last_step_rows = num_rows as u32;
                self.stats.last_step = started.max(self.last_end).elapsed();
                self.last_end = Instant::now();
                let progress = self.scheduler.commit(&plan, &output);
                self.deliver(progress.into());
                return Ok(());
            }
            Err(error) => error,
        };
        // Steps after a lost one are lost with it.
        self.running.clear();
        let reason = match error {
            StepError::Ended { .. } => return Err(Stopped { reason: error.to_string() }),
            StepError::Lost { reason } => {
                self.stats.num_lost_steps += 1;
                for sequence in self.suspects.lost(plan.slices.iter().map(|slice| slice.sequence)) {
                    self.fail(sequence, &format!("the ranks fail whenever they compute it: {reason}"));
                }
                reason
            }
            StepError::Moved { reason } => reason,
        };
        let homes = self.reform(reason, executor).await?;
        if !self.is_stopping {
            self.rehome(homes)?;
        }
        Ok(())
    }

    /// Waits for ranks. What clients ask and leave meanwhile is attended to.
    async fn reform(
        &mut self,
        reason: String,
        executor: &mut impl Executor,
    ) -> Result<Vec<HomeConfig>, Stopped> {
        tracing::warn!(reason, "no step can run until the ranks have come together anew");
        let since = Instant::now();
        self.stats.reforming = Some(Reforming { reason, since });
        // Its pages are lost already, and numbers should say so.
        self.scheduler.uncompute_all();
        let mut coming = std::pin::pin!(executor.homes());
        let homes = loop {
            self.apply_all();
            self.sweep();
            self.publish();
            if self.is_stopping || (self.is_unheard && self.streams.is_empty()) {
                self.is_stopping = true;
                return Ok(Vec::new());
            }
            tokio::select! {
                homes = &mut coming => break homes.map_err(|ended| Stopped { reason: ended.to_string() })?,
                command = self.inbox.recv(), if !self.is_unheard => match command {
                    Some(command) => self.apply(command),
                    None => self.is_unheard = true,
                },
                () = tokio::time::sleep(IDLE_TICK) => {}
            }
        };
        let pause = since.elapsed();
        self.stats.reforming = None;
        self.stats.num_recoveries += 1;
        self.stats.last_pause = pause;
        self.stats.total_pause += pause;
        tracing::info!(pause_ms = pause.as_millis() as u64, num_homes = homes.len(), "steps can run again");
        Ok(homes)
    }

    /// Everything is computed again, at these homes: one by one if there are suspects.
    fn rehome(&mut self, homes: Vec<HomeConfig>) -> Result<(), Stopped> {
        let ended = self
            .scheduler
            .rehome(homes)
            .map_err(|error| Stopped { reason: format!("the ranks make no homes: {error}") })?;
        self.deliver(ended.into());
        if self.suspects.begin() {
            for sequence in self.streams.keys() {
                self.scheduler.hold(*sequence);
            }
        }
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
            self.fail_constrained(sequence, &error);
        }
    }

    /// Hands out what happened. A sequence whose grammar fails ends here.
    fn deliver(&mut self, mut progress: VecDeque<Progress>) {
        while let Some(progress) = progress.pop_front() {
            match progress {
                Progress::Sampled(sample) => {
                    let sequence = sample.sequence;
                    self.suspects.forget(sequence);
                    let Some(subscriber) = self.streams.get_mut(&sequence) else { continue };
                    let accepted = match &mut subscriber.constraint {
                        Some(constraint) => constraint.accept(sample.token),
                        None => Ok(()),
                    };
                    // A client that left is swept before the next plan.
                    let _ = subscriber.events.try_send(TokenEvent::Token(sample));
                    if let Err(error) = accepted {
                        self.fail_constrained(sequence, &error);
                    }
                }
                Progress::Finished { sequence, reason, usage } => {
                    self.suspects.forget(sequence);
                    if let Some(subscriber) = self.streams.remove(&sequence) {
                        let _ = subscriber.events.try_send(TokenEvent::Finished { reason, usage });
                    }
                }
            }
        }
    }

    fn fail_constrained(&mut self, sequence: SequenceId, error: &ConstraintError) {
        self.fail(sequence, &error.to_string());
    }

    fn fail(&mut self, sequence: SequenceId, reason: &str) {
        tracing::error!(sequence = sequence.0, reason, "a sequence fails");
        self.scheduler.cancel(sequence);
        self.suspects.forget(sequence);
        if let Some(subscriber) = self.streams.remove(&sequence) {
            let _ = subscriber.events.try_send(TokenEvent::Failed { reason: reason.to_owned() });
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
