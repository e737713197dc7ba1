//! Shapes that workers of all sorts make.

use super::*;
use crate::cluster::test_config;

/// Wanted T2 x D2; 8 experts of 10 bytes in 2 layers; dense 100 at T1, 60 at T2,
/// and at least 20 for pages.
fn config() -> ClusterConfig {
    test_config(2, 2)
}

fn worker(member: u64, memory_bytes: u64) -> Candidate {
    Candidate { member: MemberId(member), memory_bytes, speed: 10, experts_only: false, before: None }
}

fn expert_worker(member: u64, memory_bytes: u64) -> Candidate {
    Candidate { experts_only: true, ..worker(member, memory_bytes) }
}

fn ids(draft: &Draft) -> Vec<u64> {
    draft.members.iter().map(|member| member.0).collect()
}

#[test]
fn the_wanted_shape_comes_first_and_what_is_more_holds_experts() {
    let workers: Vec<_> = (0..5).map(|id| worker(id, 1000)).collect();
    let found = draft(&config(), &workers).unwrap();
    assert_eq!(found.shape, Shape { tensor_parallel_size: 2, data_parallel_size: 2, num_ranks: 5 });
    assert_eq!(ids(&found), [0, 1, 2, 3, 4]);
    assert_eq!(found.quotas, [2, 2, 2, 1, 1]);
    assert_eq!(found.rooms[4].num_full_blocks, 0);
    assert!(found.rooms[0].num_full_blocks > 0);
}

#[test]
fn fewer_workers_make_fewer_groups_then_smaller_ones() {
    let shape = |num: u64| {
        let workers: Vec<_> = (0..num).map(|id| worker(id, 1000)).collect();
        let shape = draft(&config(), &workers).unwrap().shape;
        (shape.tensor_parallel_size, shape.data_parallel_size, shape.num_ranks)
    };
    assert_eq!([1, 2, 3, 4].map(shape), [(1, 1, 1), (2, 1, 2), (2, 1, 3), (2, 2, 4)]);
}

#[test]
fn workers_without_room_for_attention_take_experts() {
    let workers = [worker(0, 70), worker(1, 260), expert_worker(2, 1000), worker(3, 260)];
    let found = draft(&config(), &workers).unwrap();
    assert_eq!(found.shape, Shape { tensor_parallel_size: 2, data_parallel_size: 1, num_ranks: 4 });
    assert_eq!(ids(&found), [1, 3, 0, 2]);
}

#[test]
fn groups_are_given_up_for_memory() {
    // Four groups' dense weights would leave no room for the experts.
    let workers: Vec<_> = (0..4).map(|id| worker(id, 115)).collect();
    let found = draft(&config(), &workers).unwrap();
    assert_eq!((found.shape.tensor_parallel_size, found.shape.data_parallel_size), (2, 1));
    assert_eq!(found.quotas.iter().sum::<u32>(), 8);
}

#[test]
fn who_stays_keeps_its_rank_or_its_part() {
    let before = |member, rank| Candidate { before: Some((Rank(rank), 2)), ..worker(member, 1000) };
    // Rank 0 is gone: another even rank takes its part, as the weights are the same.
    let found = draft(&config(), &[before(1, 1), before(2, 2), before(3, 3)]).unwrap();
    assert_eq!(found.shape.data_parallel_size, 1);
    assert_eq!(ids(&found), [2, 1, 3]);
    // A new worker fills the hole.
    let found = draft(&config(), &[worker(9, 1000), before(1, 1), before(2, 2), before(3, 3)]).unwrap();
    assert_eq!(ids(&found), [9, 1, 2, 3]);
}

#[test]
fn what_is_lacking_is_said_in_numbers() {
    let lack = |workers: &[Candidate]| draft(&config(), workers).unwrap_err();
    assert_eq!(lack(&[]).reason, "no worker that takes attention is here; 2 would be one group");
    let found = lack(&[worker(0, 200)]);
    assert_eq!(found.bytes, 4 * 2 * 10, "{found:?}");
    assert!(found.reason.contains("4 of 8 experts"), "{found:?}");
    let found = lack(&[worker(0, 30)]);
    assert!(found.reason.contains("the largest worker has"), "{found:?}");
}
