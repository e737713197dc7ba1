//! By what the ranks of a world exchange rows: a pure function, and what is
//! remembered of NCCL where it failed.

use super::config::ClusterConfig;
use chorale_plan::{Carrier, RowFormat, Shape};
use std::collections::BTreeSet;

/// So often NCCL may fail the same workers before they go without it.
const MAX_FAILURES: u32 = 2;

/// After a world has served for so long by NCCL, what failed before is forgotten.
const FORGIVEN_MS: u64 = 600_000;

/// How often NCCL has failed the workers that were the last to have it.
#[derive(Clone, Debug, Default)]
pub(super) struct Failures {
    /// The workers' processes.
    sessions: BTreeSet<u64>,
    num: u32,
    /// Of all workers, since the start.
    pub(super) num_total: u64,
}

impl Failures {
    /// NCCL failed these workers, after they had served by it for `served_ms`. True
    /// if they are to go without it from now on.
    pub(super) fn note(&mut self, sessions: BTreeSet<u64>, served_ms: u64) -> bool {
        if sessions != self.sessions || served_ms >= FORGIVEN_MS {
            (self.sessions, self.num) = (sessions, 0);
        }
        self.num = self.num.saturating_add(1);
        self.num_total = self.num_total.saturating_add(1);
        self.num >= MAX_FAILURES
    }

    /// Whether a world of these workers goes without NCCL: until another worker is
    /// among them, or one has been started anew.
    pub(super) fn forbid(&self, sessions: &BTreeSet<u64>) -> bool {
        self.num >= MAX_FAILURES && *sessions == self.sessions
    }
}

/// NCCL, where all ranks have the same and it does what is asked for. `versions`
/// are those that the ranks offer.
pub(super) fn carrier(
    config: &ClusterConfig,
    shape: Shape,
    mut versions: impl Iterator<Item = Option<u32>>,
) -> Carrier {
    // Rows are shared out evenly over a group, and travel as they are.
    // The same for all ranks, however they keep keys and values.
    let is_even = config.rooms.f32.max_step_tokens.is_multiple_of(shape.tensor_parallel_size);
    let is_asked = shape.num_ranks > 1 && is_even && config.exchange.dispatch == RowFormat::F32;
    match versions.next().flatten() {
        Some(first) if is_asked && versions.all(|version| version == Some(first)) => Carrier::Nccl,
        _ => Carrier::Frames,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::test_config;

    #[test]
    fn who_was_failed_twice_goes_without_until_somebody_is_new() {
        let sessions = |sessions: &[u64]| sessions.iter().copied().collect::<BTreeSet<u64>>();
        let (two, three) = (sessions(&[1, 2]), sessions(&[1, 2, 3]));
        let mut failures = Failures::default();
        assert!(!failures.note(two.clone(), 0) && !failures.forbid(&two));
        assert!(failures.note(two.clone(), 1000) && failures.forbid(&two));
        assert!(!failures.forbid(&three), "a worker has joined");
        assert!(!failures.note(three.clone(), 0) && !failures.forbid(&three) && !failures.forbid(&two));
        assert!(!failures.note(three.clone(), FORGIVEN_MS), "it had been well for long");
        assert!(failures.note(three.clone(), FORGIVEN_MS - 1) && failures.forbid(&three));
        assert_eq!(failures.num_total, 5);
    }

    #[test]
    fn nccl_carries_where_all_ranks_have_the_same() {
        let mut config = test_config(3, 1);
        config.rooms.f32.max_step_tokens = 8;
        let shape = |tensor_parallel_size, num_ranks| Shape {
            tensor_parallel_size,
            data_parallel_size: 1,
            num_ranks,
        };
        let chosen = |config: &ClusterConfig, shape: Shape, versions: &[Option<u32>]| {
            assert_eq!(versions.len(), shape.num_ranks as usize);
            carrier(config, shape, versions.iter().copied())
        };
        let (one, other) = (Some(22_809), Some(22_703));
        assert_eq!(chosen(&config, shape(2, 2), &[one, one]), Carrier::Nccl);
        assert_eq!(chosen(&config, shape(1, 3), &[one, one, one]), Carrier::Nccl);
        assert_eq!(chosen(&config, shape(2, 2), &[one, other]), Carrier::Frames);
        assert_eq!(chosen(&config, shape(2, 3), &[one, one, None]), Carrier::Frames, "a CPU");
        assert_eq!(chosen(&config, shape(2, 2), &[None, None]), Carrier::Frames);
        assert_eq!(chosen(&config, shape(1, 1), &[one]), Carrier::Frames, "nothing crosses");
        assert_eq!(chosen(&config, shape(3, 3), &[one; 3]), Carrier::Frames, "8 rows over 3 ranks");
        config.exchange.dispatch = RowFormat::Int8;
        assert_eq!(chosen(&config, shape(2, 2), &[one, one]), Carrier::Frames);
    }
}
