//! Runs a [`Membership`]: one task owns it, hears all connections, keeps the
//! time, and sends steps out.

use super::config::{ClusterConfig, ClusterConfigError};
use super::executor::{ClusterExecutor, Request};
use super::member::MemberId;
use super::membership::{Action, Event, Membership, World};
use super::status::ClusterStatus;
use crate::executor::StepError;
use chorale_plan::{FromWorker, StepJoin, StepOutput, StepPlan, ToWorker, WrongAnswer};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::{Instant, MissedTickBehavior};

/// How often the time is looked at.
const TICK: Duration = Duration::from_millis(50);

/// What workers say and is not heard yet.
const MAX_UNHEARD: usize = 1024;

/// Streams that begin and are not known yet.
const MAX_UNKNOWN: usize = 64;

/// One worker's stream, as whoever accepted it hands it over.
#[derive(Debug)]
pub struct Connection {
    /// What the worker says; its end is the stream's.
    pub from: mpsc::Receiver<FromWorker>,
    /// What the worker is told. One that takes nothing until this is full is lost.
    /// The stream ends when the cluster lets go of it and all was sent.
    pub to: mpsc::Sender<ToWorker>,
    /// Where it comes from, for people.
    pub peer: String,
}

/// A handle on the cluster; clones are the same cluster.
#[derive(Clone, Debug)]
pub struct Cluster {
    connections: mpsc::Sender<Connection>,
    status: watch::Receiver<Arc<ClusterStatus>>,
}

impl Cluster {
    /// Starts the task that owns the membership, on the current runtime. It ends
    /// when the executor is dropped: every stream then ends, too.
    pub fn start(
        config: ClusterConfig,
    ) -> Result<(Self, ClusterExecutor, JoinHandle<()>), ClusterConfigError> {
        let overlap_min_rows = config.exchange.overlap_min_rows;
        let membership = Membership::new(config)?;
        let (connections, unknown) = mpsc::channel(MAX_UNKNOWN);
        let (events, unheard) = mpsc::channel(MAX_UNHEARD);
        let (requests, wanted) = mpsc::channel(1);
        let (publish, status) = watch::channel(Arc::new(membership.status()));
        let (tell_world, world) = watch::channel(None);
        let driver = Driver {
            membership,
            overlap_min_rows,
            started: Instant::now(),
            events,
            streams: BTreeMap::new(),
            num_streams: 0,
            running: None,
            world: None,
            publish,
            tell_world,
        };
        let running = tokio::spawn(driver.run(unknown, unheard, wanted));
        let executor = ClusterExecutor { requests, world, epoch: None, max_sequence_tokens: None };
        Ok((Self { connections, status }, executor, running))
    }

    /// Hands a worker's stream over. False, and the stream ends, if the cluster
    /// has ended.
    pub async fn connect(&self, connection: Connection) -> bool {
        self.connections.send(connection).await.is_ok()
    }

    /// The cluster as it was when something last changed.
    pub fn status(&self) -> Arc<ClusterStatus> {
        self.status.borrow().clone()
    }

    /// Follows the cluster.
    pub fn watch(&self) -> watch::Receiver<Arc<ClusterStatus>> {
        self.status.clone()
    }
}

/// A worker's stream. Its end of `to` goes with it.
struct Stream {
    to: mpsc::Sender<ToWorker>,
    peer: String,
    listening: AbortHandle,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// What a stream's listener passes on; `None` is the stream's end.
type Heard = (MemberId, Option<FromWorker>);

/// A step that ranks compute.
struct Running {
    join: StepJoin,
    reply: oneshot::Sender<Result<StepOutput, StepError>>,
}

/// What the one task owns.
struct Driver {
    membership: Membership,
    /// Steps with so many rows of a group are computed in halves.
    overlap_min_rows: Option<u32>,
    started: Instant,
    events: mpsc::Sender<Heard>,
    streams: BTreeMap<MemberId, Stream>,
    num_streams: u64,
    running: Option<Running>,
    world: Option<Arc<World>>,
    publish: watch::Sender<Arc<ClusterStatus>>,
    tell_world: watch::Sender<Option<Arc<World>>>,
}

impl Driver {
    async fn run(
        mut self,
        mut unknown: mpsc::Receiver<Connection>,
        mut unheard: mpsc::Receiver<Heard>,
        mut wanted: mpsc::Receiver<Request>,
    ) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(connection) = unknown.recv() => self.connect(connection),
                Some((member, message)) = unheard.recv() => self.hear(member, message),
                request = wanted.recv() => match request {
                    Some(request) => self.begin(request),
                    None => return,
                },
                _ = ticks.tick() => {
                    let actions = self.membership.tick(self.now_ms());
                    self.act(actions);
                    self.publish.send_replace(Arc::new(self.membership.status()));
                }
            }
        }
    }

    fn connect(&mut self, connection: Connection) {
        let member = MemberId(self.num_streams);
        self.num_streams += 1;
        let Connection { mut from, to, peer } = connection;
        let events = self.events.clone();
        let listening = tokio::spawn(async move {
            loop {
                let message = from.recv().await;
                let is_over = message.is_none();
                if events.send((member, message)).await.is_err() || is_over {
                    return;
                }
            }
        });
        self.streams.insert(member, Stream { to, peer, listening: listening.abort_handle() });
        self.apply(Event::Connected { member });
    }

    fn hear(&mut self, member: MemberId, message: Option<FromWorker>) {
        let Some(message) = message else {
            let stream = self.streams.remove(&member);
            let reason = match &stream {
                Some(stream) => format!("its stream from {} ended", stream.peer),
                None => "its stream ended".to_owned(),
            };
            self.apply(Event::Broke { member, reason });
            return;
        };
        let done = match &message {
            FromWorker::Done { epoch, output, .. } => Some((*epoch, output.clone())),
            _ => None,
        };
        self.apply(Event::Said { member, message });
        if let Some((epoch, output)) = done {
            self.finish(member, epoch, output);
        }
    }

    /// A rank says that it is done with a step.
    fn finish(&mut self, member: MemberId, epoch: chorale_plan::Epoch, output: StepOutput) {
        let Some(world) = self.world.clone().filter(|world| world.epoch == epoch) else { return };
        let Some(running) = &mut self.running else { return };
        let rank = world.members.iter().zip(world.shape.ranks()).find(|(id, _)| **id == member);
        let Some((_, rank)) = rank else { return };
        // A step from before is late, and nobody waits for it.
        if output.step < running.join.step() {
            return;
        }
        match running.join.done(rank, output) {
            Ok(None) => {}
            Ok(Some(output)) => {
                // First: what waited for the step's end happens now.
                let running = self.running.take();
                self.apply(Event::StepEnded);
                if let Some(running) = running {
                    // An engine that is gone wants nothing.
                    let _ = running.reply.send(Ok(output));
                }
            }
            // Not always the one that spoke last.
            Err(WrongAnswer { rank, reason }) => {
                if let Some(&member) = world.members.get(rank.0 as usize) {
                    self.apply(Event::Wrong { member, reason });
                }
            }
        }
    }

    /// The engine wants a step.
    fn begin(&mut self, request: Request) {
        let Request { epoch, plan, reply } = request;
        let Some(world) = self.world.clone().filter(|world| world.epoch == epoch) else {
            let reason = format!("epoch {} is over", epoch.0);
            let _ = reply.send(Err(StepError::Moved { reason }));
            return;
        };
        let Some(join) = StepJoin::new(world.shape, &plan) else {
            let reason = "the plan is for other homes".to_owned();
            let _ = reply.send(Err(StepError::Lost { reason }));
            return;
        };
        self.running = Some(Running { join, reply });
        self.apply(Event::StepBegan { step: plan.step });
        let messages = self.messages(&world, &plan);
        for (member, message) in messages {
            if self.running.is_none() {
                return;
            }
            self.tell(member, message);
        }
    }

    /// The plan for each rank: the slices of its own group.
    fn messages(&self, world: &World, plan: &StepPlan) -> Vec<(MemberId, ToWorker)> {
        let ranks = world.members.iter().zip(world.shape.ranks());
        let in_halves = plan.pays_in_halves(world.shape, self.overlap_min_rows);
        let message = |(&member, rank)| {
            let plan = StepPlan { in_halves, ..plan.part_of(world.shape, rank) };
            (member, ToWorker::Step { epoch: world.epoch, placement: world.placement, plan })
        };
        ranks.map(message).collect()
    }

    fn apply(&mut self, event: Event) {
        let actions = self.membership.apply(self.now_ms(), event);
        self.act(actions);
    }

    fn act(&mut self, actions: Vec<Action>) {
        let mut actions = VecDeque::from(actions);
        let mut is_changed = false;
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Tell(member, message) => {
                    if let Err(reason) = self.send(member, message) {
                        let event = Event::Broke { member, reason };
                        actions.extend(self.membership.apply(self.now_ms(), event));
                    }
                }
                Action::Close(member) => drop(self.streams.remove(&member)),
                Action::Serve(world) => {
                    tracing::info!(
                        epoch = world.epoch.0,
                        tensor_parallel_size = world.shape.tensor_parallel_size,
                        data_parallel_size = world.shape.data_parallel_size,
                        num_ranks = world.shape.num_ranks,
                        "steps can run"
                    );
                    self.serve(Some(world));
                    is_changed = true;
                }
                Action::Place { epoch, version } => {
                    if let Some(world) = self.world.clone().filter(|world| world.epoch == epoch) {
                        self.serve(Some(World { placement: version, ..World::clone(&world) }));
                    }
                }
                Action::Suspend { reason } => {
                    tracing::warn!(reason, "no step can run");
                    self.serve(None);
                    is_changed = true;
                    if let Some(running) = self.running.take() {
                        let _ = running.reply.send(Err(StepError::Lost { reason }));
                    }
                }
            }
        }
        if is_changed {
            self.publish.send_replace(Arc::new(self.membership.status()));
        }
    }

    fn serve(&mut self, world: Option<World>) {
        self.world = world.map(Arc::new);
        self.tell_world.send_replace(self.world.clone());
    }

    fn tell(&mut self, member: MemberId, message: ToWorker) {
        if let Err(reason) = self.send(member, message) {
            self.apply(Event::Broke { member, reason });
        }
    }

    /// Never waits. What cannot be told now ends the stream.
    fn send(&mut self, member: MemberId, message: ToWorker) -> Result<(), String> {
        // One that is gone was told so, or has broken, before.
        let Some(stream) = self.streams.get(&member) else { return Ok(()) };
        let reason = match stream.to.try_send(message) {
            Ok(()) => return Ok(()),
            Err(mpsc::error::TrySendError::Full(_)) => "it takes nothing any more",
            Err(mpsc::error::TrySendError::Closed(_)) => "its stream broke",
        };
        self.streams.remove(&member);
        Err(reason.to_owned())
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}
