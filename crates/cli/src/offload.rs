//! Experts that do not fit the GPU: how much of the host's memory they may have.

use crate::exit::UsageError;
use crate::footprint::Footprint;
use crate::serve::room::available_bytes;
use crate::units;
use chorale_api::ExpertReader;
use chorale_cuda::{ExpertCounts, ExpertTraffic};
use chorale_plan::ExpertResidency;
use chorale_worker::join::Reading;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};

/// Of the memory that can be had, one part in so many is left to the rest of the
/// machine: pinned memory is never swapped.
const LEFT_SHARE: u64 = 8;
/// And at least so much, for this process and for the files that are read.
const LEFT_MIN_BYTES: u64 = 4 << 30;

/// Of the GPU's memory for experts, so many sixteenths are not home to any: two
/// for what is streamed, one that is kept free.
const MOVING_SIXTEENTHS: u64 = 3;
/// Where experts do not fit, keys and values get one part in so many of what is
/// left beside weights and steps, unless the user says how much.
const KV_SHARE: u64 = 4;

/// How often a worker says what became of its experts.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// What `--expert-host-memory` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExpertHostMemory {
    /// What is free, less a margin.
    Auto,
    /// None: experts are on GPUs.
    Off,
    /// So many bytes, all ranks of this process together.
    Bytes(u64),
}

impl ExpertHostMemory {
    /// `auto`, `off`, or a size.
    pub(crate) fn parse(text: &str) -> Result<Self, units::UnitError> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            size => units::parse_bytes(size).map(Self::Bytes),
        }
    }

    /// What each rank of this process may have.
    pub(crate) fn bytes_each(self, num_ranks: usize) -> u64 {
        self.bytes_each_of(num_ranks, available_bytes().unwrap_or(0))
    }

    fn bytes_each_of(self, num_ranks: usize, available_bytes: u64) -> u64 {
        let bytes = match self {
            Self::Auto => available_bytes.saturating_sub((available_bytes / LEFT_SHARE).max(LEFT_MIN_BYTES)),
            Self::Off => 0,
            Self::Bytes(bytes) => bytes,
        };
        bytes / num_ranks.max(1) as u64
    }
}

/// What the devices of this process say of experts that do not all fit them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Traffic(pub(crate) Vec<Arc<ExpertTraffic>>);

impl Traffic {
    /// The sums; `None` while all experts are on the GPUs.
    pub(crate) fn residency(&self) -> Option<ExpertResidency> {
        let devices = self.0.iter().map(|traffic| residency(traffic.counts()));
        let sum = devices.reduce(|sum, one| sum + one).unwrap_or_default();
        (sum.host_experts > 0).then_some(sum)
    }

    /// The sums for the doors of this process; `None` where there are no GPUs that keep any.
    pub(crate) fn reader(&self) -> Option<ExpertReader> {
        let traffic = self.clone();
        (!self.0.is_empty()).then(|| ExpertReader::new(move || traffic.residency()))
    }

    /// The same for a worker, which tells its coordinator.
    pub(crate) fn reading(&self) -> Option<Reading<ExpertResidency>> {
        let traffic = self.clone();
        (!self.0.is_empty()).then(|| Reading::new(move || traffic.residency()))
    }

    /// Says now and then what became of them. Never ends.
    pub(crate) async fn log(&self) {
        let mut ticks = interval(LOG_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut before = ExpertResidency::default();
        loop {
            ticks.tick().await;
            let Some(now) = self.residency() else { continue };
            let reads = |counts: &ExpertResidency| counts.hits + counts.misses + counts.streamed;
            if reads(&now) > reads(&before) {
                tracing::info!(
                    gpu_experts = now.gpu_experts,
                    host_experts = now.host_experts,
                    hits = now.hits - before.hits,
                    misses = now.misses - before.misses,
                    streamed = now.streamed - before.streamed,
                    moves = now.moves - before.moves,
                    "experts were read on the GPU, over the bus, and streamed"
                );
                before = now;
            }
        }
    }
}

/// A device's counts in the words that processes have.
fn residency(counts: ExpertCounts) -> ExpertResidency {
    let ExpertCounts { gpu_experts, host_experts, hits, misses, streamed, moves } = counts;
    ExpertResidency { gpu_experts, host_experts, hits, misses, streamed, moves }
}

/// The memory of ranks whose experts may lie with the host.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// Free on the GPU that has the least.
    pub(crate) free_bytes: u64,
    /// What each rank may have of the host.
    pub(crate) host_bytes: u64,
    /// Of each rank, for keys and values of the shortest context that is of use.
    pub(crate) least_kv_bytes: u64,
    /// What the user asked for, all ranks together.
    pub(crate) asked_kv_bytes: Option<u64>,
}

impl Memory {
    /// The KV cache of all ranks together where experts lie with the host; `None` where
    /// they need not, or where that does not help.
    pub(crate) fn kv_cache_bytes(&self, ranks: &[Footprint]) -> Result<Option<u64>, UsageError> {
        let Some(rank) = ranks.iter().max_by_key(|rank| rank.total()) else { return Ok(None) };
        let num_ranks = ranks.len() as u64;
        let asked = self.asked_kv_bytes.map(|bytes| bytes / num_ranks);
        let needed = rank.total().saturating_add(asked.unwrap_or(self.least_kv_bytes));
        let Some(left) = self.free_bytes.checked_sub(rank.total() - rank.expert_bytes) else {
            return Ok(None);
        };
        let kv = asked.unwrap_or((left / KV_SHARE).max(self.least_kv_bytes));
        if needed <= self.free_bytes || self.host_bytes == 0 || kv > left {
            return Ok(None);
        }
        let home = (left - kv) / 16 * (16 - MOVING_SIXTEENTHS);
        let hosted = rank.expert_bytes.saturating_sub(home);
        let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
        if hosted > self.host_bytes {
            return Err(UsageError(format!(
                "the model does not fit: of {:.1} GiB of experts, {:.1} GiB have no place on a GPU with {:.1} GiB \
                 free, and --expert-host-memory gives {:.1} GiB of the host to each rank; raise it, take more ranks \
                 with --tensor-parallel-size or --data-parallel-size, or lower --max-batch-tokens or --max-num-seqs",
                gib(rank.expert_bytes),
                gib(hosted),
                gib(self.free_bytes),
                gib(self.host_bytes),
            )));
        }
        tracing::warn!(
            expert_gib = gib(rank.expert_bytes),
            host_gib = gib(hosted),
            kv_gib = gib(kv),
            "not all experts fit the GPU: some lie with the host, and steps take longer"
        );
        Ok(Some(kv.saturating_mul(num_ranks)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn it_is_said_in_words_or_bytes() {
        assert_eq!(ExpertHostMemory::parse("auto"), Ok(ExpertHostMemory::Auto));
        assert_eq!(ExpertHostMemory::parse("off"), Ok(ExpertHostMemory::Off));
        assert_eq!(ExpertHostMemory::parse("64GiB"), Ok(ExpertHostMemory::Bytes(64 * GIB)));
        for bad in ["", "on", "64", "-1GiB", "Auto"] {
            assert!(ExpertHostMemory::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_machine_keeps_a_margin() {
        let auto = |ranks, available| ExpertHostMemory::Auto.bytes_each_of(ranks, available);
        assert_eq!(auto(1, 128 * GIB), 112 * GIB);
        assert_eq!(auto(2, 128 * GIB), 56 * GIB);
        assert_eq!(auto(1, 16 * GIB), 12 * GIB);
        assert_eq!(auto(1, 3 * GIB), 0);
        assert_eq!(ExpertHostMemory::Off.bytes_each_of(1, 128 * GIB), 0);
        assert_eq!(ExpertHostMemory::Bytes(10 * GIB).bytes_each_of(2, 0), 5 * GIB);
    }

    /// A rank with 10 GiB of experts and 5 of all else.
    fn rank() -> Footprint {
        Footprint { dense_bytes: 2 * GIB, expert_bytes: 10 * GIB, step_bytes: 2 * GIB, exchange_bytes: GIB }
    }

    fn memory(free: u64) -> Memory {
        let (host_bytes, least_kv_bytes) = (100 * GIB, GIB);
        Memory { free_bytes: free * GIB, host_bytes, least_kv_bytes, asked_kv_bytes: None }
    }

    fn kv(memory: Memory) -> Option<u64> {
        memory.kv_cache_bytes(&[rank()]).unwrap()
    }

    #[test]
    fn experts_lie_with_the_host_where_they_must() {
        assert_eq!(kv(memory(16)), None, "all fit, with keys and values");
        assert_eq!(kv(memory(15)), Some(10 * GIB / 4));
        assert_eq!(kv(memory(8)), Some(GIB), "the least");
        assert_eq!(kv(memory(5)), None, "without the rest nothing helps");
        assert_eq!(kv(Memory { host_bytes: 0, ..memory(10) }), None);
        let asked = |gib| Memory { asked_kv_bytes: Some(gib * GIB), ..memory(16) };
        assert_eq!(kv(asked(1)), None);
        assert_eq!(kv(asked(2)), Some(2 * GIB));
        assert_eq!(kv(asked(12)), None, "more than there is");
    }

    #[test]
    fn a_host_that_is_too_small_is_said_in_numbers() {
        let memory = Memory { host_bytes: 4 * GIB, ..memory(9) };
        let UsageError(refused) = memory.kv_cache_bytes(&[rank()]).unwrap_err();
        // 4 are left, 1 for keys and values; of 3, 13 sixteenths are home to experts.
        assert!(refused.contains("of 10.0 GiB of experts, 7.6 GiB have no place"), "{refused}");
        assert!(refused.contains("--expert-host-memory gives 4.0 GiB"), "{refused}");
    }

    #[test]
    fn ranks_share_what_is_asked_for() {
        let memory = Memory { asked_kv_bytes: Some(4 * GIB), ..memory(16) };
        assert_eq!(memory.kv_cache_bytes(&[rank(), rank()]).unwrap(), Some(4 * GIB));
    }

    #[test]
    fn nothing_is_said_where_all_are_on_gpus() {
        assert_eq!(Traffic::default().residency(), None);
        assert_eq!(Traffic(vec![Arc::default()]).residency(), None);
    }
}
