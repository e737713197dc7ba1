//! Waits for steps that were begun and answers for them, in their order, while
//! the rank's thread begins the next one.

use crate::place::Running;
use crate::pulse::Watch;
use crate::rank::RankError;
use crate::runner::Reply;
use chorale_device::Device;
use chorale_plan::{StepOutput, StepReport};
use std::sync::Arc;
use std::sync::mpsc::{self, SyncSender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Steps that have begun and are not waited for yet; one more is.
const MAX_WAITING: usize = 1;

/// What is said of a step when it has ended.
pub(crate) struct Ended {
    pub(crate) step: u64,
    pub(crate) arrived: Instant,
    /// For other ranks.
    pub(crate) waited: Duration,
    pub(crate) reply: Reply<(StepOutput, StepReport)>,
}

impl Ended {
    fn tell(self, watch: &Watch, output: Result<StepOutput, RankError>) {
        watch.end_of(self.step);
        let report = StepReport {
            total_us: self.arrived.elapsed().as_micros() as u64,
            waited_us: self.waited.as_micros() as u64,
        };
        let _ = self.reply.send(output.map(|output| (output, report)));
    }
}

/// Answers for steps. A device whose steps have ended when they are handed in
/// needs no thread for it, and gets none.
pub(crate) struct Finisher<D: Device + 'static> {
    watch: Arc<Watch>,
    thread: Option<Thread<D>>,
}

struct Thread<D: Device + 'static> {
    steps: SyncSender<(Running<D>, Ended)>,
    handle: JoinHandle<()>,
}

impl<D: Device + 'static> Finisher<D> {
    pub(crate) fn new(watch: Arc<Watch>) -> Self {
        Self { watch, thread: None }
    }

    /// Answers when the step has ended. Waits while too many have not.
    pub(crate) fn take(&mut self, running: Running<D>, ended: Ended) {
        if running.is_here() {
            self.drain();
            ended.tell(&self.watch, running.finish());
            return;
        }
        if self.thread.is_none() {
            self.thread = start(&self.watch);
        }
        let unsent = match &self.thread {
            Some(thread) => thread.steps.send((running, ended)).map_err(|unsent| unsent.0).err(),
            None => Some((running, ended)),
        };
        // Without a thread the rank is slower, and right.
        if let Some((running, ended)) = unsent {
            ended.tell(&self.watch, running.finish());
        }
    }

    /// Waits until all steps have ended and are answered for.
    pub(crate) fn drain(&mut self) {
        if let Some(Thread { steps, handle }) = self.thread.take() {
            drop(steps);
            let _ = handle.join();
        }
    }
}

impl<D: Device + 'static> Drop for Finisher<D> {
    fn drop(&mut self) {
        self.drain();
    }
}

fn start<D: Device + 'static>(watch: &Arc<Watch>) -> Option<Thread<D>> {
    let (steps, waiting) = mpsc::sync_channel::<(Running<D>, Ended)>(MAX_WAITING);
    let watch = Arc::clone(watch);
    let finish = move || {
        for (running, ended) in waiting {
            let output = running.finish();
            ended.tell(&watch, output);
        }
    };
    let started = std::thread::Builder::new().name("rank-answers".to_owned()).spawn(finish);
    started
        .inspect_err(|error| tracing::warn!(%error, "no thread waits for steps"))
        .ok()
        .map(|handle| Thread { steps, handle })
}
