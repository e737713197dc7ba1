//! The clock, the wires between the coordinator and its workers, and what each
//! does when a message arrives.

use crate::checks::Checks;
use crate::draw::Draw;
use crate::worker::{Partitions, Worker};
use chorale_coordinator::cluster::{
    Action, BalanceRule, ClusterConfig, ClusterState, Event, MemberId, Membership, ModelFacts, PageBytes,
    RoomRule, RoomRules, SplitFacts, Timeouts,
};
use chorale_plan::{DenseFormat, Epoch, ExchangeOptions, FromWorker, StepPlan, ToWorker};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

/// A rank waits so long for another's frame.
pub(crate) const EXCHANGE_MS: u64 = 2000;
/// Faults happen until then.
pub(crate) const FAULTS_END_MS: u64 = 20_000;
/// By then everything is as it should be.
const HEALED_MS: u64 = FAULTS_END_MS + 30_000;

/// What is going to happen.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Next {
    Tick,
    Fault,
    /// The stream's end is noticed.
    Broke(MemberId),
    /// By its number in `letters`.
    ToCoordinator(MemberId, u64),
    ToWorker(MemberId, u64),
    Pulse(usize, u64),
    Dial(usize, u64),
    Loading(usize, u64, u64),
    /// A worker looks at its step: epoch, step.
    Look(usize, u64, u64),
    Prepared(usize, u64, u32),
    Step,
    Thaw(usize, u64),
    Restart(usize),
    Mend(usize, usize),
}

enum Letter {
    From(FromWorker),
    To(ToWorker),
}

/// What a run was worth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) num_epochs: u64,
    pub(crate) num_steps: u64,
    pub(crate) num_faults: u64,
    pub(crate) num_moves: u64,
}

/// A step as the coordinator's driver follows it.
struct Running {
    step: u64,
    epoch: Epoch,
    left: BTreeSet<MemberId>,
}

pub(crate) struct Simulation {
    pub(crate) draw: Draw,
    pub(crate) now_ms: u64,
    pub(crate) config: ClusterConfig,
    pub(crate) membership: Membership,
    pub(crate) workers: Vec<Worker>,
    pub(crate) partitions: Partitions,
    pub(crate) checks: Checks,
    pub(crate) counts: Counts,
    /// Everything that happened, in a number.
    pub(crate) digest: u64,
    queue: BinaryHeap<Reverse<(u64, u64, Next)>>,
    num_queued: u64,
    letters: BTreeMap<u64, Letter>,
    pub(crate) num_streams: u64,
    num_sessions: u64,
    running: Option<Running>,
    step: u64,
    is_step_due: bool,
    pub(crate) hot_expert: usize,
    is_loud: bool,
}

fn config(draw: &mut Draw) -> ClusterConfig {
    let page = |bytes| PageBytes { f32: bytes, bf16: bytes, fp8: bytes };
    let split =
        |dense_bytes| SplitFacts { dense_bytes, full_page_bytes: page(2), sliding_page_bytes: page(1) };
    ClusterConfig {
        tensor_parallel_size: 1 + draw.below(2) as u32,
        data_parallel_size: 1 + draw.below(2) as u32,
        first_epoch: Epoch(1),
        model: ModelFacts {
            checkpoint: None,
            num_layers: 2,
            num_experts: 6,
            expert_bytes: 10,
            splits: vec![split(100), split(60)],
            experts_only_bytes: 5,
        },
        rooms: RoomRules::same(RoomRule {
            max_sequence_tokens: 32,
            block_size_tokens: 4,
            max_step_tokens: 64,
            max_step_slices: 16,
            num_sliding_blocks: 4,
            min_full_blocks: 8,
            max_full_blocks: 64,
            kv_cache_bytes: None,
            max_bytes_by_default: u64::MAX,
        }),
        dense_dtype: DenseFormat::Bf16,
        kv_dtype: None,
        exchange: ExchangeOptions::exact(EXCHANGE_MS as u32),
        transport: "paper".to_owned(),
        timeouts: Timeouts {
            loading_ms: 4000,
            hang_ms: 3000,
            step_ms: 10_000,
            max_backoff_ms: 6000,
            ..Timeouts::default()
        },
        balance: BalanceRule { interval_ms: 2000, min_rows: 50, ..BalanceRule::default() },
        max_members: 12,
    }
}

/// Some have little memory: without them, or with them alone, nothing fits.
fn some_workers(draw: &mut Draw, num_workers: usize, num_wanted: usize) -> Vec<Worker> {
    let worker = |index| {
        let memory_bytes = if draw.below(100) < 50 { 130 + draw.below(120) } else { 240 + draw.below(400) };
        let experts_only = index >= num_wanted && draw.below(100) < 40;
        Worker::new(index as u64, index, memory_bytes, draw.below(5), experts_only)
    };
    (0..num_workers).map(worker).collect()
}

/// Whether the wanted shape fits when all are there.
fn fits(config: &ClusterConfig, workers: &[Worker], num_wanted: usize) -> bool {
    let split = config.model.splits[config.tensor_parallel_size as usize - 1];
    let attention = split.dense_bytes + 4 * split.sliding_page_bytes.f32 + 8 * split.full_page_bytes.f32;
    // As if all ran attention: then it fits whoever sits where.
    let room = |worker: &Worker| (worker.memory_bytes.saturating_sub(attention) / 20).min(6);
    workers.iter().map(room).sum::<u64>() >= 6
        && workers.iter().all(|worker| worker.experts_only || worker.memory_bytes >= attention)
        && workers.len() >= num_wanted
}

impl Simulation {
    pub(crate) fn new(seed: u64, is_loud: bool) -> Self {
        let mut draw = Draw::new(seed);
        let config = config(&mut draw);
        let num_wanted = (config.tensor_parallel_size * config.data_parallel_size) as usize;
        let num_workers = num_wanted + draw.below(4) as usize;
        let workers = loop {
            let workers = some_workers(&mut draw, num_workers, num_wanted);
            if fits(&config, &workers, num_wanted) {
                break workers;
            }
        };
        let mut simulation = Self {
            now_ms: 0,
            membership: Membership::new(config.clone()).unwrap(),
            config,
            partitions: Partitions::default(),
            checks: Checks::default(),
            counts: Counts::default(),
            digest: 0,
            queue: BinaryHeap::new(),
            num_queued: 0,
            letters: BTreeMap::new(),
            num_streams: 0,
            num_sessions: num_workers as u64,
            running: None,
            step: 0,
            is_step_due: false,
            hot_expert: draw.below(6) as usize,
            is_loud,
            workers,
            draw,
        };
        for index in 0..num_workers {
            let delay = simulation.draw.below(500);
            simulation.dial_in(index, delay);
        }
        simulation.at(0, Next::Tick);
        simulation.at(1000, Next::Fault);
        simulation
    }

    /// Runs to the end, or panics where something is wrong.
    pub(crate) fn run(&mut self) {
        let mut is_healed = false;
        while let Some(Reverse((time_ms, _, next))) = self.queue.pop() {
            self.now_ms = time_ms;
            if !is_healed && time_ms >= FAULTS_END_MS {
                is_healed = true;
                self.heal();
            }
            if time_ms >= HEALED_MS {
                break;
            }
            self.happen(next);
        }
        let status = self.membership.status();
        assert_eq!(status.state, ClusterState::Serving, "it does not serve again: {status:#?}");
        let shape = status.shape.unwrap();
        let wanted = (self.config.tensor_parallel_size, self.config.data_parallel_size);
        assert_eq!((shape.tensor_parallel_size, shape.data_parallel_size), wanted, "{status:#?}");
        assert_eq!(status.members.len(), self.workers.len(), "everyone is back: {status:#?}");
        self.counts.num_epochs += status.num_epochs;
        self.counts.num_faults += status.num_faults;
        self.counts.num_moves += status.num_rebalances;
    }

    pub(crate) fn at(&mut self, delay_ms: u64, next: Next) {
        self.num_queued += 1;
        self.queue.push(Reverse((self.now_ms + delay_ms, self.num_queued, next)));
    }

    #[expect(clippy::print_stdout, reason = "the trace of a run that is looked at")]
    pub(crate) fn say(&mut self, text: impl FnOnce() -> String) {
        if self.is_loud {
            println!("{:>6} {}", self.now_ms, text());
        }
    }

    fn happen(&mut self, next: Next) {
        match next {
            Next::Tick => {
                let actions = self.membership.tick(self.now_ms);
                self.act(actions);
                self.at(50, Next::Tick);
            }
            Next::Fault if self.now_ms < FAULTS_END_MS => {
                self.fault();
                let delay = 200 + self.draw.below(3000);
                self.at(delay, Next::Fault);
            }
            Next::Fault => {}
            Next::Broke(member) => {
                if self.checks.open.remove(&member) {
                    self.tell(Event::Broke { member, reason: "its stream ended".to_owned() });
                }
            }
            Next::ToCoordinator(member, letter) => {
                if let Some(Letter::From(message)) = self.letters.remove(&letter) {
                    self.arrive_at_coordinator(member, message);
                }
            }
            Next::ToWorker(member, letter) => {
                let Some(Letter::To(message)) = self.letters.remove(&letter) else { return };
                let index = self.workers.iter().position(|worker| worker.stream == Some(member));
                if let Some(index) = index.filter(|&index| self.workers[index].answers()) {
                    self.arrive_at_worker(index, message);
                }
            }
            Next::Pulse(index, session) => self.pulse(index, session),
            Next::Dial(index, session) => self.dial(index, session),
            Next::Loading(index, epoch, part) => self.load(index, epoch, part),
            Next::Look(index, epoch, step) => self.look(index, epoch, step),
            Next::Prepared(index, epoch, version) => {
                let worker = &self.workers[index];
                let epoch = Epoch(epoch);
                if worker.epoch() != Some(epoch) || !worker.answers() {
                    return;
                }
                if !worker.is_full {
                    self.send(index, FromWorker::Prepared { epoch, version });
                } else if self.draw.below(2) == 0 {
                    let reason = "no memory".to_owned();
                    self.send(index, FromWorker::Unprepared { epoch, version, reason });
                }
            }
            Next::Step => self.begin_step(),
            Next::Thaw(index, session) => self.thaw(index, session),
            Next::Restart(index) => self.restart(index),
            Next::Mend(a, b) => self.partitions.mend(a, b),
        }
    }

    /// The coordinator's side of an event.
    pub(crate) fn tell(&mut self, event: Event) {
        let actions = self.membership.apply(self.now_ms, event);
        self.act(actions);
    }

    fn act(&mut self, actions: Vec<Action>) {
        let is_pulse = |action: &Action| matches!(action, Action::Tell(_, ToWorker::Pulse));
        // Nothing has changed, and no worker here minds a coordinator's pulse.
        if actions.iter().all(is_pulse) {
            return;
        }
        for action in actions {
            if !matches!(action, Action::Tell(_, ToWorker::Pulse | ToWorker::Step { .. })) {
                self.say(|| format!("coordinator: {}", brief(&action)));
            }
            self.digest = self.digest.rotate_left(5) ^ self.now_ms ^ (brief(&action).len() as u64);
            let workers = &self.workers;
            let memory = |member| {
                workers.iter().find(|one| one.stream == Some(member)).map_or(u64::MAX, |one| one.memory_bytes)
            };
            self.checks.action(&action, &self.config, memory);
            match action {
                Action::Tell(member, message) => self.deliver(member, message),
                Action::Close(member) => {
                    let delay = 5 + self.draw.below(20);
                    self.hang_up(member, delay);
                }
                Action::Serve(_) => self.want_step(),
                Action::Place { .. } => {}
                Action::Suspend { .. } => self.running = None,
            }
        }
        self.checks.state(&self.membership, &self.config);
    }

    fn deliver(&mut self, member: MemberId, message: ToWorker) {
        if message == ToWorker::Pulse {
            return;
        }
        let letter = self.num_queued;
        self.letters.insert(letter, Letter::To(message));
        self.at(2, Next::ToWorker(member, letter));
    }

    /// The worker learns that its stream is over, and dials again.
    fn hang_up(&mut self, member: MemberId, delay_ms: u64) {
        let Some(index) = self.workers.iter().position(|worker| worker.stream == Some(member)) else {
            return;
        };
        // What was said before still arrives.
        if self.workers[index].answers() {
            self.workers[index].stream = None;
            self.workers[index].work = None;
            self.dial_in(index, delay_ms + 200);
        }
    }

    /// A worker says something; what it says on a broken stream is lost.
    pub(crate) fn send(&mut self, index: usize, message: FromWorker) {
        let Some(member) = self.workers[index].stream else { return };
        let letter = self.num_queued;
        self.letters.insert(letter, Letter::From(message));
        self.at(2, Next::ToCoordinator(member, letter));
    }

    fn arrive_at_coordinator(&mut self, member: MemberId, message: FromWorker) {
        if !self.checks.open.contains(&member) {
            return;
        }
        if !matches!(message, FromWorker::Pulse(_) | FromWorker::Done { .. } | FromWorker::Loads { .. }) {
            self.say(|| format!("worker {}: {message:?}", member.0));
        }
        match &message {
            FromWorker::Ready { epoch } => self.checks.said_ready(member, *epoch),
            FromWorker::Prepared { epoch, version } => self.checks.said_prepared(member, *epoch, *version),
            _ => {}
        }
        let done = match &message {
            FromWorker::Done { epoch, output, .. } => Some((*epoch, output.step)),
            _ => None,
        };
        self.tell(Event::Said { member, message });
        if let Some((epoch, step)) = done
            && let Some(running) = self.running.as_mut().filter(|one| (one.epoch, one.step) == (epoch, step))
        {
            running.left.remove(&member);
            if running.left.is_empty() {
                let serving = self.checks.serving.as_ref().expect("a step ends in a world that serves");
                assert_eq!(serving.epoch, epoch, "no step of an older epoch counts");
                self.running = None;
                self.counts.num_steps += 1;
                self.tell(Event::StepEnded);
                self.want_step();
            }
        }
    }

    /// The engine has a next step, unless it has nothing to do.
    fn want_step(&mut self) {
        if !self.is_step_due {
            self.is_step_due = true;
            let delay =
                5 + if self.draw.below(100) < 5 { self.draw.below(1500) } else { self.draw.below(60) };
            self.at(delay, Next::Step);
        }
    }

    fn begin_step(&mut self) {
        self.is_step_due = false;
        let Some(world) = self.checks.serving.clone().filter(|_| self.running.is_none()) else { return };
        self.step += 1;
        let left = world.members.iter().copied().collect();
        self.running = Some(Running { step: self.step, epoch: world.epoch, left });
        self.tell(Event::StepBegan { step: self.step });
        for member in world.members {
            let plan =
                StepPlan { step: self.step, in_halves: false, home_rows: Vec::new(), slices: Vec::new() };
            let step = ToWorker::Step { epoch: world.epoch, placement: world.placement, plan };
            self.deliver(member, step);
        }
    }

    pub(crate) fn new_session(&mut self) -> u64 {
        self.num_sessions += 1;
        self.num_sessions - 1
    }

    /// All streams end: the coordinator is started anew.
    pub(crate) fn restart_coordinator(&mut self) {
        let status = self.membership.status();
        self.counts.num_epochs += status.num_epochs;
        self.counts.num_faults += status.num_faults;
        self.counts.num_moves += status.num_rebalances;
        self.config.first_epoch = Epoch(self.membership.epoch().0 + 1000);
        self.membership = Membership::new(self.config.clone()).unwrap();
        self.checks.restart();
        self.running = None;
        for index in 0..self.workers.len() {
            if self.workers[index].answers() {
                self.workers[index].stream = None;
                let delay = 100 + self.draw.below(500);
                self.dial_in(index, delay);
            }
        }
    }
}

/// An action without its long lists.
fn brief(action: &Action) -> String {
    match action {
        Action::Tell(member, ToWorker::Assigned(place)) => {
            format!("tell {} rank {} of {:?} in epoch {}", member.0, place.rank.0, place.shape, place.epoch.0)
        }
        Action::Tell(member, ToWorker::Prepare { placement, .. }) => {
            format!("tell {} to prepare {}", member.0, placement.version)
        }
        Action::Tell(member, message) => format!("tell {} {message:?}", member.0),
        Action::Serve(world) => format!("serve epoch {}", world.epoch.0),
        Action::Close(_) | Action::Place { .. } | Action::Suspend { .. } => format!("{action:?}"),
    }
}
