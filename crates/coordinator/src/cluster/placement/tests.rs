//! Proportions, memory and balance of placements.

use super::*;
use crate::cluster::draw::Draw;

fn capacity(slots: u64, speed: u64) -> Capacity {
    Capacity { slots, speed }
}

fn counts(placement: &Placement, num_ranks: u32) -> Vec<usize> {
    let held =
        |rank| (0..placement.layers.len()).map(|layer| placement.experts_of(Rank(rank), layer).len()).sum();
    (0..num_ranks).map(held).collect()
}

#[test]
fn experts_are_spread_by_speed_as_far_as_memory_goes() {
    assert_eq!(quotas(2, 12, &[capacity(100, 1), capacity(100, 1), capacity(100, 2)]), Some(vec![3, 3, 6]));
    assert_eq!(quotas(2, 12, &[capacity(100, 1), capacity(100, 1), capacity(6, 2)]), Some(vec![5, 4, 3]));
    assert_eq!(quotas(2, 12, &[capacity(12, 5), capacity(12, 1)]), Some(vec![6, 6]));
    assert_eq!(quotas(2, 12, &[capacity(12, 5), capacity(11, 1)]), None, "one expert has no place");
    assert_eq!(quotas(1, 2, &[capacity(9, 0), capacity(9, 0), capacity(9, 0)]), Some(vec![1, 1, 0]));
}

#[test]
fn the_first_placement_is_the_same_in_each_layer_and_in_order() {
    let placement = spread(2, 5, &[2, 3], &[&[], &[]]);
    for layer in 0..2 {
        assert_eq!(placement.experts_of(Rank(0), layer), [0, 1]);
        assert_eq!(placement.experts_of(Rank(1), layer), [2, 3, 4]);
    }
}

#[test]
fn ranks_keep_what_they_have_loaded() {
    let held: [&[Vec<u32>]; 3] = [&[vec![0, 1, 2], vec![0, 1, 2]], &[], &[vec![3, 9], vec![0, 4]]];
    let placement = spread(2, 6, &[2, 2, 2], &held);
    assert_eq!(placement.experts_of(Rank(0), 0), [0, 1]);
    assert_eq!(placement.experts_of(Rank(2), 0), [3, 5]);
    assert_eq!(placement.experts_of(Rank(1), 0), [2, 4]);
    assert_eq!(placement.experts_of(Rank(2), 1), [4, 5], "rank 0 was first to keep expert 0");
}

#[test]
fn a_hot_expert_is_copied_and_a_crowded_rank_relieved() {
    let placement = spread(1, 4, &[2, 2], &[&[], &[]]);
    let capacities = [capacity(4, 1), capacity(4, 1)];
    let loads = [vec![100, 1, 1, 1]];
    let next = rebalance(&placement, &loads, &capacities, 8).unwrap();
    assert_eq!(next.version, 1);
    assert_eq!(next.layers[0][0], [Rank(0), Rank(1)]);
    assert!(imbalance(&next, &loads, &capacities) < 1.1);

    let loads = [vec![50, 50, 1, 1]];
    let next = rebalance(&placement, &loads, &capacities, 1).unwrap();
    assert!(imbalance(&next, &loads, &capacities) < 1.1);
    assert_eq!(rebalance(&next, &loads, &capacities, 8), None, "it is good enough");
}

#[test]
fn without_memory_to_load_beside_nothing_moves() {
    let placement = spread(1, 4, &[2, 2], &[&[], &[]]);
    assert_eq!(rebalance(&placement, &[vec![50, 50, 1, 1]], &[capacity(2, 1); 2], 8), None);
}

#[test]
fn loads_of_another_model_and_no_loads_change_nothing() {
    let placement = spread(1, 4, &[2, 2], &[&[], &[]]);
    let capacities = [capacity(4, 1); 2];
    assert_eq!(rebalance(&placement, &[], &capacities, 8), None);
    assert_eq!(rebalance(&placement, &[vec![0; 4]], &capacities, 8), None);
    assert_eq!(imbalance(&placement, &[vec![0; 4]], &capacities), 1.0);
}

#[test]
fn any_cluster_gets_a_placement_that_is_whole_fits_and_only_gets_better() {
    let mut draw = Draw::new(7);
    for _ in 0..300 {
        let num_layers = 1 + draw.below(4) as u32;
        let num_experts = 1 + draw.below(24) as u32;
        let num_ranks = 1 + draw.below(6) as u32;
        let capacities: Vec<Capacity> = (0..num_ranks)
            .map(|_| capacity(draw.below(u64::from(num_layers * num_experts) * 2), draw.below(5)))
            .collect();
        let Some(quotas) = quotas(num_layers, num_experts, &capacities) else { continue };
        let held = vec![&[][..]; num_ranks as usize];
        let mut placement = spread(num_layers, num_experts, &quotas, &held);
        let loads: Vec<Vec<u64>> = (0..num_layers)
            .map(|_| (0..num_experts).map(|_| draw.below(10) * draw.below(50)).collect())
            .collect();
        for _ in 0..4 {
            for layer in &placement.layers {
                assert_eq!(layer.len(), num_experts as usize);
                assert!(layer.iter().all(|holders| !holders.is_empty() && holders.is_sorted()));
            }
            let counts = counts(&placement, num_ranks);
            let fits = |(count, capacity): (&usize, &Capacity)| *count as u64 <= capacity.slots;
            assert!(counts.iter().zip(&capacities).all(fits), "{counts:?} {capacities:?}");
            let Some(next) = rebalance(&placement, &loads, &capacities, 5) else { break };
            for (rank, capacity) in capacities.iter().enumerate() {
                let holds = |layers: &Placement, layer: usize, expert: usize| {
                    layers.layers[layer][expert].contains(&Rank(rank as u32))
                };
                let both = (0..num_layers as usize)
                    .flat_map(|layer| (0..num_experts as usize).map(move |expert| (layer, expert)))
                    .filter(|&(layer, expert)| {
                        holds(&placement, layer, expert) || holds(&next, layer, expert)
                    });
                assert!(both.count() as u64 <= capacity.slots, "old and new do not fit together");
            }
            assert!(imbalance(&next, &loads, &capacities) < imbalance(&placement, &loads, &capacities));
            placement = next;
        }
    }
}
