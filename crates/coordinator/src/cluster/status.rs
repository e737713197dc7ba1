//! What people and probes see of a cluster: plain data.

use super::draft::Lack;
use chorale_plan::{Epoch, Pulse, Rank, Shape, StepReport};

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
    /// How rows travel.
    pub transport: String,
    /// The placement's version.
    pub placement: u32,
    /// Experts that have been moved or copied to balance loads, since the start.
    pub num_rebalances: u64,
    /// The time of the busiest ranks as a multiple of what it would be if all were
    /// equally busy; `None` until loads are known.
    pub imbalance: Option<f64>,
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
