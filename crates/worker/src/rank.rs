//! The handle on a rank's thread, through which places and plans reach it.

use crate::pulse::Watch;
use crate::runner::{self, Job, Shared, Taking, Ticket};
use chorale_device::Device;
use chorale_link::{Joining, Meshes, Transport};
use chorale_model::LoadProgress;
use chorale_model::checkpoint::Checkpoint;
use chorale_plan::{Assignment, OneShot, Placement, Pulse, StepOutput, StepPlan, StepReport};
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Instant;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// Plans that wait for the rank while one runs.
const MAX_PLANS: u64 = 2;

/// Everything that may wait for the rank's thread, plans and changes of its place.
const MAX_JOBS: usize = 16;

/// Why a rank gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RankError {
    /// The shard could not be loaded, or has no room.
    #[error("{reason}")]
    Load {
        /// Why.
        reason: String,
    },
    /// What was asked breaks the contract, or came too late; nothing was
    /// computed, and the next one may be better.
    #[error("{reason}")]
    Refused {
        /// Why.
        reason: String,
    },
    /// The device or another rank failed: the step is lost, and with it the
    /// rank's place in this epoch.
    #[error("{reason}")]
    Lost {
        /// Why.
        reason: String,
        /// The rank that was waited for, if that is why.
        blamed: Option<chorale_plan::Rank>,
    },
    /// What carries rows between the ranks failed, and with it the rank's place in
    /// this epoch; the ranks are well.
    #[error("{reason}")]
    Carrier {
        /// Why.
        reason: String,
    },
    /// The rank's thread has ended.
    #[error("the rank has stopped")]
    Stopped,
}

/// A thread that owns a device and at most one model; clones are the same.
///
/// All calls hand their job in before they return, so jobs run in the order of
/// the calls; the future waits for the answer and may be dropped. When the last
/// handle goes, the thread ends after what is running.
#[derive(Clone, Debug)]
pub struct Rank {
    jobs: mpsc::SyncSender<Job>,
    shared: Arc<Shared>,
}

impl Rank {
    /// Starts the thread of a rank that has no place yet.
    pub fn start<D: Device + 'static>(device: D) -> std::io::Result<Self> {
        Self::start_with(device, Box::new(Meshes))
    }

    /// As [`Self::start`], with another way to join worlds.
    pub fn start_with<D: Device + 'static>(device: D, joining: Box<dyn Joining<D>>) -> std::io::Result<Self> {
        let (jobs, inbox) = mpsc::sync_channel(MAX_JOBS);
        let shared = Arc::new(Shared {
            watch: Arc::new(Watch::new()),
            num_plans: AtomicU64::new(0),
            places: AtomicU64::new(0),
            ended: CancellationToken::new(),
            placed: Mutex::default(),
        });
        let on_thread = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("rank".to_owned())
            .spawn(move || runner::run(device, joining, &on_thread, &inbox))?;
        Ok(Self { jobs, shared })
    }

    /// Takes a place: loads what the shard asks for and is not held yet, and
    /// makes room. An older place ends, and an older `take` that still loads is
    /// given up. A step that is running ends first: abort its transport.
    ///
    /// `on_progress` is called on the rank's thread.
    pub fn take(
        &self,
        assignment: Assignment,
        checkpoint: Arc<Checkpoint>,
        transport: Box<dyn Transport>,
        on_progress: Box<dyn FnMut(LoadProgress) + Send>,
    ) -> impl Future<Output = Result<(), RankError>> + Send + use<> {
        let place = self.shared.places.fetch_add(1, Ordering::Relaxed) + 1;
        let (reply, answer) = oneshot::channel();
        let taking = Taking { place, assignment, checkpoint, transport, on_progress, reply };
        self.hand_in(Job::Take(Box::new(taking)), answer)
    }

    /// Loads the experts of a placement beside those in use, a layer at a time
    /// between the steps. Steps that name its version then use it. A newer
    /// placement takes the place of one that still loads.
    pub fn prepare(
        &self,
        placement: Placement,
    ) -> impl Future<Output = Result<(), RankError>> + Send + use<> {
        let (reply, answer) = oneshot::channel();
        self.hand_in(Job::Prepare { placement, reply }, answer)
    }

    /// Runs a plan after those that were handed in before, with the placement
    /// that it names: the current one or one that is prepared.
    pub fn step(
        &self,
        placement: u32,
        plan: StepPlan,
    ) -> impl Future<Output = Result<(StepOutput, StepReport), RankError>> + Send + use<> {
        let (reply, answer) = oneshot::channel();
        let waiting = match Ticket::take(&self.shared, MAX_PLANS) {
            Some(ticket) => {
                let job = Job::Step { placement, plan, arrived: Instant::now(), ticket, reply };
                Ok(self.hand_in(job, answer))
            }
            None => Err(RankError::Refused { reason: format!("{MAX_PLANS} plans wait already") }),
        };
        async move { waiting?.await }
    }

    /// Gives its place up and drops the connections; weights are kept for the
    /// next one. A step that is running ends first: abort its transport.
    pub fn leave(&self) -> impl Future<Output = Result<(), RankError>> + Send + use<> {
        self.shared.places.fetch_add(1, Ordering::Relaxed);
        let (reply, answer) = oneshot::channel();
        self.hand_in(Job::Leave { reply }, answer)
    }

    /// Ends when the thread has, of itself or because its device is lost.
    pub fn ended(&self) -> impl Future<Output = ()> + Send + use<> {
        self.shared.ended.clone().cancelled_owned()
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.shared.ended.is_cancelled()
    }

    /// A sign of life, whatever the thread does.
    pub fn pulse(&self) -> Pulse {
        self.shared.watch.pulse()
    }

    /// Rows that came to each expert since the place was taken, by layer and
    /// expert, and which small exchanges take one launch; `None` without a place.
    pub fn loads(&self) -> Option<(Vec<Vec<u64>>, OneShot)> {
        let placed = self.shared.placed.lock().unwrap_or_else(PoisonError::into_inner);
        placed.as_ref().map(|(loads, one_shot)| (loads.rows(), *one_shot))
    }

    fn hand_in<T: Send + 'static>(
        &self,
        job: Job,
        answer: oneshot::Receiver<Result<T, RankError>>,
    ) -> impl Future<Output = Result<T, RankError>> + Send + use<T> {
        let handed_in = self.jobs.try_send(job).map_err(|error| match error {
            mpsc::TrySendError::Full(_) => {
                RankError::Refused { reason: format!("{MAX_JOBS} jobs wait already") }
            }
            mpsc::TrySendError::Disconnected(_) => RankError::Stopped,
        });
        async move {
            handed_in?;
            answer.await.unwrap_or(Err(RankError::Stopped))
        }
    }
}
