//! Experts move to where there is less to do, while steps run.

use super::{Action, Membership, Pending, Phase};
use crate::cluster::config::BalanceRule;
use crate::cluster::placement::{Capacity, imbalance, rebalance};
use chorale_plan::{Placement, Rank, ToWorker};
use std::collections::BTreeSet;

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
    pub(super) num_rebalances: u64,
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

impl Membership {
    /// Looks at loads from time to time, and gives up a placement that ranks
    /// do not get ready for.
    pub(super) fn check_placement(&mut self) {
        let rule = self.config.balance;
        let loading_ms = self.config.timeouts.loading_ms;
        let Some(present) = &mut self.present else { return };
        if !matches!(present.phase, Phase::Serving) || rule.interval_ms == 0 {
            return;
        }
        if let Some(pending) = &present.pending {
            if self.now_ms.saturating_sub(pending.since_ms) >= loading_ms {
                tracing::warn!(
                    version = pending.placement.version,
                    "a placement is given up: ranks do not load it"
                );
                present.pending = None;
            }
            return;
        }
        if self.now_ms < self.balance.next_ms {
            return;
        }
        self.balance.next_ms = self.now_ms.saturating_add(rule.interval_ms);
        let model = &self.config.model;
        let mut rows = vec![vec![0u64; model.num_experts as usize]; model.num_layers as usize];
        for id in &present.draft.members {
            let loads = self.members.get(id).map_or(&[][..], |member| &member.loads);
            for (sum, rows) in rows.iter_mut().zip(loads) {
                sum.iter_mut().zip(rows).for_each(|(sum, rows)| *sum = sum.saturating_add(*rows));
            }
        }
        if !self.balance.look(rows, rule.min_rows) {
            return;
        }
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
        let epoch = present.epoch;
        for &id in &present.draft.members {
            let placement = placement.clone();
            self.actions.push(Action::Tell(id, ToWorker::Prepare { epoch, placement }));
        }
        present.pending = Some(Pending { placement, prepared: BTreeSet::new(), since_ms: self.now_ms });
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
        present.placement = pending.placement;
        self.balance.num_rebalances += 1;
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
