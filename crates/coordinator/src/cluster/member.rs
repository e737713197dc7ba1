//! One worker as the coordinator knows it, and what it remembers of workers
//! that failed.

use super::draft::Candidate;
use chorale_plan::{Offer, OneShot, Placement, Pulse, Rank, Standing, StepReport};
use std::collections::BTreeMap;

/// A worker's connection; never used again for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MemberId(pub u64);

/// One worker that is connected.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) id: MemberId,
    /// `None` until it has said who it is.
    pub(super) offer: Option<Offer>,
    pub(super) heard_ms: u64,
    /// Since when it could have had a place; the settle time counts from here.
    pub(super) eligible_ms: u64,
    pub(super) is_leaving: bool,
    /// It was told to go: only its stream's end is waited for.
    pub(super) is_dismissed_for_good: bool,
    pub(super) rank: Option<Rank>,
    /// The rank and the size of a group for which it last loaded a shard.
    pub(super) before: Option<(Rank, u32)>,
    /// Experts that it has loaded or was told to, by layer.
    pub(super) held: Vec<Vec<u32>>,
    pub(super) loading: Loading,
    pub(super) pulse: Pulse,
    pub(super) report: StepReport,
    /// It has become faster since it was left without a place.
    pub(super) is_faster: bool,
    pub(super) standing: Standing,
    /// Rows that came to each expert in this epoch, by layer.
    pub(super) loads: Vec<Vec<u64>>,
}

/// How far a rank is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Loading {
    pub(super) bytes: u64,
    pub(super) total_bytes: u64,
    /// When it last came on.
    pub(super) moved_ms: u64,
    pub(super) is_ready: bool,
}

impl Loading {
    pub(super) fn is_loaded(&self) -> bool {
        self.is_ready || (self.total_bytes > 0 && self.bytes >= self.total_bytes)
    }
}

impl Member {
    pub(super) fn new(id: MemberId, now_ms: u64) -> Self {
        Self {
            id,
            offer: None,
            heard_ms: now_ms,
            eligible_ms: now_ms,
            is_leaving: false,
            is_dismissed_for_good: false,
            rank: None,
            before: None,
            held: Vec::new(),
            loading: Loading::default(),
            pulse: Pulse::default(),
            report: StepReport::default(),
            is_faster: false,
            standing: Standing::default(),
            loads: Vec::new(),
        }
    }

    pub(super) fn address(&self) -> &str {
        self.offer.as_ref().map_or("", |offer| &offer.address)
    }

    /// What it could be in a world, if it has said who it is.
    pub(super) fn candidate(&self) -> Option<Candidate> {
        let offer = self.offer.as_ref().filter(|_| !self.is_dismissed_for_good)?;
        Some(Candidate {
            member: self.id,
            memory_bytes: offer.memory_bytes,
            host_expert_bytes: offer.host_expert_bytes,
            speed: offer.memory_bytes_per_s,
            experts_only: offer.experts_only,
            kv_dtypes: offer.kv_dtypes.clone(),
            before: self.before,
        })
    }

    /// Its place in a new world.
    pub(super) fn take_place(&mut self, rank: Rank, size: u32, placement: &Placement, now_ms: u64) {
        self.rank = Some(rank);
        self.before = Some((rank, size));
        self.held = (0..placement.layers.len()).map(|layer| placement.experts_of(rank, layer)).collect();
        self.loading = Loading { moved_ms: now_ms, ..Loading::default() };
        self.loads = Vec::new();
        self.is_faster = false;
        self.standing.one_shot = OneShot::default();
    }

    /// Takes in the rate at which it reads its memory now, if that is clearly higher
    /// than what is known: a little more is noise, and less is what others took.
    pub(super) fn is_clearly_faster(&mut self, bytes_per_s: u64) -> bool {
        let Some(offer) = &mut self.offer else { return false };
        let least = offer.memory_bytes_per_s.saturating_add(offer.memory_bytes_per_s / CLEAR_PART);
        if bytes_per_s <= least {
            return false;
        }
        offer.memory_bytes_per_s = bytes_per_s;
        true
    }
}

/// A rate is clearly higher if it is so by more than one part in so many.
const CLEAR_PART: u64 = 4;

/// What is remembered of those that failed, by their address: a worker that is
/// started anew is the same machine.
#[derive(Clone, Debug, Default)]
pub(super) struct Records {
    by_address: BTreeMap<String, Record>,
}

/// One of them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Record {
    /// Faults since it was last forgiven.
    num_strikes: u32,
    pub(super) num_faults: u32,
    pub(super) failed_ms: u64,
    /// It is left out until then.
    pub(super) until_ms: u64,
}

/// Addresses that are remembered; the one that failed longest ago is forgotten.
const MAX_RECORDS: usize = 256;

impl Records {
    /// It failed: it is left out, each time twice as long. After as much time
    /// again as it was left out for without a fault, it starts afresh.
    pub(super) fn strike(&mut self, address: &str, now_ms: u64, backoff_ms: u64, max_ms: u64) {
        let record = self.by_address.entry(address.to_owned()).or_default();
        let served_ms = record.until_ms.saturating_sub(record.failed_ms);
        if now_ms > record.until_ms.saturating_add(served_ms.saturating_mul(4)) {
            record.num_strikes = 0;
        }
        let doubled = backoff_ms.saturating_mul(1u64.checked_shl(record.num_strikes).unwrap_or(u64::MAX));
        record.num_strikes = record.num_strikes.saturating_add(1).min(62);
        record.num_faults = record.num_faults.saturating_add(1);
        record.failed_ms = now_ms;
        record.until_ms = now_ms.saturating_add(doubled.min(max_ms));
        if self.by_address.len() > MAX_RECORDS {
            let oldest = self.by_address.iter().min_by_key(|(_, record)| record.failed_ms);
            if let Some(address) = oldest.map(|(address, _)| address.clone()) {
                self.by_address.remove(&address);
            }
        }
    }

    pub(super) fn of(&self, address: &str) -> Record {
        self.by_address.get(address).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_fails_again_is_left_out_twice_as_long_until_it_has_done_well() {
        let mut records = Records::default();
        let mut left_out = |now_ms| {
            records.strike("a", now_ms, 100, 1000);
            records.of("a").until_ms - now_ms
        };
        assert_eq!([left_out(0), left_out(150), left_out(400)], [100, 200, 400]);
        assert_eq!([left_out(900), left_out(2000)], [800, 1000]);
        assert_eq!(left_out(100_000), 100, "it was well for long");
        assert_eq!(records.of("a").num_faults, 6);
        assert_eq!(records.of("b").until_ms, 0);
    }

    #[test]
    fn a_bounded_number_is_remembered() {
        let mut records = Records::default();
        (0..1000).for_each(|at| records.strike(&at.to_string(), at, 1, 1));
        assert_eq!(records.by_address.len(), MAX_RECORDS);
        assert_eq!(records.of("999").num_faults, 1);
    }
}
