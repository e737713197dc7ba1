//! Places one after the other: what is held stays, what is missing is loaded.

use crate::world::{World, alone, assignment, open, shape, start_ranks, uneven, wait};
use chorale_link::{LocalTransport, local};
use chorale_plan::{Rank as RankId, Room, Shape, StepPlan};
use chorale_worker::RankError;
use std::sync::Arc;
use std::time::Duration;

fn transport() -> Box<LocalTransport> {
    Box::new(local(1, Duration::from_secs(1)).remove(0))
}

#[test]
fn survivors_keep_their_weights_and_give_the_same_answers() {
    let checkpoint = open("a-small");
    let world = World::new(&checkpoint, shape(1, 2, 3));
    world.generate(3, 1, |_| 0);
    let mut ranks = world.ranks;
    world.abort.abort();
    // Rank 1 is lost; rank 2, with experts only until now, becomes a home.
    ranks.remove(1);
    let survivors = shape(1, 2, 2);
    let world = World::of(ranks, &checkpoint, 2, survivors, uneven(&checkpoint, 2, 0));
    let first = |rank: usize| world.loaded[rank][0];
    let dense_bytes = first(0).bytes;
    assert!(dense_bytes > 0 && dense_bytes < first(0).total_bytes, "rank 0 lacks experts only");
    assert!(first(1).bytes < dense_bytes, "the new home had no attention");
    for loaded in &world.loaded {
        let last = loaded.last().unwrap();
        assert_eq!((last.bytes, last.tensors), (last.total_bytes, last.total_tensors));
    }
    assert!(world.generate(3, 1, |_| 0) == alone(&checkpoint, 3));

    // The same place again: nothing is loaded, and steps count anew.
    let World { ranks, shape, .. } = world;
    let world = World::of(ranks, &checkpoint, 3, shape, uneven(&checkpoint, 2, 0));
    for loaded in &world.loaded {
        assert_eq!(loaded.len(), 1);
        assert_eq!(loaded[0].bytes, loaded[0].total_bytes);
    }
    assert!(world.generate(3, 77, |_| 0) == alone(&checkpoint, 3));

    // Another checkpoint: everything is loaded.
    let other = open("b-awkward");
    let World { ranks, shape, .. } = world;
    let world = World::of(ranks, &other, 4, shape, uneven(&other, 2, 0));
    assert_eq!(world.loaded[0][0].bytes, 0);
    assert!(world.generate(2, 1, |_| 0) == alone(&other, 2));
}

#[test]
fn a_place_that_is_left_is_no_place() {
    let checkpoint = open("a-small");
    let world = World::new(&checkpoint, Shape::SOLO);
    let rank = &world.ranks[0];
    world.generate(1, 1, |_| 0);
    assert!(rank.loads().is_some());
    wait(rank.leave()).unwrap();
    assert!(rank.loads().is_none());
    let plan = StepPlan { step: 1, in_halves: false, home_rows: Vec::new(), slices: Vec::new() };
    assert!(matches!(wait(rank.step(0, plan)), Err(RankError::Refused { .. })));
    assert!(matches!(wait(rank.prepare(uneven(&checkpoint, 1, 1))), Err(RankError::Refused { .. })));
}

#[test]
fn what_cannot_be_a_place_is_refused_and_the_next_one_may_be_better() {
    let checkpoint = open("a-small");
    let rank = start_ranks(1).remove(0);
    let good = assignment(&checkpoint, 1, Shape::SOLO, RankId(0), uneven(&checkpoint, 1, 0));
    let with = |change: &dyn Fn(&mut chorale_plan::Assignment)| {
        let mut assignment = good.clone();
        change(&mut assignment);
        assignment
    };
    let huge = Room { num_full_blocks: u32::MAX, block_size_tokens: u32::MAX, ..good.room };
    for bad in [
        with(&|it| it.shape.tensor_parallel_size = 0),
        with(&|it| it.shape.tensor_parallel_size = 3),
        with(&|it| it.rank = RankId(1)),
        with(&|it| it.placement.layers.truncate(1)),
        with(&|it| it.placement.layers[0].truncate(1)),
        with(&|it| it.placement.layers[0][0].clear()),
        with(&|it| it.room.block_size_tokens = 0),
        with(&|it| it.room.max_step_tokens = 0),
        with(&|it| it.room.max_step_slices = u32::MAX),
        with(&|it| it.room = huge),
        // Three ranks of a group, where the model has two key-value heads.
        with(&|it| (it.shape.tensor_parallel_size, it.shape.num_ranks) = (3, 3)),
    ] {
        let taken = rank.take(bad.clone(), Arc::clone(&checkpoint), transport(), Box::new(|_| ()));
        assert!(matches!(wait(taken), Err(RankError::Load { .. })), "{bad:?}");
    }
    wait(rank.take(good, checkpoint, transport(), Box::new(|_| ()))).unwrap();
}

#[test]
fn a_newer_place_ends_the_loading_of_an_older_one() {
    let checkpoint = open("a-small");
    let rank = start_ranks(1).remove(0);
    let good = assignment(&checkpoint, 1, Shape::SOLO, RankId(0), uneven(&checkpoint, 1, 0));
    let other = rank.clone();
    let (tell, newer) = std::sync::mpsc::sync_channel(1);
    // While the first one loads, a second one is asked for.
    let mut ask = Some((good.clone(), Arc::clone(&checkpoint)));
    let on_progress = Box::new(move |_| {
        if let Some((assignment, checkpoint)) = ask.take() {
            tell.send(other.take(assignment, checkpoint, transport(), Box::new(|_| ()))).unwrap();
        }
    });
    let older = wait(rank.take(good, checkpoint, transport(), on_progress));
    assert!(matches!(older, Err(RankError::Refused { .. })), "{older:?}");
    wait(newer.recv().unwrap()).unwrap();
}
