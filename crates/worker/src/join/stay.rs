//! One stay with the coordinator, from the offer to the end of the call.

use super::Worker;
use super::backoff::Backoff;
use super::dial::{Call, said_by};
use super::place::Place;
use super::speed::{Doing, Reading, Speed};
use crate::{Rank, RankError};
use chorale_plan::{Epoch, FromWorker, Pulse, Standing, StepOutput, StepPlan, StepReport, ToWorker};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::Streaming;

/// Steps whose answers are to come. A coordinator that sends more has lost count.
const MAX_STEPS: usize = 16;

/// Between the end of the rank's thread and the end of its worker.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// How a stay ended.
pub(super) enum End {
    /// Others have taken over.
    Farewell,
    /// They have not, and there is no more time.
    Impatient,
    /// The coordinator does not want this worker.
    Turned { reason: String, may_retry: bool },
    /// The coordinator is gone, or talks nonsense.
    Broken { reason: String },
    /// The rank is gone.
    Stopped,
}

impl End {
    fn broken(reason: impl Into<String>) -> Self {
        Self::Broken { reason: reason.into() }
    }
}

/// A step's answer, with the step that it answers.
type Answer = (Epoch, u64, Result<(StepOutput, StepReport), RankError>);

/// A worker that the coordinator knows.
struct Stay<'a> {
    worker: &'a Worker,
    said: mpsc::Sender<FromWorker>,
    told: Streaming<chorale_wire::cluster::v1::CoordinatorMessage>,
    place: Option<Place>,
    /// In the order of the steps.
    answers: FuturesOrdered<BoxFuture<'static, Answer>>,
    heard: Instant,
    loads: Interval,
    doing: watch::Sender<Doing>,
}

impl Worker {
    /// Dials, and stays until the call ends.
    pub(super) async fn stay(&self, leaving: &CancellationToken, backoff: &mut Backoff) -> End {
        let Some(dialled) = leaving.run_until_cancelled(self.dial()).await else { return End::Impatient };
        let Call { said, mut told } = match dialled {
            Ok(call) => call,
            Err(reason) => return End::Broken { reason },
        };
        let pulse = match timeout(self.config.patience.dial, welcome(&mut told)).await {
            Ok(Ok(pulse)) => pulse,
            Ok(Err(end)) => return end,
            Err(_) => return End::broken("it did not answer the offer"),
        };
        backoff.reset();
        tracing::info!(coordinator = self.config.coordinator, address = %self.address(), "joined");
        // A task of its own: it beats whatever happens here.
        let pulses = beat(self.rank.clone(), Arc::clone(&self.speed), pulse, said.clone());
        let _pulses = AbortOnDropHandle::new(tokio::spawn(pulses));
        let (doing, watched) = watch::channel(Doing::Waiting);
        let (speed, patience) = (Arc::clone(&self.speed), self.config.patience);
        let measuring = async move { speed.watch(watched, patience).await };
        let _measuring = AbortOnDropHandle::new(tokio::spawn(measuring));
        let mut loads = interval(self.config.patience.loads);
        loads.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let heard = Instant::now();
        let answers = FuturesOrdered::new();
        let stay = Stay { worker: self, said, told, place: None, answers, heard, loads, doing };
        stay.run(leaving).await
    }
}

/// The interval of pulses, or why there is none.
async fn welcome(
    told: &mut Streaming<chorale_wire::cluster::v1::CoordinatorMessage>,
) -> Result<Duration, End> {
    match next(told).await? {
        ToWorker::Welcome { pulse_ms } => Ok(Duration::from_millis(pulse_ms.into())),
        ToWorker::Turned { reason, may_retry } => Err(End::Turned { reason, may_retry }),
        _ => Err(End::broken("it gave no welcome")),
    }
}

async fn next(told: &mut Streaming<chorale_wire::cluster::v1::CoordinatorMessage>) -> Result<ToWorker, End> {
    match told.message().await {
        Ok(Some(message)) => ToWorker::try_from(message).map_err(|error| End::broken(error.to_string())),
        Ok(None) => Err(End::broken("it ended the call")),
        Err(status) => Err(End::broken(said_by(&status))),
    }
}

/// Pulses until it is dropped or nobody listens.
async fn beat(rank: Rank, speed: Arc<Speed>, pulse: Duration, said: mpsc::Sender<FromWorker>) {
    let mut ticks = interval(pulse);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // Where there is no room, other signs of life are under way.
        let pulse = Pulse { memory_bytes_per_s: speed.measured(), ..rank.pulse() };
        if let Err(mpsc::error::TrySendError::Closed(_)) = said.try_send(FromWorker::Pulse(pulse)) {
            return;
        }
    }
}

impl Stay<'_> {
    async fn run(mut self, leaving: &CancellationToken) -> End {
        let patience = self.worker.config.patience;
        let mut leaves_at: Option<Instant> = None;
        let mut ends_at: Option<Instant> = None;
        let mut ended = std::pin::pin!(self.worker.rank.ended());
        loop {
            let done = tokio::select! {
                message = next(&mut self.told) => match message {
                    Ok(message) => self.hear(message),
                    Err(end) => Err(end),
                },
                Some(answer) = self.answers.next() => self.answer(answer),
                message = said_by_place(&mut self.place) => {
                    if matches!(message, FromWorker::Ready { .. }) {
                        self.rest();
                    }
                    self.say(message)
                }
                _ = self.loads.tick() => self.say_loads(),
                () = sleep_until(self.heard + patience.silence) => {
                    Err(End::broken(format!("it was silent for {:?}", patience.silence)))
                }
                () = leaving.cancelled(), if leaves_at.is_none() => {
                    tracing::info!("leaving when others have taken over");
                    leaves_at = Some(Instant::now() + patience.leave);
                    self.say(FromWorker::Leaving)
                }
                () = until(leaves_at) => Err(End::Impatient),
                () = &mut ended, if ends_at.is_none() => {
                    // What it said last is heard first.
                    ends_at = Some(Instant::now() + LAST_WORDS);
                    Ok(())
                }
                () = until(ends_at) => Err(End::Stopped),
            };
            if let Err(end) = done {
                return end;
            }
        }
    }

    fn hear(&mut self, message: ToWorker) -> Result<(), End> {
        self.heard = Instant::now();
        match message {
            ToWorker::Turned { reason, may_retry } => return Err(End::Turned { reason, may_retry }),
            ToWorker::Farewell => return Err(End::Farewell),
            ToWorker::Assigned(assignment) => {
                let (epoch, rank) = (assignment.epoch.0, assignment.rank.0);
                tracing::info!(epoch, rank, num_ranks = assignment.shape.num_ranks, "took a place");
                self.doing.send_replace(Doing::Working);
                // The older epoch ends before the rank is told to go on.
                self.place = None;
                self.place = Some(Place::take(self.worker, *assignment, self.said.clone()));
            }
            ToWorker::Dismissed { epoch } => {
                if self.place.take_if(|place| place.epoch <= epoch).is_some() {
                    tracing::info!(epoch = epoch.0, "lost its place");
                    self.doing.send_replace(Doing::Waiting);
                    drop(self.worker.rank.leave());
                }
            }
            ToWorker::Prepare { epoch, placement } => {
                if let Some(place) = self.place.as_mut().filter(|place| place.epoch == epoch) {
                    place.prepare(&self.worker.rank, placement);
                }
            }
            ToWorker::Step { epoch, placement, plan } => return self.step(epoch, placement, plan),
            ToWorker::Welcome { .. } | ToWorker::Pulse => {}
        }
        Ok(())
    }

    /// Hands a plan in at once; its answer comes when it may.
    fn step(&mut self, epoch: Epoch, placement: u32, plan: StepPlan) -> Result<(), End> {
        let step = plan.step;
        if self.place.as_ref().is_none_or(|place| place.epoch != epoch) {
            let reason = format!("this worker has no place in epoch {}", epoch.0);
            return self.say(FromWorker::Refused { epoch, step, reason });
        }
        if self.answers.len() >= MAX_STEPS {
            return Err(End::broken(format!("{MAX_STEPS} steps came before the first was done")));
        }
        self.doing.send_replace(Doing::Working);
        let answer = self.worker.rank.step(placement, plan);
        self.answers.push_back(Box::pin(async move { (epoch, step, answer.await) }));
        Ok(())
    }

    /// There is nothing to do, unless there is.
    fn rest(&self) {
        if self.answers.is_empty() && self.place.is_some() {
            self.doing.send_replace(Doing::Idle(Instant::now()));
        }
    }

    fn answer(&mut self, (epoch, step, answer): Answer) -> Result<(), End> {
        self.rest();
        self.say(match answer {
            Ok((output, report)) => FromWorker::Done { epoch, output, report },
            Err(RankError::Refused { reason }) => FromWorker::Refused { epoch, step, reason },
            Err(RankError::Lost { reason, blamed }) => FromWorker::Lost { epoch, step, blamed, reason },
            Err(RankError::Carrier { reason }) => {
                FromWorker::CarrierFailed { epoch, step: Some(step), reason }
            }
            Err(RankError::Load { reason }) => FromWorker::Lost { epoch, step, blamed: None, reason },
            Err(RankError::Stopped) => {
                let reason = "its rank has stopped".to_owned();
                FromWorker::Lost { epoch, step, blamed: None, reason }
            }
        })
    }

    fn say_loads(&mut self) -> Result<(), End> {
        let Some(place) = &self.place else { return Ok(()) };
        let Some((rows, one_shot)) = self.worker.rank.loads() else { return Ok(()) };
        let experts = self.worker.config.residency.as_ref().and_then(Reading::read);
        self.say(FromWorker::Loads { epoch: place.epoch, rows, standing: Standing { experts, one_shot } })
    }

    /// Never waits: where there is no room for it, nobody has listened for long.
    fn say(&mut self, message: FromWorker) -> Result<(), End> {
        self.said.try_send(message).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => End::broken("it takes nothing any more"),
            mpsc::error::TrySendError::Closed(_) => End::broken("the call ended"),
        })
    }
}

async fn said_by_place(place: &mut Option<Place>) -> FromWorker {
    match place {
        Some(place) => place.next().await,
        None => std::future::pending().await,
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
