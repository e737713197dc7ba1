//! The state machine: what workers say goes in, what they are told comes out.

mod balance;
mod epoch;
mod inquest;
mod offers;
mod snapshot;

use super::carrier::Failures;
use super::config::{ClusterConfig, ClusterConfigError};
use super::draft::{Draft, Lack};
use super::member::{Member, MemberId, Records};
use super::status::{ExpertLoads, FaultStatus};
use balance::Balance;
use chorale_plan::{Carrier, Epoch, FromWorker, Placement, Rank, Shape, ToWorker};
use chorale_scheduler::HomeConfig;
use inquest::Inquest;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A worker's stream began.
    Connected {
        /// Its number, which no stream before had.
        member: MemberId,
    },
    /// A worker said something.
    Said {
        /// Who.
        member: MemberId,
        /// What.
        message: FromWorker,
    },
    /// A worker's stream ended, or takes nothing any more.
    Broke {
        /// Whose.
        member: MemberId,
        /// What is known of the reason.
        reason: String,
    },
    /// A step was sent to all ranks.
    StepBegan {
        /// Its number.
        step: u64,
    },
    /// All ranks are done with it.
    StepEnded,
    /// A rank's answer cannot be right.
    Wrong {
        /// Whose.
        member: MemberId,
        /// What is wrong with it.
        reason: String,
    },
}

/// Something to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// A worker is told something.
    Tell(MemberId, ToWorker),
    /// A worker's stream ends, once it has been told what it was.
    Close(MemberId),
    /// Steps can run in this world.
    Serve(World),
    /// From the next step on another placement is in use.
    Place {
        /// In which world.
        epoch: Epoch,
        /// Its version.
        version: u32,
    },
    /// The world is over: a step that is running is void, and no other begins.
    Suspend {
        /// Why.
        reason: String,
    },
}

/// Ranks that compute together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct World {
    /// The membership.
    pub epoch: Epoch,
    /// How the ranks are grouped.
    pub shape: Shape,
    /// Who has which rank.
    pub members: Vec<MemberId>,
    /// Where sequences can live.
    pub homes: Vec<HomeConfig>,
    /// The longest sequence that each of them has room for; the same in all worlds.
    pub max_sequence_tokens: u32,
    /// The version of the placement that steps name.
    pub placement: u32,
}

/// The membership that there is.
#[derive(Clone, Debug)]
struct Present {
    epoch: Epoch,
    draft: Draft,
    placement: Placement,
    /// A placement that ranks load, and those that have.
    pending: Option<Pending>,
    /// The latest version that was told.
    version: u32,
    carrier: Carrier,
    /// Since when it serves.
    served_ms: Option<u64>,
    reason: String,
    phase: Phase,
}

#[derive(Clone, Debug)]
struct Pending {
    placement: Placement,
    prepared: BTreeSet<Rank>,
    since_ms: u64,
}

#[derive(Clone, Debug)]
enum Phase {
    Forming,
    Serving,
    Inquest(Inquest),
}

/// A step that ranks compute.
#[derive(Clone, Debug)]
struct Running {
    step: u64,
    began_ms: u64,
    /// Ranks that are not done.
    left: BTreeSet<Rank>,
}

/// The last faults that are shown.
const MAX_FAULTS: usize = 64;

/// Who the ranks are.
#[derive(Clone, Debug)]
pub struct Membership {
    config: ClusterConfig,
    now_ms: u64,
    members: BTreeMap<MemberId, Member>,
    records: Records,
    /// What sessions that are gone had loaded.
    past: VecDeque<offers::Past>,
    checkpoint: Option<String>,
    present: Option<Present>,
    running: Option<Running>,
    lack: Lack,
    /// The last epoch there was.
    epoch: Epoch,
    /// Members of a world that is over, not placed yet.
    released: BTreeSet<MemberId>,
    /// Why the next world is formed.
    reason: String,
    /// Since when no step can run.
    since_ms: u64,
    /// When the first worker came.
    first_ms: Option<u64>,
    has_served: bool,
    next_pulse_ms: u64,
    balance: Balance,
    /// How often NCCL has failed.
    carrier_failures: Failures,
    /// What came to experts in this epoch.
    experts: Arc<ExpertLoads>,
    faults: VecDeque<FaultStatus>,
    num_faults: u64,
    num_epochs: u64,
    num_recoveries: u64,
    last_pause_ms: u64,
    total_pause_ms: u64,
    actions: Vec<Action>,
}

impl Membership {
    /// Nobody is there.
    pub fn new(config: ClusterConfig) -> Result<Self, ClusterConfigError> {
        config.check()?;
        Ok(Self {
            epoch: Epoch(config.first_epoch.0.saturating_sub(1)),
            checkpoint: config.model.checkpoint.clone(),
            config,
            now_ms: 0,
            members: BTreeMap::new(),
            records: Records::default(),
            past: VecDeque::new(),
            present: None,
            running: None,
            lack: Lack { reason: "no worker is here".to_owned(), num_workers: 1, bytes: 0 },
            released: BTreeSet::new(),
            reason: "the cluster starts".to_owned(),
            since_ms: 0,
            first_ms: None,
            has_served: false,
            next_pulse_ms: 0,
            balance: Balance::default(),
            carrier_failures: Failures::default(),
            experts: Arc::default(),
            faults: VecDeque::new(),
            num_faults: 0,
            num_epochs: 0,
            num_recoveries: 0,
            last_pause_ms: 0,
            total_pause_ms: 0,
            actions: Vec::new(),
        })
    }

    /// Takes in what happened, and says what is to be done.
    pub fn apply(&mut self, now_ms: u64, event: Event) -> Vec<Action> {
        self.now_ms = self.now_ms.max(now_ms);
        match event {
            Event::Connected { member } => self.connect(member),
            Event::Said { member, message } => self.hear(member, message),
            Event::Broke { member, reason } => self.leave(member, &reason),
            Event::StepBegan { step } => self.begin_step(step),
            Event::StepEnded => self.running = None,
            Event::Wrong { member, reason } => self.blame(&[member], &reason),
        }
        self.advance();
        std::mem::take(&mut self.actions)
    }

    /// Lets time pass, and says what is to be done.
    pub fn tick(&mut self, now_ms: u64) -> Vec<Action> {
        self.now_ms = self.now_ms.max(now_ms);
        if self.now_ms >= self.next_pulse_ms {
            self.next_pulse_ms = self.now_ms + u64::from(self.config.timeouts.pulse_ms);
            let known = self.members.values().filter(|member| member.offer.is_some());
            self.actions.extend(known.map(|member| Action::Tell(member.id, ToWorker::Pulse)));
        }
        self.check_silence();
        self.advance();
        std::mem::take(&mut self.actions)
    }

    /// The placement that steps name now.
    pub fn placement(&self) -> Option<&Placement> {
        self.present.as_ref().map(|present| &present.placement)
    }

    /// Everything that follows from the state and the time.
    fn advance(&mut self) {
        self.check_forming();
        self.check_running();
        self.check_inquest();
        self.check_placement();
        self.check_improvement();
        self.form();
        self.dismiss();
    }

    fn begin_step(&mut self, step: u64) {
        let Some(present) = &self.present else { return };
        let left = present.draft.shape.ranks().collect();
        self.running = Some(Running { step, began_ms: self.now_ms, left });
    }

    fn hear(&mut self, id: MemberId, message: FromWorker) {
        let now_ms = self.now_ms;
        let Some(member) = self.members.get_mut(&id) else { return };
        member.heard_ms = now_ms;
        if member.is_dismissed_for_good {
            return;
        }
        match (message, member.offer.is_some()) {
            (FromWorker::Offer(offer), false) => self.offer(id, offer),
            (FromWorker::Offer(_), true) => self.turn_away(id, "it said twice who it is", false),
            (_, false) => self.turn_away(id, "it did not say who it is first", false),
            (FromWorker::Pulse(pulse), true) => {
                member.pulse = pulse;
                if let Some(bytes_per_s) = pulse.memory_bytes_per_s {
                    self.measured(id, bytes_per_s);
                }
            }
            (FromWorker::Leaving, true) => member.is_leaving = true,
            (message, true) => {
                if let Some(rank) = member.rank {
                    self.hear_rank(id, rank, message);
                }
            }
        }
    }

    /// What a rank says of its epoch, if that is the present one.
    fn hear_rank(&mut self, id: MemberId, rank: Rank, message: FromWorker) {
        let now_ms = self.now_ms;
        let Some(present) = &self.present else { return };
        let Some(member) = self.members.get_mut(&id) else { return };
        let is_now = |epoch: Epoch| epoch == present.epoch;
        let is_step = |step: u64| self.running.as_ref().is_some_and(|running| running.step == step);
        match message {
            FromWorker::Loading { epoch, bytes, total_bytes, .. } if is_now(epoch) => {
                let loading = &mut member.loading;
                if bytes > loading.bytes || loading.total_bytes == 0 {
                    loading.moved_ms = now_ms;
                }
                (loading.bytes, loading.total_bytes) = (bytes.max(loading.bytes), total_bytes);
            }
            FromWorker::Ready { epoch } if is_now(epoch) => {
                member.loading.is_ready = true;
                member.loading.moved_ms = now_ms;
                self.serve();
            }
            FromWorker::Unable { epoch, blamed, reason } if is_now(epoch) => {
                self.witness(rank, blamed, &reason);
            }
            FromWorker::Prepared { epoch, version } if is_now(epoch) => self.prepared(rank, version),
            FromWorker::Unprepared { epoch, version, reason } if is_now(epoch) => {
                self.unprepared(rank, version, &reason);
            }
            FromWorker::Done { epoch, output, report } if is_now(epoch) && is_step(output.step) => {
                member.report = report;
                if let Some(running) = &mut self.running {
                    running.left.remove(&rank);
                }
            }
            FromWorker::Refused { epoch, step, reason } if is_now(epoch) && is_step(step) => {
                self.refuse(rank, &reason);
            }
            // An inquest has ended the step already.
            FromWorker::Lost { epoch, step, blamed, reason }
                if is_now(epoch) && (is_step(step) || matches!(present.phase, Phase::Inquest(_))) =>
            {
                self.witness(rank, blamed, &reason);
            }
            FromWorker::CarrierFailed { epoch, step, reason }
                if is_now(epoch)
                    && (step.is_none_or(is_step) || matches!(present.phase, Phase::Inquest(_))) =>
            {
                self.carrier_failed(rank, &reason);
            }
            FromWorker::Loads { epoch, rows, standing } if is_now(epoch) => {
                member.standing = standing;
                let model = &self.config.model;
                let is_whole = rows.len() == model.num_layers as usize
                    && rows.iter().all(|rows| rows.len() == model.num_experts as usize);
                if is_whole {
                    member.loads = rows;
                    self.sum_up_loads();
                }
            }
            // Of another epoch, or too late.
            _ => {}
        }
    }

    fn tell(&mut self, member: MemberId, message: ToWorker) {
        self.actions.push(Action::Tell(member, message));
    }

    fn timeouts(&self) -> super::config::Timeouts {
        self.config.timeouts
    }
}

#[cfg(test)]
mod tests;
