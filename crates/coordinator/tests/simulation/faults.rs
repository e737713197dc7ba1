//! What goes wrong, and how it is put right again.

use crate::world::{Next, Simulation};
use chorale_coordinator::cluster::Event;
use chorale_plan::{Epoch, ExpertResidency, FromWorker, Pulse, Rank, Standing, StepOutput, StepReport};

impl Simulation {
    /// One fault, drawn at random.
    pub(crate) fn fault(&mut self) {
        let index = self.draw.below(self.workers.len() as u64) as usize;
        let other = self.draw.below(self.workers.len() as u64) as usize;
        let delay = 300 + self.draw.below(5000);
        let kind = self.draw.below(15);
        if !self.workers[index].answers() {
            return;
        }
        self.say(|| format!("FAULT {kind} at worker-{index} (and worker-{other})"));
        match kind {
            0 | 1 => self.crash(index, delay),
            2 => self.crash(index, 100),
            3 => self.break_stream(index),
            4 => self.workers[index].is_hung = true,
            5 => {
                self.workers[index].is_frozen = true;
                let session = self.workers[index].session;
                self.at(delay, Next::Thaw(index, session));
            }
            6 => self.workers[index].slowness = 5 + self.draw.below(60),
            7 => self.workers[index].is_liar = true,
            8 | 9 if index != other => {
                self.partitions.cut(index, other);
                self.at(delay, Next::Mend(index, other));
            }
            10 => {
                self.workers[index].is_leaving = true;
                self.send(index, FromWorker::Leaving);
                // Who is not let go in time goes.
                self.at(delay + 2000, Next::Restart(index));
            }
            11 => self.talk_nonsense(index),
            12 => self.workers[index].is_full = true,
            14 => {
                let faster = 2 + self.draw.below(8);
                let worker = &mut self.workers[index];
                worker.speed = (worker.speed + 1) * faster;
            }
            13 if self.draw.below(100) < 40 => self.restart_coordinator(),
            _ => {}
        }
    }

    /// The process is gone; another is started later.
    pub(crate) fn crash(&mut self, index: usize, restart_ms: u64) {
        let worker = &mut self.workers[index];
        if !worker.is_alive {
            return;
        }
        worker.is_alive = false;
        let stream = worker.stream.take();
        worker.forget_place();
        if let Some(member) = stream {
            let delay = 1 + self.draw.below(30);
            self.at(delay, Next::Broke(member));
        }
        self.at(restart_ms, Next::Restart(index));
    }

    /// A process is started, in place of the old one if that is still there.
    pub(crate) fn restart(&mut self, index: usize) {
        if self.workers[index].is_alive {
            if !self.workers[index].is_leaving {
                return;
            }
            self.crash(index, 1_000_000);
        }
        let session = self.new_session();
        self.workers[index].restart(session);
        let delay = 50 + self.draw.below(200);
        self.dial_in(index, delay);
    }

    /// The stream ends on both sides; the process is well and dials again. It
    /// may do so before the coordinator has noticed.
    fn break_stream(&mut self, index: usize) {
        if let Some(member) = self.workers[index].stream.take() {
            let (delay, dial) = (1 + self.draw.below(100), 1 + self.draw.below(100));
            self.at(delay, Next::Broke(member));
            self.dial_in(index, dial);
        }
    }

    pub(crate) fn thaw(&mut self, index: usize, session: u64) {
        let worker = &mut self.workers[index];
        if worker.session != session || !worker.is_frozen {
            return;
        }
        worker.is_frozen = false;
        match worker.stream {
            Some(member) if self.checks.open.contains(&member) => {
                self.at(0, Next::Pulse(index, session));
            }
            // The coordinator let go of it meanwhile.
            _ => {
                worker.stream = None;
                worker.work = None;
                self.dial_in(index, 100);
            }
        }
    }

    /// Things that no worker would say.
    fn talk_nonsense(&mut self, index: usize) {
        let epoch = match self.draw.below(3) {
            0 => Epoch(self.draw.next()),
            1 => Epoch(self.membership.epoch().0.saturating_sub(1)),
            _ => self.membership.epoch(),
        };
        let rank = Rank(self.draw.below(40) as u32);
        let step = self.draw.below(200);
        let reason = "nonsense".to_owned();
        let is_present = epoch == self.membership.epoch();
        let message = match self.draw.below(11) {
            10 => FromWorker::CarrierFailed { epoch, step: (step > 99).then_some(step), reason },
            0 => FromWorker::Lost { epoch, step, blamed: Some(rank), reason },
            1 => FromWorker::Unable { epoch, blamed: Some(rank), reason },
            2 => FromWorker::Unable { epoch, blamed: None, reason },
            3 => FromWorker::Unprepared { epoch, version: self.draw.below(5) as u32, reason },
            4 => FromWorker::Refused { epoch, step, reason },
            5 => {
                let experts = ExpertResidency { hits: u64::MAX, ..ExpertResidency::default() };
                let standing = Standing { experts: Some(experts), ..Standing::default() };
                let rows = vec![vec![u64::MAX; 6]; self.draw.below(4) as usize];
                FromWorker::Loads { epoch, rows, standing }
            }
            6 => FromWorker::Loading { epoch, bytes: 1 << 60, total_bytes: 0, tensors: 9, total_tensors: 0 },
            7 => FromWorker::Pulse(Pulse {
                step: Some(step),
                waiting_for: Some(rank),
                stalled_ms: u32::MAX,
                exchanges: self.draw.below(1 << 10) as u32,
                memory_bytes_per_s: Some(self.draw.below(1 << 40)),
            }),
            // In the present epoch these would be taken for the truth.
            8 if !is_present => FromWorker::Prepared { epoch, version: self.draw.below(5) as u32 },
            9 if !is_present => FromWorker::Ready { epoch },
            _ => FromWorker::Done {
                epoch,
                output: StepOutput { step: u64::MAX, samples: Vec::new() },
                report: StepReport::default(),
            },
        };
        self.send(index, message);
    }

    /// Everything is put right: from here on nothing goes wrong any more.
    pub(crate) fn heal(&mut self) {
        self.say(|| "HEALED".to_owned());
        self.partitions.mend_all();
        for index in 0..self.workers.len() {
            let worker = &mut self.workers[index];
            (worker.is_hung, worker.is_liar, worker.is_full, worker.slowness) = (false, false, false, 1);
            if !worker.is_alive || worker.is_leaving {
                self.restart(index);
            } else if worker.is_frozen {
                let session = worker.session;
                self.thaw(index, session);
            }
        }
        // Streams that nobody has broken stay as they are.
        self.tell(Event::Broke {
            member: chorale_coordinator::cluster::MemberId(u64::MAX),
            reason: String::new(),
        });
    }
}
