//! The rank's thread: what it holds between jobs, and what each job does.

use crate::finish::{Ended, Finisher};
use crate::place::{self, Placed};
use crate::pulse::Watch;
use crate::rank::RankError;
use chorale_device::Device;
use chorale_link::{Joining, Loads, Transport};
use chorale_model::checkpoint::Checkpoint;
use chorale_model::{LoadProgress, Weights};
use chorale_plan::{Assignment, OneShot, Placement, StepOutput, StepPlan, StepReport};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Instant;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// What the thread and its handles share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) watch: Arc<Watch>,
    /// Plans that wait.
    pub(crate) num_plans: AtomicU64,
    /// Places that were taken or left: a `take` of a lower number is out of date.
    pub(crate) places: AtomicU64,
    /// Cancelled when the thread has ended.
    pub(crate) ended: CancellationToken,
    /// What is told of the place that was taken.
    pub(crate) placed: Mutex<Option<(Arc<Loads>, OneShot)>>,
}

impl Shared {
    pub(crate) fn set_placed(&self, placed: Option<(Arc<Loads>, OneShot)>) {
        *self.placed.lock().unwrap_or_else(PoisonError::into_inner) = placed;
    }
}

/// One plan that waits. Dropping it makes room for the next.
pub(crate) struct Ticket(Arc<Shared>);

impl Ticket {
    /// `None` if `limit` plans wait.
    pub(crate) fn take(shared: &Arc<Shared>, limit: u64) -> Option<Self> {
        let ticket = Self(Arc::clone(shared));
        (shared.num_plans.fetch_add(1, Ordering::Relaxed) < limit).then_some(ticket)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.num_plans.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Where an answer goes. Whoever asked may have left; nobody minds.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, RankError>>;

/// What a rank is told to do.
pub(crate) enum Job {
    Take(Box<Taking>),
    Prepare {
        placement: Placement,
        reply: Reply<()>,
    },
    Step {
        placement: u32,
        plan: StepPlan,
        arrived: Instant,
        ticket: Ticket,
        reply: Reply<(StepOutput, StepReport)>,
    },
    Leave {
        reply: Reply<()>,
    },
}

/// A place that is to be taken.
pub(crate) struct Taking {
    pub(crate) place: u64,
    pub(crate) assignment: Assignment,
    pub(crate) checkpoint: Arc<Checkpoint>,
    pub(crate) transport: Box<dyn Transport>,
    pub(crate) on_progress: Box<dyn FnMut(LoadProgress) + Send>,
    pub(crate) reply: Reply<()>,
}

/// What the device is used for.
pub(crate) enum State<D: Device> {
    /// Nothing; weights of an older place may still be there.
    Idle(Weights<D>, D),
    Placed(Box<Placed<D>>),
}

/// Does jobs until nobody can hand in any more.
pub(crate) fn run<D: Device + 'static>(
    device: D,
    mut joining: Box<dyn Joining<D>>,
    shared: &Arc<Shared>,
    inbox: &mpsc::Receiver<Job>,
) {
    let _ending = Ending(shared);
    let mut finisher = Finisher::new(Arc::clone(&shared.watch));
    let mut state = State::Idle(Weights::default(), device);
    loop {
        let is_preparing = matches!(&state, State::Placed(placed) if placed.is_preparing());
        let job = match is_preparing {
            // A job goes first, then a layer is loaded; without one, the next layer.
            true => match inbox.try_recv() {
                Ok(job) => Some(job),
                Err(mpsc::TryRecvError::Empty) => None,
                Err(mpsc::TryRecvError::Disconnected) => return,
            },
            false => match inbox.recv() {
                Ok(job) => Some(job),
                Err(mpsc::RecvError) => return,
            },
        };
        if let Some(job) = job {
            state = run_job(state, job, shared, (&mut finisher, &mut *joining));
        }
        if let State::Placed(placed) = &mut state {
            placed.prepare_layer();
        }
        let is_lost = match &mut state {
            State::Idle(_, device) => device.is_lost(),
            State::Placed(placed) => placed.is_lost(),
        };
        if is_lost {
            tracing::error!("the device is lost, and with it this rank: only a new process mends that");
            return;
        }
    }
}

fn run_job<D: Device + 'static>(
    mut state: State<D>,
    job: Job,
    shared: &Arc<Shared>,
    (finisher, joining): (&mut Finisher<D>, &mut dyn Joining<D>),
) -> State<D> {
    match job {
        Job::Take(taking) => {
            finisher.drain();
            let (weights, device) = vacate(state, shared);
            place::take(weights, device, *taking, shared, joining)
        }
        Job::Leave { reply } => {
            finisher.drain();
            let (weights, device) = vacate(state, shared);
            let _ = reply.send(Ok(()));
            State::Idle(weights, device)
        }
        Job::Prepare { placement, reply } => {
            match &mut state {
                State::Placed(placed) => placed.prepare(placement, reply),
                State::Idle(..) => {
                    let _ = reply.send(Err(no_place()));
                }
            }
            state
        }
        Job::Step { placement, plan, arrived, ticket, reply } => {
            drop(ticket);
            let State::Placed(placed) = &mut state else {
                let _ = reply.send(Err(no_place()));
                return state;
            };
            shared.watch.begin(plan.step);
            match placed.submit(placement, &plan) {
                Ok(running) => {
                    shared.watch.come_further();
                    let waited = placed.take_waited();
                    finisher.take(running, Ended { step: plan.step, arrived, waited, reply });
                }
                Err(error) => {
                    // Answers come in the order of the steps.
                    finisher.drain();
                    shared.watch.end_of(plan.step);
                    let _ = reply.send(Err(error));
                }
            }
            state
        }
    }
}

/// Gives the place up: connections and room go, weights and device stay.
fn vacate<D: Device>(state: State<D>, shared: &Shared) -> (Weights<D>, D) {
    shared.set_placed(None);
    match state {
        State::Idle(weights, device) => (weights, device),
        State::Placed(placed) => placed.give_up(),
    }
}

fn no_place() -> RankError {
    RankError::Refused { reason: "the rank has no place".to_owned() }
}

/// However the thread ends, nobody shall think that it computes.
struct Ending<'a>(&'a Shared);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.watch.end();
        self.0.set_placed(None);
        self.0.ended.cancel();
    }
}
