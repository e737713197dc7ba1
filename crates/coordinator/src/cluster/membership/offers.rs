//! Workers that come and go: what they offer is checked, and those that say
//! nothing any more are let go.

use super::{Action, Membership};
use crate::cluster::draft::mib;
use crate::cluster::member::{Member, MemberId};
use chorale_plan::{Offer, PROTOCOL, Rank, ToWorker};

/// What a session had loaded when its stream broke: the process may come back.
#[derive(Clone, Debug)]
pub(super) struct Past {
    session: u64,
    before: Option<(Rank, u32)>,
    held: Vec<Vec<u32>>,
}

/// Sessions that are remembered.
const MAX_PAST: usize = 64;

/// Longer texts of a worker are refused: they are shown to people.
const MAX_TEXT_BYTES: usize = 256;

impl Membership {
    pub(super) fn connect(&mut self, id: MemberId) {
        if self.members.len() >= self.config.max_members as usize {
            let reason = format!("{} workers are here already, and no more are let in", self.members.len());
            self.tell(id, ToWorker::Turned { reason, may_retry: true });
            self.actions.push(Action::Close(id));
            return;
        }
        self.members.insert(id, Member::new(id, self.now_ms));
    }

    /// A worker says who it is.
    pub(super) fn offer(&mut self, id: MemberId, offer: Offer) {
        if let Err((reason, may_retry)) = self.check(id, &offer) {
            self.turn_away(id, &reason, may_retry);
            return;
        }
        // The same process on a new stream: what the old one still says is of no use.
        let same = |member: &&Member| {
            member.id != id && member.offer.as_ref().is_some_and(|other| other.session == offer.session)
        };
        if let Some(old) = self.members.values().find(same).map(|member| member.id) {
            self.remove(old, "its worker came back on a new stream", false);
            self.actions.push(Action::Close(old));
        }
        self.checkpoint.get_or_insert_with(|| offer.checkpoint.clone());
        self.first_ms.get_or_insert(self.now_ms);
        let until_ms = self.records.of(&offer.address).until_ms;
        let past = self.past.iter().position(|past| past.session == offer.session);
        let past = past.and_then(|at| self.past.remove(at));
        let pulse_ms = self.config.timeouts.pulse_ms;
        let Some(member) = self.members.get_mut(&id) else { return };
        member.eligible_ms = until_ms.max(self.now_ms);
        if let Some(past) = past {
            (member.before, member.held) = (past.before, past.held);
        }
        member.offer = Some(offer);
        self.tell(id, ToWorker::Welcome { pulse_ms });
    }

    /// A worker has measured how fast it reads its memory.
    pub(super) fn measured(&mut self, id: MemberId, bytes_per_s: u64) {
        let settle_ms = self.timeouts().settle_ms;
        let Some(member) = self.members.get_mut(&id) else { return };
        let before = member.offer.as_ref().map_or(0, |offer| offer.memory_bytes_per_s);
        if !member.is_clearly_faster(bytes_per_s) {
            return;
        }
        // One that has just come has been left out by nobody.
        let waited_ms = self.now_ms.saturating_sub(member.eligible_ms);
        member.is_faster = member.rank.is_none() && self.present.is_some() && waited_ms >= settle_ms;
        tracing::info!(
            address = member.address(),
            before_gb_per_s = before as f64 / 1e9,
            gb_per_s = bytes_per_s as f64 / 1e9,
            "a worker reads its memory faster than it was known to"
        );
        // A rank's experts move to it while steps run.
        let present = self.present.as_mut().zip(member.rank);
        if let Some((present, rank)) = present
            && let Some(capacity) = present.draft.capacities.get_mut(rank.0 as usize)
        {
            capacity.speed = bytes_per_s.max(1);
        }
    }

    /// Why a worker cannot be used, and whether that may change.
    fn check(&self, id: MemberId, offer: &Offer) -> Result<(), (String, bool)> {
        if offer.protocol != PROTOCOL {
            return Err((
                format!(
                    "it speaks protocol {} (release {}), the coordinator {PROTOCOL} (release {}): run the same \
                     release on both",
                    offer.protocol,
                    shown(&offer.version),
                    env!("CARGO_PKG_VERSION"),
                ),
                false,
            ));
        }
        let texts = [&offer.version, &offer.checkpoint, &offer.address, &offer.device];
        if texts.iter().any(|text| text.len() > MAX_TEXT_BYTES) || offer.address.is_empty() {
            return Err(("its offer is not well-formed".to_owned(), false));
        }
        if let Some(checkpoint) = self.checkpoint.as_ref().filter(|known| **known != offer.checkpoint) {
            return Err((
                format!(
                    "it has another checkpoint ({}) than the cluster ({}): give it the same model files",
                    shown(&offer.checkpoint),
                    shown(checkpoint)
                ),
                false,
            ));
        }
        self.check_kv(offer)?;
        let twin = self.members.values().find(|member| {
            let other = member.offer.as_ref().filter(|_| member.id != id);
            other.is_some_and(|other| other.address == offer.address && other.session != offer.session)
        });
        if twin.is_some() {
            return Err((
                format!("another worker is reached at {}: give each its own --advertise", offer.address),
                true,
            ));
        }
        let model = &self.config.model;
        let least = model.experts_only_bytes + model.expert_bytes * u64::from(model.num_layers);
        if offer.memory_bytes.saturating_add(offer.host_expert_bytes) < least {
            return Err((
                format!(
                    "it offers {} MiB of memory, and one expert of each layer takes {} MiB: give it more, or a \
                     larger machine",
                    offer.memory_bytes >> 20,
                    mib(least)
                ),
                false,
            ));
        }
        Ok(())
    }

    /// Whether it keeps keys and values as the cluster does.
    fn check_kv(&self, offer: &Offer) -> Result<(), (String, bool)> {
        if offer.kv_dtypes.is_empty() {
            return Err(("it names no way in which it keeps keys and values".to_owned(), false));
        }
        // Without attention it keeps none.
        let asked = self.config.kv_dtype.filter(|_| !offer.experts_only);
        let Some(asked) = asked.filter(|asked| !offer.kv_dtypes.contains(asked)) else { return Ok(()) };
        let words: Vec<&str> = offer.kv_dtypes.iter().map(|kept| kept.name()).collect();
        Err((
            format!(
                "the coordinator's --kv-cache-dtype is {}, and this worker's device ({}) keeps keys and values as \
                 {}: ask the coordinator for one of these or leave it out, or give the worker --experts-only",
                asked.name(),
                shown(&offer.device),
                words.join(" or ")
            ),
            false,
        ))
    }

    pub(super) fn turn_away(&mut self, id: MemberId, reason: &str, may_retry: bool) {
        self.tell(id, ToWorker::Turned { reason: reason.to_owned(), may_retry });
        self.actions.push(Action::Close(id));
        self.remove(id, reason, true);
    }

    /// A stream ended.
    pub(super) fn leave(&mut self, id: MemberId, reason: &str) {
        let Some(member) = self.members.get(&id) else { return };
        // One that said that it would go is not at fault.
        let is_fault = !member.is_leaving;
        self.remove(id, reason, is_fault);
    }

    /// Whoever has said nothing for too long is let go.
    pub(super) fn check_silence(&mut self) {
        let silence_ms = self.timeouts().silence_ms;
        let now_ms = self.now_ms;
        let is_silent = |member: &&Member| now_ms.saturating_sub(member.heard_ms) >= silence_ms;
        let silent: Vec<MemberId> = self.members.values().filter(is_silent).map(|member| member.id).collect();
        for id in silent {
            self.remove(id, &format!("nothing was heard of it for {silence_ms} ms"), true);
            self.actions.push(Action::Close(id));
        }
    }

    /// Takes a worker out. If it had a rank, its world is over.
    pub(super) fn remove(&mut self, id: MemberId, reason: &str, is_fault: bool) {
        let Some(member) = self.members.get(&id) else { return };
        if member.rank.is_some() {
            if is_fault {
                self.note_fault(id, reason);
            }
            let reason = format!("{} is lost: {reason}", self.name(id));
            self.dissolve(&reason);
        }
        self.released.remove(&id);
        let Some(member) = self.members.remove(&id) else { return };
        if let Some(offer) = member.offer {
            let past = Past { session: offer.session, before: member.before, held: member.held };
            self.past.push_back(past);
            if self.past.len() > MAX_PAST {
                self.past.pop_front();
            }
        }
        // Without a model of its own the coordinator takes whatever comes next.
        if self.config.model.checkpoint.is_none()
            && self.members.values().all(|member| member.offer.is_none())
        {
            self.checkpoint = None;
        }
    }

    /// A worker for people: its rank and where it is.
    pub(super) fn name(&self, id: MemberId) -> String {
        let Some(member) = self.members.get(&id) else { return "a worker".to_owned() };
        match member.rank {
            Some(rank) => format!("rank {} ({})", rank.0, member.address()),
            None => format!("the worker at {}", member.address()),
        }
    }
}

/// As much of a text as is shown.
fn shown(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_control()).take(16).collect()
}
