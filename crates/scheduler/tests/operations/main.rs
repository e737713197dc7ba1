//! Random operations against a simulated device that remembers what was written
//! to which page, so that every read can be checked against the sequence's own
//! tokens: it would notice a wrong page of the prefix cache, a window that was
//! given back too early, and anything lost in a preemption.

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

mod device;
mod world;

use chorale_plan::Rank;
use chorale_scheduler::{Config, HomeConfig};
use proptest::prelude::*;
use world::{Operation, Prompt, World};

fn homes(num_homes: std::ops::RangeInclusive<usize>) -> impl Strategy<Value = Vec<HomeConfig>> {
    let home = (4u32..16, 3u32..14, 1u32..12, 1u32..6);
    prop::collection::vec(home, num_homes).prop_map(|homes| {
        let home = |(rank, (full, sliding, tokens, slices)): (usize, (u32, u32, u32, u32))| HomeConfig {
            rank: Rank(rank as u32 * 2),
            num_full_blocks: full,
            num_sliding_blocks: sliding,
            max_step_tokens: tokens,
            max_step_slices: slices.min(tokens),
        };
        homes.into_iter().enumerate().map(home).collect()
    })
}

fn config() -> impl Strategy<Value = Config> {
    let sizes = (1u32..6, prop::option::weighted(0.9, 1u32..10), 12u32..60);
    let flags = (1u32..4, 0u32..3, prop::bool::weighted(0.8), prop::option::of(20u64..200));
    (homes(1..=3), sizes, flags).prop_map(
        |(homes, (block, window, context), (ahead, imbalance, caching, wait))| Config {
            homes,
            block_size_tokens: block,
            window_tokens: window,
            max_context_tokens: context,
            max_steps_in_flight: ahead,
            max_waiting_requests: 12,
            max_waiting_tokens: 200,
            max_waiting_ms: wait,
            max_home_imbalance_sequences: imbalance,
            prefix_caching: caching,
            prompt_token_cost: 1,
            output_token_cost: 2,
            eos_tokens: vec![world::EOS],
        },
    )
}

fn prompt() -> impl Strategy<Value = Prompt> {
    let tokens = (0u32..2, 0usize..24, prop::collection::vec(2u32..4, 1..6), 1u32..16);
    let account = (-1i32..2, 0u64..3, 1u32..4);
    let flags = (
        0u8..4,
        prop::bool::weighted(0.1),
        prop::bool::weighted(0.15),
        0u32..3,
        prop::option::weighted(0.1, 10u64..300),
    );
    (tokens, account, flags).prop_map(
        |(
            (stream, num_shared, own, max_tokens),
            (priority, key, weight),
            (salt, off, penalties, least, deadline),
        )| {
            Prompt {
                stream,
                num_shared,
                own,
                max_tokens,
                priority,
                key,
                weight,
                salt: salt / 3,
                prefix_caching: !off,
                penalties,
                min_tokens: least,
                deadline_in_ms: deadline,
            }
        },
    )
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        30 => prompt().prop_map(Operation::Submit),
        50 => Just(Operation::Schedule),
        50 => (0u32..1000).prop_map(Operation::Commit),
        4 => (0usize..8).prop_map(Operation::Cancel),
        4 => (1u64..60).prop_map(Operation::Wait),
        1 => Just(Operation::Uncompute),
        2 => (0usize..8).prop_map(Operation::Hold),
        1 => (0usize..8).prop_map(Operation::Release),
        1 => homes(1..=3).prop_map(Operation::Rehome),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) })]

    #[test]
    fn every_read_finds_the_sequences_own_tokens_and_every_sequence_ends(
        config in config(),
        operations in prop::collection::vec(operation(), 1..250),
    ) {
        let mut world = World::new(config);
        for operation in operations {
            world.apply(operation);
        }
        world.drain();
    }

    #[test]
    fn the_same_calls_give_the_same_plans(
        config in config(),
        operations in prop::collection::vec(operation(), 1..100),
    ) {
        let plans = || {
            let mut world = World::new(config.clone());
            operations.iter().cloned().for_each(|operation| world.apply(operation));
            world.drain();
            world.plans
        };
        prop_assert_eq!(plans(), plans());
    }
}
