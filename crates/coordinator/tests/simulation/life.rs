//! What a worker does when it is told something, and when time passes.

use crate::worker::Work;
use crate::world::{EXCHANGE_MS, Next, Simulation};
use chorale_coordinator::cluster::{Event, MemberId};
use chorale_plan::{
    Epoch, FromWorker, KvFormat, Offer, PROTOCOL, Pulse, Standing, StepOutput, StepReport, ToWorker,
};

impl Simulation {
    pub(crate) fn arrive_at_worker(&mut self, index: usize, message: ToWorker) {
        let worker = &mut self.workers[index];
        match message {
            ToWorker::Turned { may_retry, .. } => worker.was_turned_away = !may_retry,
            ToWorker::Assigned(assignment) => {
                assert!(worker.epoch().is_none_or(|epoch| epoch < assignment.epoch), "epochs count up");
                let epoch = assignment.epoch.0;
                worker.forget_place();
                worker.place = Some(*assignment);
                worker.rows = vec![vec![0; 6]; 2];
                self.at(20, Next::Loading(index, epoch, 0));
            }
            ToWorker::Dismissed { epoch } => {
                if worker.epoch().is_some_and(|own| own <= epoch) {
                    worker.forget_place();
                }
            }
            ToWorker::Prepare { epoch, placement } if worker.epoch() == Some(epoch) => {
                let delay = 50 + self.draw.below(400);
                self.at(delay, Next::Prepared(index, epoch.0, placement.version));
            }
            ToWorker::Step { epoch, plan, .. } if worker.epoch() == Some(epoch) && worker.is_ready => {
                let now_ms = self.now_ms;
                let step = plan.step;
                worker.work =
                    Some(Work { step, began_ms: now_ms, waiting_for: None, waits_since_ms: now_ms });
                let delay = 5 + self.draw.below(30);
                self.at(delay, Next::Look(index, epoch.0, step));
            }
            ToWorker::Farewell => self.crash(index, 500),
            ToWorker::Prepare { .. } | ToWorker::Step { .. } | ToWorker::Welcome { .. } | ToWorker::Pulse => {
            }
        }
    }

    pub(crate) fn dial_in(&mut self, index: usize, delay_ms: u64) {
        let session = self.workers[index].session;
        self.at(delay_ms, Next::Dial(index, session));
    }

    pub(crate) fn dial(&mut self, index: usize, session: u64) {
        let member = MemberId(self.num_streams);
        let worker = &mut self.workers[index];
        if !worker.answers() || worker.session != session || worker.stream.is_some() {
            return;
        }
        assert!(!worker.was_turned_away, "no worker here deserves to be turned away for good");
        self.num_streams += 1;
        worker.stream = Some(member);
        let offer = Offer {
            session,
            version: "0".to_owned(),
            protocol: PROTOCOL,
            checkpoint: "abc".to_owned(),
            address: worker.address.clone(),
            device: "paper".to_owned(),
            memory_bytes: worker.memory_bytes,
            memory_bytes_per_s: worker.speed,
            experts_only: worker.experts_only,
            nccl: None,
            kv_dtypes: vec![KvFormat::F32, KvFormat::Bf16, KvFormat::Fp8],
            host_expert_bytes: 0,
        };
        self.checks.open.insert(member);
        self.tell(Event::Connected { member });
        self.send(index, FromWorker::Offer(offer));
        if self.workers[index].is_leaving {
            self.send(index, FromWorker::Leaving);
        }
        self.at(10, Next::Pulse(index, session));
    }

    pub(crate) fn pulse(&mut self, index: usize, session: u64) {
        let worker = &self.workers[index];
        if !worker.answers() || worker.session != session || worker.stream.is_none() {
            return;
        }
        let stalled = |work: Work| (self.now_ms - work.waits_since_ms) as u32;
        let pulse = Pulse {
            step: worker.work.map(|work| work.step),
            waiting_for: worker.work.and_then(|work| work.waiting_for),
            stalled_ms: worker.work.map_or(0, stalled),
            memory_bytes_per_s: Some(worker.speed),
            ..Pulse::default()
        };
        let loads = worker.epoch().map(|epoch| FromWorker::Loads {
            epoch,
            rows: worker.rows.clone(),
            standing: Standing::default(),
        });
        self.send(index, FromWorker::Pulse(pulse));
        if let Some(loads) = loads {
            self.send(index, loads);
        }
        let pulse_ms = u64::from(self.config.timeouts.pulse_ms);
        self.at(pulse_ms, Next::Pulse(index, session));
    }

    pub(crate) fn load(&mut self, index: usize, epoch: u64, part: u64) {
        let worker = &self.workers[index];
        if !worker.answers() || worker.epoch() != Some(Epoch(epoch)) {
            return;
        }
        let (slowness, epoch) = (worker.slowness, Epoch(epoch));
        if part < 5 {
            let loading = FromWorker::Loading {
                epoch,
                bytes: part * 20,
                total_bytes: 100,
                tensors: 0,
                total_tensors: 5,
            };
            self.send(index, loading);
            let delay = (20 + self.draw.below(80)) * slowness;
            self.at(delay, Next::Loading(index, epoch.0, part + 1));
            return;
        }
        let cut = self.peers(index).into_iter().find(|&(_, peer)| self.partitions.is_cut(index, peer));
        if let Some((rank, _)) = cut {
            let reason = "it cannot be reached".to_owned();
            self.send(index, FromWorker::Unable { epoch, blamed: Some(rank), reason });
        } else {
            self.workers[index].is_ready = true;
            self.send(index, FromWorker::Ready { epoch });
        }
    }

    /// The other ranks of a worker's epoch, as it knows them.
    pub(crate) fn peers(&self, index: usize) -> Vec<(chorale_plan::Rank, usize)> {
        let Some(place) = &self.workers[index].place else { return Vec::new() };
        let by_address = |address: &String| self.workers.iter().position(|one| one.address == *address);
        let ranks = place.shape.ranks().zip(&place.addresses);
        let others = ranks.filter(|(rank, _)| *rank != place.rank);
        others.filter_map(|(rank, address)| Some((rank, by_address(address)?))).collect()
    }

    /// A worker goes on with its step: it is done, waits, or gives up.
    pub(crate) fn look(&mut self, index: usize, epoch: u64, step: u64) {
        let (now_ms, epoch) = (self.now_ms, Epoch(epoch));
        let worker = &self.workers[index];
        let Some(work) = worker.work.filter(|work| work.step == step && worker.epoch() == Some(epoch)) else {
            return;
        };
        if !worker.is_alive || worker.is_hung || worker.is_frozen {
            // It looks again when it can.
            self.at(20, Next::Look(index, epoch.0, step));
            return;
        }
        let peers = self.peers(index);
        let gone = peers.iter().find(|&&(_, peer)| {
            let peer = &self.workers[peer];
            !peer.is_alive || peer.epoch().is_none_or(|own| own > epoch)
        });
        let holds_up = peers.iter().find(|&&(_, peer)| {
            let other = &self.workers[peer];
            let is_stuck = other.is_hung && other.done < step;
            !other.is_at(epoch, step) || is_stuck || other.is_frozen || self.partitions.is_cut(index, peer)
        });
        let lost = |blamed| {
            let reason = "an exchange failed".to_owned();
            FromWorker::Lost { epoch, step, blamed: Some(blamed), reason }
        };
        let liar = self.workers[index].is_liar && self.draw.below(100) < 30;
        if liar && let Some(&(rank, _)) = peers.first() {
            self.workers[index].work = None;
            self.send(index, lost(rank));
        } else if let Some(&(rank, _)) = gone {
            self.workers[index].work = None;
            self.send(index, lost(rank));
        } else if let Some(&(rank, _)) = holds_up {
            let waits_since_ms = match work.waiting_for {
                Some(other) if other == rank => work.waits_since_ms,
                _ => now_ms,
            };
            if now_ms - waits_since_ms >= EXCHANGE_MS {
                self.workers[index].work = None;
                self.send(index, lost(rank));
            } else {
                self.workers[index].work = Some(Work { waiting_for: Some(rank), waits_since_ms, ..work });
                self.at(20, Next::Look(index, epoch.0, step));
            }
        } else {
            let hot = self.hot_expert;
            let worker = &mut self.workers[index];
            (worker.work, worker.done) = (None, step);
            worker.rows.iter_mut().for_each(|rows| {
                rows.iter_mut().for_each(|rows| *rows += 1);
                rows[hot] += 20;
            });
            let output = StepOutput { step, samples: Vec::new() };
            let report = StepReport { total_us: (now_ms - work.began_ms) * 1000, waited_us: 0 };
            self.send(index, FromWorker::Done { epoch, output, report });
        }
    }
}
