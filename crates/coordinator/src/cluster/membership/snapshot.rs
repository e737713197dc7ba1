//! What people and probes see.

use super::{Membership, Phase};
use crate::cluster::member::Member;
use crate::cluster::status::{ClusterState, ClusterStatus, MemberState, MemberStatus};
use chorale_plan::{Epoch, OneShot};

impl Membership {
    /// The cluster as it is now.
    pub fn status(&self) -> ClusterStatus {
        let present = self.present.as_ref();
        let mut members: Vec<MemberStatus> = self
            .members
            .values()
            .filter(|member| member.offer.is_some())
            .map(|one| self.member(one))
            .collect();
        members.sort_by_key(|member| member.rank.map_or(u32::MAX, |rank| rank.0));
        ClusterStatus {
            at_ms: self.now_ms,
            epoch: present.map_or(self.epoch, |present| present.epoch),
            state: self.state(),
            wanted_tensor_parallel_size: self.config.tensor_parallel_size,
            wanted_data_parallel_size: self.config.data_parallel_size,
            shape: present.map(|present| present.draft.shape),
            transport: self.config.transport.clone(),
            carrier: present.map(|present| present.carrier),
            one_shot: self.one_shot(),
            dense_dtype: self.config.dense_dtype,
            kv_dtype: self.config.kv_dtype,
            num_carrier_failures: self.carrier_failures.num_total,
            placement: present.map_or(0, |present| present.placement.version),
            num_rebalances: self.balance.num_rebalances,
            num_moved_experts: self.balance.num_moved_experts,
            imbalance: self.balance.imbalance,
            experts: self.experts.clone(),
            members,
            faults: self.faults.iter().cloned().collect(),
            num_faults: self.num_faults,
            num_epochs: self.num_epochs,
            num_recoveries: self.num_recoveries,
            last_pause_ms: self.last_pause_ms,
            total_pause_ms: self.total_pause_ms,
        }
    }

    /// The membership that there is, or the last one.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// What all ranks say.
    fn one_shot(&self) -> OneShot {
        let ranks = self.members.values().filter(|member| member.rank.is_some());
        let both = |one: OneShot, other: OneShot| OneShot {
            world: one.world && other.world,
            group: one.group && other.group,
        };
        ranks.map(|member| member.standing.one_shot).reduce(both).unwrap_or_default()
    }

    fn state(&self) -> ClusterState {
        let since_ms = self.since_ms;
        let Some(present) = &self.present else {
            return ClusterState::Lacking { lack: self.lack.clone(), since_ms };
        };
        match &present.phase {
            Phase::Serving => ClusterState::Serving,
            Phase::Inquest(inquest) => ClusterState::Inquiring { reason: inquest.reason.clone(), since_ms },
            Phase::Forming => {
                let ranks = || present.draft.members.iter().filter_map(|id| self.members.get(id));
                let sum = |bytes: fn(&Member) -> u64| {
                    ranks().map(bytes).fold(0u64, |sum, bytes| sum.saturating_add(bytes))
                };
                ClusterState::Forming {
                    reason: present.reason.clone(),
                    since_ms,
                    bytes: sum(|member| member.loading.bytes),
                    total_bytes: sum(|member| member.loading.total_bytes),
                }
            }
        }
    }

    fn member(&self, member: &Member) -> MemberStatus {
        let shape = self.present.as_ref().map(|present| present.draft.shape);
        let home = member.rank.zip(shape).and_then(|(rank, shape)| shape.home(rank));
        let loading = member.loading;
        let state = match member.rank {
            _ if member.is_leaving => MemberState::Leaving,
            Some(_) if loading.is_ready => MemberState::Ready,
            Some(_) => MemberState::Loading { bytes: loading.bytes, total_bytes: loading.total_bytes },
            None if member.eligible_ms > self.now_ms => {
                MemberState::Excluded { until_ms: member.eligible_ms }
            }
            None => MemberState::Waiting,
        };
        let offer = member.offer.as_ref();
        let text = |read: fn(&chorale_plan::Offer) -> &String| offer.map(read).cloned().unwrap_or_default();
        let num_held = member.held.iter().map(Vec::len).sum::<usize>() as u64;
        let residency = member.standing.experts;
        let room = self.present.as_ref().zip(member.rank);
        let room = room.and_then(|(present, rank)| present.draft.rooms.get(rank.0 as usize));
        MemberStatus {
            rank: member.rank,
            home,
            state,
            address: text(|offer| &offer.address),
            version: text(|offer| &offer.version),
            device: text(|offer| &offer.device),
            memory_bytes: offer.map_or(0, |offer| offer.memory_bytes),
            memory_bytes_per_s: offer.map_or(0, |offer| offer.memory_bytes_per_s),
            host_expert_bytes: offer.map_or(0, |offer| offer.host_expert_bytes),
            kv_dtype: home.and(room).map(|room| room.kv_dtype),
            residency,
            used_host_bytes: residency
                .map_or(0, |residency| residency.host_experts.saturating_mul(self.config.model.expert_bytes)),
            one_shot: member.standing.one_shot,
            num_experts: if member.rank.is_some() { num_held } else { 0 },
            num_rows: member.loads.iter().flatten().fold(0u64, |sum, rows| sum.saturating_add(*rows)),
            heard_ms: member.heard_ms,
            pulse: member.pulse,
            report: member.report,
            num_faults: self.records.of(member.address()).num_faults,
        }
    }
}
