//! Shapes that workers of all sorts make.

use super::*;
use crate::cluster::test_config;

/// Wanted T2 x D2; 8 experts of 10 bytes in 2 layers; dense 100 at T1, 60 at T2,
/// and at least 20 for pages.
fn config() -> ClusterConfig {
    test_config(2, 2)
}

fn worker(member: u64, memory_bytes: u64) -> Candidate {
    Candidate {
        member: MemberId(member),
        memory_bytes,
        host_expert_bytes: 0,
        speed: 10,
        experts_only: false,
        before: None,
        kv_dtypes: vec![KvFormat::F32, KvFormat::Bf16, KvFormat::Fp8],
    }
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
fn a_group_keeps_keys_and_values_in_one_way() {
    use KvFormat::{Bf16, F32, Fp8};
    let cpu = |member| worker(member, 1000);
    let gpu = |member| Candidate { kv_dtypes: vec![Bf16, Fp8], ..worker(member, 1000) };
    let kept = |config: &ClusterConfig, workers: &[Candidate]| {
        let found = draft(config, workers).unwrap();
        (ids(&found), found.rooms.iter().map(|room| room.kv_dtype).collect::<Vec<_>>())
    };
    // Like sits with like, whoever came first.
    let mixed = [cpu(0), gpu(1), cpu(2), gpu(3)];
    assert_eq!(kept(&config(), &mixed), (vec![1, 3, 0, 2], vec![Bf16, Bf16, F32, F32]));
    // Where they do not, the narrower one decides.
    let odd = [gpu(0), gpu(1), gpu(2), cpu(3)];
    assert_eq!(kept(&config(), &odd), (vec![0, 1, 2, 3], vec![Bf16; 4]));
    // What was asked for is kept by all.
    let asked = ClusterConfig { kv_dtype: Some(Fp8), ..config() };
    assert_eq!(kept(&asked, &mixed).1, [Fp8; 4]);
    // Without a way in common there is no group of two.
    let only = Candidate { kv_dtypes: vec![F32], ..worker(1, 1000) };
    let found = draft(&config(), &[gpu(0), only.clone()]).unwrap();
    assert_eq!((found.shape.tensor_parallel_size, found.shape.data_parallel_size), (1, 2));
    let alone = ClusterConfig { data_parallel_size: 1, ..config() };
    assert_eq!(draft(&alone, &[gpu(0), only]).unwrap().shape.tensor_parallel_size, 1);
}

#[test]
fn a_host_has_room_for_experts_that_its_device_has_not() {
    let config = test_config(1, 1);
    let one = |host_expert_bytes| Candidate { host_expert_bytes, ..worker(0, 160) };
    // 100 dense, 20 for pages, and 4 experts of 160 bytes' worth.
    assert!(draft(&config, &[one(0)]).unwrap_err().reason.contains("experts of each layer have no place"));
    assert!(draft(&config, &[one(119)]).is_err());
    let found = draft(&config, &[one(120)]).unwrap();
    assert_eq!((found.quotas[0], found.rooms[0].num_full_blocks), (8, 8));
    // More of the host is no reason to take experts from the device.
    let found = draft(&config, &[one(u64::MAX)]).unwrap();
    assert_eq!((found.quotas[0], found.rooms[0].num_full_blocks), (8, 8));
    let large = Candidate { host_expert_bytes: u64::MAX, ..worker(0, 1000) };
    let found = (draft(&config, &[large]).unwrap(), draft(&config, &[worker(0, 1000)]).unwrap());
    assert_eq!(found.0.rooms, found.1.rooms);
    // Nor to give them to one whose device is full while another has room.
    let small = Candidate { host_expert_bytes: u64::MAX, ..expert_worker(1, 40) };
    let found = draft(&config, &[worker(0, 1000), small.clone()]).unwrap();
    let alone = Candidate { host_expert_bytes: 0, ..small };
    assert_eq!(found.quotas, draft(&config, &[worker(0, 1000), alone]).unwrap().quotas);
}

#[test]
fn narrower_keys_and_values_are_more_pages() {
    let mut config = test_config(1, 1);
    let page = crate::cluster::PageBytes { f32: 8, bf16: 4, fp8: 2 };
    config.model.splits[0].full_page_bytes = page;
    for kv in KvFormat::ALL {
        config.rooms.of_mut(kv).max_full_blocks = 1000;
    }
    let blocks = |kv_dtype| {
        let config = ClusterConfig { kv_dtype, ..config.clone() };
        draft(&config, &[worker(0, 1000)]).unwrap().rooms[0].num_full_blocks
    };
    // 1000 less 100 dense and 160 of experts; half of it, less 4 sliding pages.
    assert_eq!([None, Some(KvFormat::Bf16), Some(KvFormat::Fp8)].map(blocks), [45, 91, 183]);
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
