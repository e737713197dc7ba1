//! Whether a rank gets on, told to those outside of its thread: atomics that
//! the thread writes and anybody reads, whatever the device does.

use chorale_link::{Fault, Frame, Transport};
use chorale_plan::{Pulse, Rank};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

/// No step, or nobody.
const NONE: u64 = u64::MAX;
const NOBODY: u32 = u32::MAX;

/// What the thread is at.
#[derive(Debug)]
pub(crate) struct Watch {
    started: Instant,
    step: AtomicU64,
    waiting_for: AtomicU32,
    /// Since `started`.
    last_progress_ms: AtomicU64,
    /// Of the step: those it has come to, and its end.
    exchanges: AtomicU32,
}

impl Watch {
    pub(crate) fn new() -> Self {
        Self {
            started: Instant::now(),
            step: AtomicU64::new(NONE),
            waiting_for: AtomicU32::new(NOBODY),
            last_progress_ms: AtomicU64::new(0),
            exchanges: AtomicU32::new(0),
        }
    }

    pub(crate) fn begin(&self, step: u64) {
        self.progress();
        self.exchanges.store(0, Ordering::Relaxed);
        self.step.store(step, Ordering::Relaxed);
    }

    /// The rank has come to the next exchange of the step, or has handed its device
    /// the rest of it.
    pub(crate) fn come_further(&self) {
        self.progress();
        self.exchanges.fetch_add(1, Ordering::Relaxed);
    }

    /// A step has ended; a later one may be under way.
    pub(crate) fn end_of(&self, step: u64) {
        self.progress();
        let _ = self.step.compare_exchange(step, NONE, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Nothing is computed any more.
    pub(crate) fn end(&self) {
        self.step.store(NONE, Ordering::Relaxed);
        self.waiting_for.store(NOBODY, Ordering::Relaxed);
    }

    fn progress(&self) {
        self.last_progress_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// They are read one by one: a pulse in between two steps may mix them,
    /// and the next one is right.
    pub(crate) fn pulse(&self) -> Pulse {
        let step = Some(self.step.load(Ordering::Relaxed)).filter(|&step| step != NONE);
        let waiting_for = Some(self.waiting_for.load(Ordering::Relaxed)).filter(|&rank| rank != NOBODY);
        let stalled = self.now_ms().saturating_sub(self.last_progress_ms.load(Ordering::Relaxed));
        Pulse {
            step,
            waiting_for: step.and(waiting_for).map(Rank),
            stalled_ms: step.map_or(0, |_| u32::try_from(stalled).unwrap_or(u32::MAX)),
            exchanges: step.map_or(0, |_| self.exchanges.load(Ordering::Relaxed)),
            memory_bytes_per_s: None,
        }
    }
}

/// A transport that tells the watch for whom it waits.
pub(crate) struct Watched {
    pub(crate) transport: Box<dyn Transport>,
    pub(crate) watch: Arc<Watch>,
}

impl Watched {
    fn wait<T>(
        &mut self,
        rank: Rank,
        wait: impl FnOnce(&mut dyn Transport) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        self.watch.waiting_for.store(rank.0, Ordering::Relaxed);
        let outcome = wait(&mut *self.transport);
        self.watch.waiting_for.store(NOBODY, Ordering::Relaxed);
        if outcome.is_ok() {
            self.watch.progress();
        }
        outcome
    }
}

impl Transport for Watched {
    fn send(&mut self, to: Rank, frame: Frame) -> Result<(), Fault> {
        self.wait(to, |transport| transport.send(to, frame))
    }

    fn receive(&mut self, from: Rank) -> Result<Frame, Fault> {
        self.wait(from, |transport| transport.receive(from))
    }

    fn come_to_exchange(&mut self) {
        self.watch.come_further();
    }

    fn broken(&self) -> Option<Fault> {
        self.transport.broken()
    }

    fn at_end(&mut self, then: Box<dyn FnOnce() + Send>) {
        self.transport.at_end(then);
    }
}
