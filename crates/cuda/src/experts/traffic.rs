//! What became of experts that do not all fit the GPU, for metrics.

use super::table::Kind;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts that a device keeps up to date, for anybody to look at.
#[derive(Debug, Default)]
pub struct ExpertTraffic {
    gpu_experts: AtomicU64,
    host_experts: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
    streamed: AtomicU64,
    moves: AtomicU64,
}

/// The counts at one time. An expert is read once for each call of its layer in
/// which any row chose it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExpertCounts {
    /// Experts that lie on the GPU.
    pub gpu_experts: u64,
    /// Experts that lie with the host.
    pub host_experts: u64,
    /// Experts that were read on the GPU, where they lay.
    pub hits: u64,
    /// Experts that kernels read over the bus.
    pub misses: u64,
    /// Experts that were copied to the GPU for one call.
    pub streamed: u64,
    /// Changes of places, of one expert or of two.
    pub moves: u64,
}

impl ExpertTraffic {
    /// The counts now. They lag behind the steps by a few.
    pub fn counts(&self) -> ExpertCounts {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        ExpertCounts {
            gpu_experts: of(&self.gpu_experts),
            host_experts: of(&self.host_experts),
            hits: of(&self.hits),
            misses: of(&self.misses),
            streamed: of(&self.streamed),
            moves: of(&self.moves),
        }
    }

    pub(super) fn lie(&self, gpu: u64, host: u64) {
        self.gpu_experts.store(gpu, Ordering::Relaxed);
        self.host_experts.store(host, Ordering::Relaxed);
    }

    pub(super) fn read(&self, kind: Kind, count: u32) {
        let counter = match kind {
            Kind::Gpu => &self.hits,
            Kind::Host => &self.misses,
            Kind::Streamed => &self.streamed,
        };
        counter.fetch_add(u64::from(count), Ordering::Relaxed);
    }

    pub(super) fn moved(&self) {
        self.moves.fetch_add(1, Ordering::Relaxed);
    }
}
