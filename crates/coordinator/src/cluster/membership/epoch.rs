//! Worlds: how one is formed, begins to serve, becomes a better one, and ends.

use super::{Action, Membership, Phase, Present, World};
use crate::cluster::carrier::carrier;
use crate::cluster::config::RoomRules;
use crate::cluster::draft::{Candidate, Draft, Lack, draft};
use crate::cluster::member::{Member, MemberId};
use crate::cluster::placement::spread;
use chorale_plan::{Assignment, Carrier, Epoch, Rank, ToWorker};
use chorale_scheduler::HomeConfig;
use std::sync::Arc;

/// Steps stop while a world is formed: for workers that it could do without before,
/// its busiest rank must have less to do by this share.
const MIN_GAIN: f64 = 0.1;

impl Membership {
    /// Forms a world of those that are there, if there is none.
    pub(super) fn form(&mut self) {
        if self.present.is_some() {
            return;
        }
        let found = match self.wait_for_all() {
            Some(lack) => Err(lack),
            // Who is about to leave is asked only if it does not go without.
            None => draft(&self.config, &self.candidates(false))
                .or_else(|lack| draft(&self.config, &self.candidates(true)).map_err(|_| lack)),
        };
        match found {
            Ok(draft) => self.assign(draft),
            Err(lack) => self.lack = lack,
        }
    }

    /// The first world waits for all ranks that are wanted.
    fn wait_for_all(&self) -> Option<Lack> {
        let timeouts = self.timeouts();
        let is_over = |(first_ms, wait_ms): (u64, u64)| self.now_ms >= first_ms.saturating_add(wait_ms);
        if self.has_served || self.first_ms.zip(timeouts.first_epoch_ms).is_some_and(is_over) {
            return None;
        }
        let wanted = self.config.tensor_parallel_size * self.config.data_parallel_size;
        let candidates = self.candidates(false);
        let here = candidates.iter().filter(|candidate| !candidate.experts_only).count() as u32;
        (here < wanted).then(|| Lack {
            reason: format!("{here} of {wanted} workers are here"),
            num_workers: wanted - here,
            bytes: 0,
        })
    }

    /// Who could have a place now, in the order in which they came.
    fn candidates(&self, with_leaving: bool) -> Vec<Candidate> {
        let may =
            |member: &&Member| member.eligible_ms <= self.now_ms && (with_leaving || !member.is_leaving);
        self.members.values().filter(may).filter_map(Member::candidate).collect()
    }

    fn assign(&mut self, draft: Draft) {
        self.epoch = Epoch(self.epoch.0.saturating_add(1));
        self.num_epochs += 1;
        let model = &self.config.model;
        let held: Vec<&[Vec<u32>]> =
            draft.members.iter().map(|id| self.members[id].held.as_slice()).collect();
        let placement = spread(model.num_layers, model.num_experts, &draft.quotas, &held);
        let placement = self.balance.begin(placement, &draft.capacities, &self.config.balance, self.now_ms);
        let addresses: Vec<String> =
            draft.members.iter().map(|id| self.members[id].address().to_owned()).collect();
        let versions = draft.members.iter().map(|id| self.members[id].offer.as_ref()?.nccl);
        let carrier = match self.carrier_failures.forbid(&self.sessions(&draft.members)) {
            true => Carrier::Frames,
            false => carrier(&self.config, draft.shape, versions),
        };
        for (&id, rank) in draft.members.iter().zip(draft.shape.ranks()) {
            let assignment = Assignment {
                epoch: self.epoch,
                shape: draft.shape,
                rank,
                addresses: addresses.clone(),
                placement: placement.clone(),
                room: draft.rooms[rank.0 as usize],
                exchange: self.config.exchange,
                carrier,
                dense_dtype: self.config.dense_dtype,
            };
            self.released.remove(&id);
            if let Some(member) = self.members.get_mut(&id) {
                member.take_place(rank, draft.shape.tensor_parallel_size, &placement, self.now_ms);
            }
            self.actions.push(Action::Tell(id, ToWorker::Assigned(Box::new(assignment))));
        }
        self.experts = Arc::default();
        self.present = Some(Present {
            epoch: self.epoch,
            draft,
            placement,
            pending: None,
            version: 0,
            carrier,
            served_ms: None,
            reason: self.reason.clone(),
            phase: Phase::Forming,
        });
    }

    /// Steps can run once all ranks are ready.
    pub(super) fn serve(&mut self) {
        let Some(present) = &mut self.present else { return };
        let is_ready = |id: &MemberId| self.members.get(id).is_some_and(|member| member.loading.is_ready);
        if !matches!(present.phase, Phase::Forming) || !present.draft.members.iter().all(is_ready) {
            return;
        }
        present.phase = Phase::Serving;
        if !self.has_served {
            // What is promised now holds for all worlds to come.
            let rules = present.draft.homes().map(|room| *self.config.rooms.of(room.kv_dtype));
            if let Some(rule) = rules.min_by_key(|rule| rule.max_sequence_tokens) {
                self.config.rooms = RoomRules::same(rule);
            }
        }
        present.served_ms = Some(self.now_ms);
        let world = world(present, self.config.rooms.f32.max_sequence_tokens);
        if self.has_served {
            self.num_recoveries += 1;
            self.last_pause_ms = self.now_ms - self.since_ms;
            self.total_pause_ms += self.last_pause_ms;
        }
        self.has_served = true;
        self.actions.push(Action::Serve(world));
    }

    /// Ranks whose loading does not go on.
    pub(super) fn check_forming(&mut self) {
        let Some(present) = &self.present else { return };
        if !matches!(present.phase, Phase::Forming) {
            return;
        }
        let loading_ms = self.timeouts().loading_ms;
        let now_ms = self.now_ms;
        let ranks: Vec<&Member> =
            present.draft.members.iter().filter_map(|id| self.members.get(id)).collect();
        let is_stalled = |member: &&Member| now_ms.saturating_sub(member.loading.moved_ms) >= loading_ms;
        let unloaded = ranks.iter().copied().filter(|member| !member.loading.is_loaded());
        let mut stalled: Vec<MemberId> =
            unloaded.clone().filter(is_stalled).map(|member| member.id).collect();
        // When all are loaded they have only each other to wait for.
        if unloaded.count() == 0 && ranks.iter().all(is_stalled) {
            stalled =
                ranks.iter().filter(|member| !member.loading.is_ready).map(|member| member.id).collect();
            if stalled.len() == ranks.len() {
                stalled.drain(..ranks.len() - 1);
            }
        }
        if !stalled.is_empty() {
            self.blame(&stalled, &format!("its loading did not go on for {loading_ms} ms"));
        }
    }

    /// Ends a world that serves for a better one, between two steps: workers
    /// have joined, or one is about to leave.
    pub(super) fn check_improvement(&mut self) {
        let Some(present) = &self.present else { return };
        if self.running.is_some() || !matches!(present.phase, Phase::Serving) {
            return;
        }
        let leaving = self.members.values().find(|member| member.rank.is_some() && member.is_leaving);
        if let Some(id) = leaving.map(|member| member.id)
            && draft(&self.config, &self.candidates(false)).is_ok()
        {
            let reason = format!("{} leaves", self.name(id));
            self.dissolve(&reason);
            return;
        }
        let settle_ms = self.timeouts().settle_ms;
        let waiting = self.members.values().filter(|member| {
            let is_free = member.rank.is_none() && !member.is_leaving && member.candidate().is_some();
            is_free && member.eligible_ms <= self.now_ms
        });
        let waited = waiting.map(|member| self.now_ms - member.eligible_ms);
        let (least, most) = waited.fold((u64::MAX, 0), |(least, most), ms| (least.min(ms), most.max(ms)));
        if least == u64::MAX || (least < settle_ms && most < settle_ms.saturating_mul(5)) {
            return;
        }
        let size = |draft: &Draft| {
            let shape = draft.shape;
            (shape.tensor_parallel_size, shape.data_parallel_size, shape.num_ranks)
        };
        let now = size(&present.draft);
        // A rank that leaves but cannot be done without stays in.
        let better = draft(&self.config, &self.candidates(leaving.is_some()));
        let Some(better) = better.ok().filter(|better| size(better) > now) else { return };
        let comes = |id: &&MemberId| self.members.get(id).is_some_and(|member| member.rank.is_none());
        let are_faster = better
            .members
            .iter()
            .filter(comes)
            .all(|id| self.members.get(id).is_some_and(|member| member.is_faster));
        if !are_faster {
            self.dissolve("workers have joined");
        } else if better.busiest() <= present.draft.busiest() * (1.0 - MIN_GAIN) {
            self.dissolve("a worker that was left out reads its memory faster than it was known to");
        }
    }

    /// The world is over, and its members are free for the next.
    pub(super) fn dissolve(&mut self, reason: &str) {
        let Some(present) = self.present.take() else { return };
        if matches!(present.phase, Phase::Serving) {
            self.since_ms = self.now_ms;
            self.actions.push(Action::Suspend { reason: reason.to_owned() });
        }
        self.running = None;
        self.reason = reason.to_owned();
        for id in present.draft.members {
            if let Some(member) = self.members.get_mut(&id) {
                member.rank = None;
                member.pulse = chorale_plan::Pulse::default();
                self.released.insert(id);
            }
        }
    }

    /// Tells those that the next world goes without.
    pub(super) fn dismiss(&mut self) {
        for id in std::mem::take(&mut self.released) {
            let epoch = self.present.as_ref().map_or(self.epoch, |present| Epoch(present.epoch.0 - 1));
            self.tell(id, ToWorker::Dismissed { epoch });
        }
        let is_free = |member: &&mut Member| {
            member.is_leaving && member.rank.is_none() && !member.is_dismissed_for_good
        };
        let mut leaving = Vec::new();
        for member in self.members.values_mut().filter(is_free) {
            member.is_dismissed_for_good = true;
            leaving.push(member.id);
        }
        for id in leaving {
            self.tell(id, ToWorker::Farewell);
        }
    }
}

/// What the engine is told of a world.
fn world(present: &Present, max_sequence_tokens: u32) -> World {
    let home = |rank: Rank| HomeConfig::new(rank, &present.draft.rooms[rank.0 as usize]);
    World {
        epoch: present.epoch,
        shape: present.draft.shape,
        members: present.draft.members.clone(),
        homes: present.draft.shape.homes().map(home).collect(),
        max_sequence_tokens,
        placement: present.placement.version,
    }
}
