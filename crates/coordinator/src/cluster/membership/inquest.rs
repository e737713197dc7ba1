//! A step or a formation that failed: who is the culprit, and what becomes of it.

use super::{Action, Membership, Phase};
use crate::cluster::blame::culprit;
use crate::cluster::member::MemberId;
use crate::cluster::status::FaultStatus;
use chorale_plan::{Carrier, Pulse, Rank};
use std::collections::{BTreeMap, BTreeSet};

/// What ranks say about a failure.
#[derive(Clone, Debug, Default)]
pub(super) struct Inquest {
    until_ms: u64,
    /// The first word of it.
    pub(super) reason: String,
    /// Who waited for whom.
    waits: BTreeMap<Rank, Rank>,
    /// Ranks that failed by themselves.
    failed: BTreeMap<Rank, String>,
    /// Ranks that are well, and say that what carries rows failed.
    stranded: BTreeSet<Rank>,
    /// Ranks that would not compute the plan: nobody's fault but the plan's.
    refused: BTreeSet<Rank>,
    /// Ranks that had not done the step, if it took too long.
    left: BTreeSet<Rank>,
}

/// A step that hangs.
enum Hang {
    /// By this one.
    Of(MemberId, String),
    /// By what carries rows: nobody can tell by whom.
    OfCarrier(Vec<Rank>),
}

/// A rank that has not done a step, and does not say that it waits for another.
struct Suspect {
    rank: Rank,
    id: MemberId,
    exchanges: Option<u32>,
    stalled_ms: u64,
}

impl Inquest {
    fn num_heard(&self) -> usize {
        self.waits.len() + self.failed.len() + self.stranded.len() + self.refused.len()
    }
}

impl Membership {
    /// A rank says that it could not go on, and for whom it waited.
    pub(super) fn witness(&mut self, rank: Rank, blamed: Option<Rank>, reason: &str) {
        let Some(present) = &self.present else { return };
        let num_ranks = present.draft.shape.num_ranks;
        let blamed = blamed.filter(|blamed| blamed.0 < num_ranks && *blamed != rank);
        let Some(inquest) = self.inquire(&format!("rank {} lost a step: {reason}", rank.0)) else { return };
        match blamed {
            Some(blamed) => drop(inquest.waits.insert(rank, blamed)),
            None => drop(inquest.failed.insert(rank, reason.to_owned())),
        }
    }

    /// A rank says that what carries rows between the ranks failed.
    pub(super) fn carrier_failed(&mut self, rank: Rank, reason: &str) {
        let what = format!("rank {} cannot exchange rows with others: {reason}", rank.0);
        if let Some(inquest) = self.inquire(&what) {
            inquest.stranded.insert(rank);
        }
    }

    /// A rank would not compute the plan.
    pub(super) fn refuse(&mut self, rank: Rank, reason: &str) {
        if let Some(inquest) = self.inquire(&format!("rank {} refused the plan: {reason}", rank.0)) {
            inquest.refused.insert(rank);
        }
    }

    /// The inquest that is held, or a new one: no step runs any more.
    fn inquire(&mut self, reason: &str) -> Option<&mut Inquest> {
        let until_ms = self.now_ms + self.timeouts().inquest_ms;
        let present = self.present.as_mut()?;
        if !matches!(present.phase, Phase::Inquest(_)) {
            if matches!(present.phase, Phase::Serving) {
                self.since_ms = self.now_ms;
                self.actions.push(Action::Suspend { reason: reason.to_owned() });
            }
            let left = self.running.take().map(|running| running.left).unwrap_or_default();
            let inquest = Inquest { until_ms, reason: reason.to_owned(), left, ..Inquest::default() };
            present.phase = Phase::Inquest(inquest);
        }
        match &mut present.phase {
            Phase::Inquest(inquest) => Some(inquest),
            Phase::Forming | Phase::Serving => None,
        }
    }

    /// Ends an inquest when everybody has spoken who will.
    pub(super) fn check_inquest(&mut self) {
        let Some(present) = &self.present else { return };
        let Phase::Inquest(inquest) = &present.phase else { return };
        let num_ranks = present.draft.shape.num_ranks as usize;
        if self.now_ms < inquest.until_ms && inquest.num_heard() < num_ranks {
            return;
        }
        let inquest = inquest.clone();
        let members = present.draft.members.clone();
        let of = |rank: Rank| members[rank.0 as usize];
        if !inquest.failed.is_empty() {
            for (rank, reason) in &inquest.failed {
                self.note_fault(of(*rank), reason);
            }
            let failed: Vec<MemberId> = inquest.failed.keys().map(|rank| of(*rank)).collect();
            self.exclude(&failed, &inquest.reason);
            return;
        }
        if !inquest.stranded.is_empty() {
            self.conclude_stranded(&inquest);
            return;
        }
        // Those that said nothing may still be waiting, as their pulses tell.
        let mut waits = inquest.waits.clone();
        for (index, id) in members.iter().enumerate() {
            let rank = Rank(index as u32);
            let waiting_for = self.members.get(id).and_then(|member| member.pulse.waiting_for);
            if let Some(other) = waiting_for
                && (other.0 as usize) < members.len()
                && other != rank
                && !inquest.refused.contains(&rank)
            {
                waits.entry(rank).or_insert(other);
            }
        }
        let found = match inquest.refused.is_empty() {
            false => None,
            true => culprit(&waits).or_else(|| inquest.left.last().copied()),
        };
        match found {
            Some(rank) => {
                let num_waiting = waits.values().filter(|other| **other == rank).count();
                let reason = format!("{num_waiting} ranks waited for it; {}", inquest.reason);
                self.blame(&[of(rank)], &reason);
            }
            None => {
                self.note(None, None, &inquest.reason);
                self.dissolve(&inquest.reason);
            }
        }
    }

    /// What carries rows failed, and no rank did: nobody is left out, and if it is
    /// not the first time the next world goes without NCCL.
    fn conclude_stranded(&mut self, inquest: &Inquest) {
        let Some(present) = &self.present else { return };
        let (members, carrier) = (present.draft.members.clone(), present.carrier);
        let served_ms = present.served_ms.map_or(0, |since_ms| self.now_ms.saturating_sub(since_ms));
        self.note(None, None, &inquest.reason);
        if carrier == Carrier::Nccl {
            let sessions = self.sessions(&members);
            if self.carrier_failures.note(sessions, served_ms) {
                tracing::warn!(
                    reason = inquest.reason,
                    "NCCL has failed these workers again: they exchange rows over gRPC until one is started \
                     anew or another joins; NCCL_DEBUG=INFO on the workers tells more"
                );
            }
        }
        self.dissolve(&inquest.reason);
    }

    /// The processes of some workers.
    pub(super) fn sessions(&self, members: &[MemberId]) -> BTreeSet<u64> {
        let session = |id: &MemberId| Some(self.members.get(id)?.offer.as_ref()?.session);
        members.iter().filter_map(session).collect()
    }

    /// A step that hangs or takes too long.
    pub(super) fn check_running(&mut self) {
        let timeouts = self.timeouts();
        let Some(running) = &self.running else { return };
        let (step, took_ms) = (running.step, self.now_ms.saturating_sub(running.began_ms));
        match self.hang() {
            Some(Hang::Of(id, reason)) => self.blame(&[id], &reason),
            Some(Hang::OfCarrier(ranks)) => {
                let numbers: Vec<String> = ranks.iter().map(|rank| rank.0.to_string()).collect();
                let numbers = numbers.join(", ");
                let reason =
                    format!("step {step} hangs on the devices of ranks {numbers}, all as far as others");
                let now_ms = self.now_ms;
                if let Some(inquest) = self.inquire(&reason) {
                    inquest.until_ms = now_ms;
                    inquest.stranded.extend(ranks);
                }
            }
            None if took_ms >= timeouts.step_ms => {
                let reason = format!("step {step} takes longer than {} ms", timeouts.step_ms);
                let now_ms = self.now_ms;
                if let Some(inquest) = self.inquire(&reason) {
                    inquest.until_ms = now_ms;
                }
            }
            None => {}
        }
    }

    /// Who holds the step up, if it hangs: of those that wait for nobody that they
    /// know, the one that has come least far. Devices that wait for each other look
    /// alike from outside; the one that is behind does not.
    fn hang(&self) -> Option<Hang> {
        let hang_ms = self.timeouts().hang_ms;
        let (present, running) = (self.present.as_ref()?, self.running.as_ref()?);
        let took_ms = self.now_ms.saturating_sub(running.began_ms);
        let suspects = running.left.iter().filter_map(|&rank| {
            let id = present.draft.members[rank.0 as usize];
            let Pulse { step, waiting_for, stalled_ms, exchanges, .. } = self.members.get(&id)?.pulse;
            let is_at_it = step == Some(running.step);
            (!is_at_it || waiting_for.is_none()).then_some(Suspect {
                rank,
                id,
                // Without one, it has not begun.
                exchanges: is_at_it.then_some(exchanges),
                stalled_ms: if is_at_it { stalled_ms.into() } else { took_ms },
            })
        });
        let suspects: Vec<Suspect> = suspects.collect();
        if suspects.iter().all(|suspect| suspect.stalled_ms < hang_ms) {
            return None;
        }
        let least = suspects.iter().map(|suspect| suspect.exchanges).min()?;
        // What others wait for may have begun a little later than they.
        let is_behind = |suspect: &&Suspect| {
            suspect.exchanges == least
                && suspect.stalled_ms >= if least.is_some() { hang_ms / 2 } else { hang_ms }
        };
        let behind: Vec<&Suspect> = suspects.iter().filter(is_behind).collect();
        let first = behind.first()?;
        if behind.len() > 1 && least.is_some() && present.carrier == Carrier::Nccl {
            return Some(Hang::OfCarrier(behind.iter().map(|suspect| suspect.rank).collect()));
        }
        let reason = match least {
            Some(_) => format!("it computes for {} ms without anything new", first.stalled_ms),
            None => format!("it has not begun step {} for {took_ms} ms", running.step),
        };
        Some(Hang::Of(first.id, reason))
    }

    /// These are the culprits: they are left out for a while.
    pub(super) fn blame(&mut self, culprits: &[MemberId], reason: &str) {
        let placed: Vec<MemberId> = culprits
            .iter()
            .copied()
            .filter(|id| self.members.get(id).is_some_and(|member| member.rank.is_some()))
            .collect();
        for &id in &placed {
            self.note_fault(id, reason);
        }
        self.exclude(&placed, reason);
    }

    fn exclude(&mut self, culprits: &[MemberId], reason: &str) {
        let Some(&first) = culprits.first() else { return };
        let reason = format!("{} failed: {reason}", self.name(first));
        self.dissolve(&reason);
        for id in culprits {
            if let Some(member) = self.members.get_mut(id) {
                member.eligible_ms = self.records.of(member.address()).until_ms;
            }
        }
    }

    /// Writes a fault down, and that it is this worker's.
    pub(super) fn note_fault(&mut self, id: MemberId, reason: &str) {
        let timeouts = self.timeouts();
        let Some(member) = self.members.get(&id) else { return };
        let (rank, address) = (member.rank, member.address().to_owned());
        self.records.strike(&address, self.now_ms, timeouts.backoff_ms, timeouts.max_backoff_ms);
        self.note(rank, Some(address), reason);
    }

    fn note(&mut self, rank: Option<Rank>, address: Option<String>, reason: &str) {
        self.num_faults += 1;
        if self.faults.len() >= super::MAX_FAULTS {
            self.faults.pop_front();
        }
        let reason = reason.chars().take(1000).collect();
        self.faults.push_back(FaultStatus { at_ms: self.now_ms, epoch: self.epoch, rank, address, reason });
    }
}
