//! A worker as far as membership is concerned: it loads, waits, computes and
//! reports, and does it wrongly when it is told to.

use chorale_coordinator::cluster::MemberId;
use chorale_plan::{Assignment, Epoch, Rank};
use std::collections::BTreeSet;

/// One worker process; a restart makes another of the same machine.
#[derive(Clone, Debug)]
pub(crate) struct Worker {
    pub(crate) session: u64,
    pub(crate) address: String,
    pub(crate) memory_bytes: u64,
    pub(crate) speed: u64,
    pub(crate) experts_only: bool,
    /// The process is there.
    pub(crate) is_alive: bool,
    /// Its stream, if it has one.
    pub(crate) stream: Option<MemberId>,
    /// It says and does nothing, but is there.
    pub(crate) is_frozen: bool,
    /// Its device computes for ever; its pulse goes on.
    pub(crate) is_hung: bool,
    /// It blames whom it likes.
    pub(crate) is_liar: bool,
    /// How many times longer its loading takes.
    pub(crate) slowness: u64,
    pub(crate) is_leaving: bool,
    /// It has no memory for more experts, and does not always say so.
    pub(crate) is_full: bool,
    pub(crate) place: Option<Assignment>,
    pub(crate) is_ready: bool,
    pub(crate) work: Option<Work>,
    /// The last step that it has done in this epoch.
    pub(crate) done: u64,
    /// Rows to each expert of each layer.
    pub(crate) rows: Vec<Vec<u64>>,
    /// It was told that it is of no use.
    pub(crate) was_turned_away: bool,
}

/// A step that it computes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    pub(crate) step: u64,
    pub(crate) began_ms: u64,
    pub(crate) waiting_for: Option<Rank>,
    pub(crate) waits_since_ms: u64,
}

impl Worker {
    pub(crate) fn new(session: u64, index: usize, memory_bytes: u64, speed: u64, experts_only: bool) -> Self {
        Self {
            session,
            address: format!("worker-{index}:7000"),
            memory_bytes,
            speed,
            experts_only,
            is_alive: true,
            stream: None,
            is_frozen: false,
            is_hung: false,
            is_liar: false,
            slowness: 1,
            is_leaving: false,
            is_full: false,
            place: None,
            is_ready: false,
            work: None,
            done: 0,
            rows: Vec::new(),
            was_turned_away: false,
        }
    }

    /// The process is started anew.
    pub(crate) fn restart(&mut self, session: u64) {
        self.session = session;
        self.is_alive = true;
        (self.is_frozen, self.is_hung, self.is_liar, self.is_leaving) = (false, false, false, false);
        (self.slowness, self.is_full) = (1, false);
        self.was_turned_away = false;
        self.stream = None;
        self.forget_place();
    }

    pub(crate) fn forget_place(&mut self) {
        self.place = None;
        self.is_ready = false;
        self.work = None;
        self.done = 0;
    }

    pub(crate) fn epoch(&self) -> Option<Epoch> {
        self.place.as_ref().map(|place| place.epoch)
    }

    /// True while it would answer another rank.
    pub(crate) fn answers(&self) -> bool {
        self.is_alive && !self.is_frozen
    }

    /// Has begun or done a step of an epoch.
    pub(crate) fn is_at(&self, epoch: Epoch, step: u64) -> bool {
        self.epoch() == Some(epoch) && (self.done >= step || self.work.is_some_and(|work| work.step >= step))
    }
}

/// Pairs of workers that cannot talk to each other.
#[derive(Clone, Debug, Default)]
pub(crate) struct Partitions(BTreeSet<(usize, usize)>);

impl Partitions {
    pub(crate) fn cut(&mut self, a: usize, b: usize) {
        self.0.insert((a.min(b), a.max(b)));
    }

    pub(crate) fn mend(&mut self, a: usize, b: usize) {
        self.0.remove(&(a.min(b), a.max(b)));
    }

    pub(crate) fn mend_all(&mut self) {
        self.0.clear();
    }

    pub(crate) fn is_cut(&self, a: usize, b: usize) -> bool {
        self.0.contains(&(a.min(b), a.max(b)))
    }
}
