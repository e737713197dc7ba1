//! The answer does not depend on the world: tokens and log-probabilities are
//! those of one rank, bit for bit.

use crate::world::{World, alone, open, shape, uneven, wait};
use chorale_plan::{Shape, StepPlan};
use chorale_worker::RankError;

/// Groups of 1, 2 and 3, one group and more, ranks with experts only. Each is
/// run where the model has as many key-value heads.
const SHAPES: [Shape; 8] = [
    shape(2, 1, 2),
    shape(1, 2, 2),
    shape(1, 1, 2),
    shape(2, 2, 4),
    shape(2, 2, 5),
    shape(1, 3, 4),
    shape(3, 1, 3),
    shape(1, 1, 4),
];

#[test]
fn every_world_gives_the_same_bits() {
    for model in ["a-small", "b-awkward", "c-ratio"] {
        let checkpoint = open(model);
        let expected = alone(&checkpoint, 4);
        for shape in SHAPES {
            if shape.tensor_parallel_size as usize > checkpoint.config().num_key_value_heads {
                continue;
            }
            let found = World::new(&checkpoint, shape).generate(4, 1, |_| 0);
            assert!(found == expected, "{model} on {shape:?}");
        }
    }
}

/// Slices are cut, halves and homes are empty, and tokens of a step in halves are
/// fed to one that is whole, and the other way round.
#[test]
fn steps_in_halves_give_the_same_bits() {
    let kinds: [fn(u64) -> bool; 3] = [|_| true, |step| step % 2 == 0, |step| step % 3 != 0];
    for (model, in_halves) in ["a-small", "b-awkward", "c-ratio"].into_iter().zip(kinds) {
        let checkpoint = open(model);
        for count in [4, 1] {
            let expected = alone(&checkpoint, count);
            for shape in SHAPES {
                if shape.tensor_parallel_size as usize > checkpoint.config().num_key_value_heads {
                    continue;
                }
                let world = World { in_halves, ..World::new(&checkpoint, shape) };
                assert!(world.generate(count, 1, |_| 0) == expected, "{model} on {shape:?}, {count}");
            }
        }
    }
}

#[test]
fn halves_without_room_for_two_are_refused() {
    let checkpoint = open("a-small");
    let world = World { in_halves: |_| true, ..World::new(&checkpoint, Shape::SOLO) };
    let plan = StepPlan { step: 1, in_halves: true, home_rows: Vec::new(), slices: Vec::new() };
    let errors = world.step(0, &plan).unwrap_err();
    assert!(
        matches!(&errors[..], [RankError::Refused { reason }] if reason.contains("halves")),
        "{errors:?}"
    );
    assert!(world.step(0, &StepPlan { step: 2, in_halves: false, ..plan }).is_ok());
}

#[test]
fn homes_without_sequences_take_part() {
    let checkpoint = open("b-awkward");
    let found = World::new(&checkpoint, shape(1, 4, 4)).generate(1, 1, |_| 0);
    assert!(found == alone(&checkpoint, 1));
}

#[test]
fn a_placement_changes_between_two_steps_and_the_answer_does_not() {
    let checkpoint = open("c-ratio");
    let world = World::new(&checkpoint, shape(1, 2, 3));
    let mut prepared = Vec::new();
    let found = world.generate(4, 1, |step| {
        if step == 2 {
            // The ranks load while steps run.
            let next = uneven(&checkpoint, 3, 5);
            prepared.extend(world.ranks.iter().map(|rank| rank.prepare(next.clone())));
        }
        if step == 6 {
            prepared.drain(..).for_each(|prepared| wait(prepared).unwrap());
        }
        if step < 6 { 0 } else { 5 }
    });
    assert!(found == alone(&checkpoint, 4));
    for (rank, id) in world.ranks.iter().zip(world.shape.ranks()) {
        let (loads, _) = rank.loads().unwrap();
        let placements = [0, 5].map(|version| uneven(&checkpoint, 3, version));
        for (layer, experts) in loads.iter().enumerate() {
            let held: Vec<u32> = placements.iter().flat_map(|it| it.experts_of(id, layer)).collect();
            assert!(experts.iter().zip(0..).all(|(&rows, expert)| rows == 0 || held.contains(&expert)));
        }
    }
    let total: u64 =
        world.ranks.iter().filter_map(|rank| rank.loads()).flat_map(|(rows, _)| rows.concat()).sum();
    let config = checkpoint.config();
    assert_eq!(total as usize % (config.num_layers() * config.experts_per_token), 0);
    assert!(total > 0);
}
