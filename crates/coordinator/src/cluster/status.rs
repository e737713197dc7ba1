//! What people and probes see of a cluster: plain data.

use super::draft::Lack;
use chorale_plan::{
    Carrier, DenseFormat, Epoch, ExpertResidency, KvFormat, OneShot, Pulse, Rank, Shape, StepReport,
};
use std::cmp::Reverse;
use std::sync::Arc;

/// The cluster at one moment. Times are in milliseconds since the coordinator
/// started.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterStatus {
    /// When this was written down.
    pub at_ms: u64,
    /// The membership, the last one if there is none now.
    pub epoch: Epoch,
    /// What goes on.
    pub state: ClusterState,
    /// Ranks of a group, as wanted.
    pub wanted_tensor_parallel_size: u32,
    /// Groups, as wanted.
    pub wanted_data_parallel_size: u32,
    /// The shape, while there is a membership.
    pub shape: Option<Shape>,
    /// How frames travel.
    pub transport: String,
    /// By what ranks exchange rows, while there is a membership.
    pub carrier: Option<Carrier>,
    /// Where all ranks' small exchanges take one launch each.
    pub one_shot: OneShot,
    /// How all ranks keep dense weights.
    pub dense_dtype: DenseFormat,
    /// How all ranks are to keep keys and values; `None` leaves it to each group.
    pub kv_dtype: Option<KvFormat>,
    /// Times that NCCL failed, where no rank did.
    pub num_carrier_failures: u64,
    /// The placement's version.
    pub placement: u32,
    /// Placements that were taken into use to balance loads, since the start.
    pub num_rebalances: u64,
    /// Experts that they moved or copied.
    pub num_moved_experts: u64,
    /// The time of the busiest ranks as a multiple of what it would be if all were
    /// equally busy; `None` until loads are known.
    pub imbalance: Option<f64>,
    /// What came to experts in this epoch.
    pub experts: Arc<ExpertLoads>,
    /// All workers that are connected, ranks first.
    pub members: Vec<MemberStatus>,
    /// The last faults, the latest last.
    pub faults: Vec<FaultStatus>,
    /// All faults since the start.
    pub num_faults: u64,
    /// Memberships since the start.
    pub num_epochs: u64,
    /// Times that steps could run again after they could not.
    pub num_recoveries: u64,
    /// How long no step could run, the last time.
    pub last_pause_ms: u64,
    /// How long no step could run, all times together.
    pub total_pause_ms: u64,
}

/// What came to experts: as much of it as can be shown for any model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExpertLoads {
    /// Rows that came to each expert, over all layers; empty until ranks say so.
    pub rows: Vec<u64>,
    /// The busiest expert of each layer.
    pub busiest: Vec<BusiestExpert>,
}

/// The expert of a layer to which most rows came.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BusiestExpert {
    /// Which; the first among equals.
    pub expert: u32,
    /// Its share of the layer's rows; 0 if there were none.
    pub share: f64,
}

impl ExpertLoads {
    /// Sums up the rows of each layer's experts.
    pub(super) fn new(layers: &[Vec<u64>]) -> Self {
        let add = |sum: u64, rows: &u64| sum.saturating_add(*rows);
        let num_experts = layers.first().map_or(0, Vec::len);
        let of_expert = |expert: usize| layers.iter().filter_map(|rows| rows.get(expert)).fold(0, add);
        let busiest = layers.iter().map(|rows| {
            let all = rows.iter().fold(0, add);
            let most = rows.iter().zip(0..).max_by_key(|&(rows, expert)| (*rows, Reverse(expert)));
            let share = |rows: u64| if all == 0 { 0.0 } else { rows as f64 / all as f64 };
            most.map_or_else(BusiestExpert::default, |(rows, expert)| BusiestExpert {
                expert,
                share: share(*rows),
            })
        });
        Self { rows: (0..num_experts).map(of_expert).collect(), busiest: busiest.collect() }
    }
}

/// What goes on in a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClusterState {
    /// There are not enough workers.
    Lacking {
        /// Of what.
        lack: Lack,
        /// Since when no step can run.
        since_ms: u64,
    },
    /// Ranks load their shards and connect.
    Forming {
        /// Why.
        reason: String,
        /// Since when no step can run.
        since_ms: u64,
        /// Bytes that are loaded, by all ranks.
        bytes: u64,
        /// Bytes to load, of all ranks.
        total_bytes: u64,
    },
    /// Steps can run.
    Serving,
    /// A step was lost, and the culprit is being found.
    Inquiring {
        /// The first word of it.
        reason: String,
        /// Since when no step can run.
        since_ms: u64,
    },
}

impl ClusterState {
    /// Why no step can run; `None` while they can.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Lacking { lack, .. } => Some(&lack.reason),
            Self::Forming { reason, .. } | Self::Inquiring { reason, .. } => Some(reason),
            Self::Serving => None,
        }
    }
}

/// One worker.
#[derive(Clone, Debug, PartialEq)]
pub struct MemberStatus {
    /// Its rank, if it has a place.
    pub rank: Option<Rank>,
    /// The first rank of its group; `None` without attention.
    pub home: Option<Rank>,
    /// How it stands.
    pub state: MemberState,
    /// Where other workers reach it.
    pub address: String,
    /// Its release.
    pub version: String,
    /// Its device.
    pub device: String,
    /// Memory that it offers.
    pub memory_bytes: u64,
    /// How fast it reads its memory.
    pub memory_bytes_per_s: u64,
    /// Memory of its host that it offers for experts.
    pub host_expert_bytes: u64,
    /// How it keeps keys and values; `None` without attention.
    pub kv_dtype: Option<KvFormat>,
    /// Where its experts lie; `None` while all lie on its device.
    pub residency: Option<ExpertResidency>,
    /// What those in its host's memory take.
    pub used_host_bytes: u64,
    /// Which of its small exchanges take one launch.
    pub one_shot: OneShot,
    /// Experts that it holds, over all layers.
    pub num_experts: u64,
    /// Rows that came to its experts in this epoch.
    pub num_rows: u64,
    /// When it was last heard.
    pub heard_ms: u64,
    /// Its last sign of life.
    pub pulse: Pulse,
    /// Its last step.
    pub report: StepReport,
    /// Faults that it was the culprit of.
    pub num_faults: u32,
}

/// How a worker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberState {
    /// It waits for a place, or is not needed.
    Waiting,
    /// It loads its shard.
    Loading {
        /// Bytes so far.
        bytes: u64,
        /// All bytes.
        total_bytes: u64,
    },
    /// It has its place.
    Ready,
    /// It failed, and is left out for a while.
    Excluded {
        /// Until when.
        until_ms: u64,
    },
    /// It is about to leave.
    Leaving,
}

/// Something that went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultStatus {
    /// When.
    pub at_ms: u64,
    /// In which membership.
    pub epoch: Epoch,
    /// The culprit's rank; `None` if nobody is.
    pub rank: Option<Rank>,
    /// The culprit's address.
    pub address: Option<String>,
    /// What happened.
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_are_summed_up_by_expert_and_by_layer() {
        let loads = ExpertLoads::new(&[vec![1, 6, 1], vec![0, 0, 0], vec![5, 5, u64::MAX]]);
        assert_eq!(loads.rows, [6, 11, u64::MAX]);
        let busiest: Vec<_> = loads.busiest.iter().map(|one| (one.expert, one.share)).collect();
        assert_eq!(busiest, [(1, 0.75), (0, 0.0), (2, 1.0)]);
        assert_eq!(ExpertLoads::new(&[]), ExpertLoads::default());
    }
}
