//! Experts move to where there is less to do, while steps run.

use super::{Action, Membership, Pending, Phase};
use crate::cluster::config::BalanceRule;
use crate::cluster::placement::{Capacity, imbalance, rebalance};
use crate::cluster::status::ExpertLoads;
use chorale_plan::{Placement, Rank, ToWorker};
use std::collections::BTreeSet;
use std::sync::Arc;

/// What is known of loads.
#[derive(Clone, Debug, Default)]
pub(super) struct Balance {
    next_ms: u64,
    /// All rows of the epoch when they were last looked at.
    seen: Vec<Vec<u64>>,
    /// Rows of late: those of the last interval, and half of what was before.
    recent: Vec<Vec<u64>>,
    /// Intervals in a row with too much imbalance.
    num_over: u32,
    pub(super) imbalance: Option<f64>,
    /// Placements in a row that ranks did not load.
    num_given_up: u32,
    pub(super) num_rebalances: u64,
    pub(super) num_moved_experts: u64,
}

impl Balance {
    /// An epoch begins. What is known of loads is used from the start.
    pub(super) fn begin(
        &mut self,
        placement: Placement,
        capacities: &[Capacity],
        rule: &BalanceRule,
        now_ms: u64,
    ) -> Placement {
        self.seen = Vec::new();
        self.num_over = 0;
        self.num_given_up = 0;
        self.imbalance = None;
        self.next_ms = now_ms.saturating_add(rule.interval_ms);
        let is_known = rule.interval_ms > 0 && self.recent.len() == placement.layers.len();
        if !is_known || imbalance(&placement, &self.recent, capacities) < rule.min_imbalance {
            return placement;
        }
        match rebalance(&placement, &self.recent, capacities, rule.max_changes) {
            Some(better) => Placement { version: 0, ..better },
            None => placement,
        }
    }

    /// Takes in all rows of the epoch so far; false if there were too few.
    fn look(&mut self, rows: Vec<Vec<u64>>, min_rows: u64) -> bool {
        let before = |layer: usize, expert: usize, table: &[Vec<u64>]| {
            table.get(layer).and_then(|rows| rows.get(expert)).copied().unwrap_or(0)
        };
        let new: Vec<Vec<u64>> = rows
            .iter()
            .enumerate()
            .map(|(layer, rows)| {
                let new =
                    |(expert, rows): (usize, &u64)| rows.saturating_sub(before(layer, expert, &self.seen));
                rows.iter().enumerate().map(new).collect()
            })
            .collect();
        if new.iter().flatten().fold(0u64, |sum, rows| sum.saturating_add(*rows)) < min_rows {
            return false;
        }
        let recent = new.iter().enumerate().map(|(layer, rows)| {
            let recent =
                |(expert, rows): (usize, &u64)| rows.saturating_add(before(layer, expert, &self.recent) / 2);
            rows.iter().enumerate().map(recent).collect()
        });
        self.recent = recent.collect();
        self.seen = rows;
        true
    }
}

/// A placement that could not be loaded is not tried again for so many intervals
/// at most.
const MAX_PAUSE_INTERVALS: u64 = 64;

impl Membership {
    /// Looks at loads from time to time, and gives up a placement that ranks
    /// do not get ready for.
    pub(super) fn check_placement(&mut self) {
        let interval_ms = self.config.balance.interval_ms;
        let loading_ms = self.timeouts().loading_ms;
        let Some(present) = &self.present else { return };
        if !matches!(present.phase, Phase::Serving) || interval_ms == 0 {
            return;
        }
        match &present.pending {
            Some(pending) if self.now_ms.saturating_sub(pending.since_ms) >= loading_ms => {
                self.give_up_placement("ranks do not load it");
            }
            Some(_) => {}
            None if self.now_ms < self.balance.next_ms => {}
            None => {
                self.balance.next_ms = self.now_ms.saturating_add(interval_ms);
                self.look_at_loads();
            }
        }
    }

    /// Rows that came to each expert in this epoch, by layer.
    fn rows(&self) -> Vec<Vec<u64>> {
        let model = &self.config.model;
        let mut rows = vec![vec![0u64; model.num_experts as usize]; model.num_layers as usize];
        let members = self.present.iter().flat_map(|present| &present.draft.members);
        for loads in members.filter_map(|id| Some(&self.members.get(id)?.loads)) {
            for (sum, rows) in rows.iter_mut().zip(loads) {
                sum.iter_mut().zip(rows).for_each(|(sum, rows)| *sum = sum.saturating_add(*rows));
            }
        }
        rows
    }

    /// A rank has said what came to its experts.
    pub(super) fn sum_up_loads(&mut self) {
        self.experts = Arc::new(ExpertLoads::new(&self.rows()));
    }

    fn look_at_loads(&mut self) {
        let rule = self.config.balance;
        let rows = self.rows();
        if !self.balance.look(rows, rule.min_rows) {
            return;
        }
        let Some(present) = &mut self.present else { return };
        let capacities = &present.draft.capacities;
        let found = imbalance(&present.placement, &self.balance.recent, capacities);
        self.balance.imbalance = Some(found);
        self.balance.num_over = if found >= rule.min_imbalance { self.balance.num_over + 1 } else { 0 };
        if self.balance.num_over < rule.min_intervals {
            return;
        }
        self.balance.num_over = 0;
        let better = rebalance(&present.placement, &self.balance.recent, capacities, rule.max_changes);
        let Some(mut placement) = better else { return };
        present.version += 1;
        placement.version = present.version;
        tracing::info!(version = placement.version, imbalance = found, "experts are to move");
        let epoch = present.epoch;
        for &id in &present.draft.members {
            let placement = placement.clone();
            self.actions.push(Action::Tell(id, ToWorker::Prepare { epoch, placement }));
        }
        present.pending = Some(Pending { placement, prepared: BTreeSet::new(), since_ms: self.now_ms });
    }

    /// The placement that ranks load is not going to be used, and the old one
    /// stays. Another is tried later, and later still each time: a rank without
    /// memory to spare has none the next time either.
    fn give_up_placement(&mut self, reason: &str) {
        let Some(present) = &mut self.present else { return };
        let Some(pending) = present.pending.take() else { return };
        tracing::warn!(reason, version = pending.placement.version, "a placement is given up");
        let doubled = 1u64.checked_shl(self.balance.num_given_up).unwrap_or(u64::MAX);
        let pause_ms = self.config.balance.interval_ms.saturating_mul(doubled.min(MAX_PAUSE_INTERVALS));
        self.balance.num_given_up = self.balance.num_given_up.saturating_add(1);
        self.balance.next_ms = self.now_ms.saturating_add(pause_ms);
    }

    /// A rank cannot load a placement.
    pub(super) fn unprepared(&mut self, rank: Rank, version: u32, reason: &str) {
        let pending = self.present.as_ref().and_then(|present| present.pending.as_ref());
        if pending.is_some_and(|pending| pending.placement.version == version) {
            self.give_up_placement(&format!("rank {} cannot load it: {reason}", rank.0));
        }
    }

    /// A rank has loaded a placement. When all have, steps use it.
    pub(super) fn prepared(&mut self, rank: Rank, version: u32) {
        let Some(present) = &mut self.present else { return };
        let Some(pending) = &mut present.pending else { return };
        if !matches!(present.phase, Phase::Serving) || pending.placement.version != version {
            return;
        }
        pending.prepared.insert(rank);
        if pending.prepared.len() < present.draft.shape.num_ranks as usize {
            return;
        }
        let Some(pending) = present.pending.take() else { return };
        self.balance.num_moved_experts += num_changed(&present.placement, &pending.placement);
        self.balance.num_rebalances += 1;
        self.balance.num_given_up = 0;
        present.placement = pending.placement;
        self.balance.imbalance =
            Some(imbalance(&present.placement, &self.balance.recent, &present.draft.capacities));
        for (&id, rank) in present.draft.members.iter().zip(present.draft.shape.ranks()) {
            if let Some(member) = self.members.get_mut(&id) {
                let layers = 0..present.placement.layers.len();
                member.held = layers.map(|layer| present.placement.experts_of(rank, layer)).collect();
            }
        }
        self.actions.push(Action::Place { epoch: present.epoch, version });
    }
}

/// Experts that other ranks hold than before.
fn num_changed(before: &Placement, after: &Placement) -> u64 {
    let layers = before.layers.iter().zip(&after.layers);
    let experts = layers.flat_map(|(before, after)| before.iter().zip(after));
    experts.filter(|(before, after)| before != after).count() as u64
}
