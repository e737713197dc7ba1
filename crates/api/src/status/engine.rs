//! Whether there is an engine, as whoever starts it tells the doors. Draining is
//! not among the states: it is the server's, whatever the engine does.

use crate::openai::OpenAi;
use chorale_coordinator::Engine;
use chorale_coordinator::cluster::{ClusterState, ClusterStatus, MemberState};
use chorale_plan::ExpertResidency;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// Where the engine stands. Sent through a watch channel by whoever starts it.
#[derive(Clone, Debug)]
pub enum EngineStatus {
    /// Weights are being loaded.
    Loading(LoadStatus),
    /// Requests can be answered.
    Ready(Arc<Served>),
    /// There will be no engine until somebody acts.
    Failed {
        /// Why.
        reason: String,
    },
}

/// How far loading has come, over all ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadStatus {
    /// Bytes of the checkpoint that are on devices.
    pub bytes: u64,
    /// All bytes that are to be loaded; 0 while that is not known.
    pub total_bytes: u64,
    /// Tensors that are on devices.
    pub tensors: usize,
    /// All tensors that are to be loaded.
    pub total_tensors: usize,
    /// Ranks that have loaded all of theirs.
    pub ranks_ready: u32,
    /// All ranks.
    pub ranks_total: u32,
    /// When loading began.
    pub started: Instant,
}

/// What is there once everything is loaded.
pub struct Served {
    /// For its numbers, and for cancelling by id.
    pub engine: Engine,
    /// Answers the generation endpoints.
    pub openai: OpenAi,
    /// Ids of the token embedding.
    pub vocab_size: u32,
    /// Prompt and output together.
    pub max_model_len: u32,
    /// Positions of a KV page.
    pub block_size_tokens: u32,
    /// Whether computed pages are kept and found again.
    pub prefix_caching: bool,
    /// When it became ready.
    pub since: SystemTime,
    /// What becomes of experts that do not all fit GPUs, where this process has any.
    pub experts: Option<ExpertReader>,
}

/// Tells where experts lie now.
#[derive(Clone)]
pub struct ExpertReader(Arc<dyn Fn() -> Option<ExpertResidency> + Send + Sync>);

impl ExpertReader {
    /// `read` gives nothing while all experts are on GPUs.
    pub fn new(read: impl Fn() -> Option<ExpertResidency> + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }

    /// As it is now; `None` while all experts are on GPUs.
    pub fn read(&self) -> Option<ExpertResidency> {
        (self.0)()
    }
}

impl std::fmt::Debug for ExpertReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.read().fmt(f)
    }
}

impl LoadStatus {
    /// Nothing is loaded, and nothing is known.
    pub fn new(ranks_total: u32) -> Self {
        Self {
            bytes: 0,
            total_bytes: 0,
            tensors: 0,
            total_tensors: 0,
            ranks_ready: 0,
            ranks_total,
            started: Instant::now(),
        }
    }

    /// The time that is left, if loading goes on as it went.
    pub fn time_left(&self) -> Option<Duration> {
        let left = self.total_bytes.checked_sub(self.bytes)?;
        if self.bytes == 0 {
            return None;
        }
        Some(self.started.elapsed().mul_f64(left as f64 / self.bytes as f64))
    }
}

/// How far the ranks of a cluster have come in taking their places.
impl From<&ClusterStatus> for LoadStatus {
    fn from(cluster: &ClusterStatus) -> Self {
        let wanted = cluster.wanted_tensor_parallel_size * cluster.wanted_data_parallel_size;
        let (bytes, total_bytes) = match cluster.state {
            ClusterState::Forming { bytes, total_bytes, .. } => (bytes, total_bytes),
            ClusterState::Lacking { .. } | ClusterState::Inquiring { .. } | ClusterState::Serving => (0, 0),
        };
        let since_ms = match cluster.state {
            ClusterState::Forming { since_ms, .. }
            | ClusterState::Lacking { since_ms, .. }
            | ClusterState::Inquiring { since_ms, .. } => since_ms,
            ClusterState::Serving => cluster.at_ms,
        };
        let elapsed = Duration::from_millis(cluster.at_ms.saturating_sub(since_ms));
        let num_ready = cluster.members.iter().filter(|member| member.state == MemberState::Ready).count();
        let started = Instant::now();
        Self {
            bytes,
            total_bytes,
            ranks_ready: num_ready as u32,
            started: started.checked_sub(elapsed).unwrap_or(started),
            ..Self::new(cluster.shape.map_or(wanted, |shape| shape.num_ranks))
        }
    }
}

impl std::fmt::Debug for Served {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Served").field("max_model_len", &self.max_model_len).finish_non_exhaustive()
    }
}
