//! By what the ranks of a world exchange rows. A pure function.

use super::config::ClusterConfig;
use chorale_plan::{Carrier, RowFormat, Shape};

/// NCCL, where all ranks have the same and it does what is asked for. `versions`
/// are those that the ranks offer.
pub(super) fn carrier(
    config: &ClusterConfig,
    shape: Shape,
    mut versions: impl Iterator<Item = Option<u32>>,
) -> Carrier {
    // Rows are shared out evenly over a group, and travel as they are.
    let is_even = config.room.max_step_tokens.is_multiple_of(shape.tensor_parallel_size);
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
    fn nccl_carries_where_all_ranks_have_the_same() {
        let mut config = test_config(3, 1);
        config.room.max_step_tokens = 8;
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
