//! What goes wrong: each has its name, and none is a hang.

use crate::world::{World, assignment, open, shape, start_ranks, uneven, wait};
use chorale_link::{Fault, Frame, Transport, local};
use chorale_plan::{Rank as RankId, StepPlan};
use chorale_worker::RankError;
use std::sync::Arc;
use std::time::{Duration, Instant};

fn empty(step: u64) -> StepPlan {
    StepPlan { step, in_halves: false, home_rows: Vec::new(), slices: Vec::new() }
}

#[test]
fn plans_that_break_the_contract_are_refused_and_the_rank_goes_on() {
    let checkpoint = open("a-small");
    let world = World::new(&checkpoint, shape(1, 1, 1));
    let rank = &world.ranks[0];
    wait(rank.step(0, empty(5))).unwrap();
    for step in [5, 4, 7] {
        assert!(matches!(wait(rank.step(0, empty(step))), Err(RankError::Refused { .. })), "step {step}");
    }
    let mut slice = world.sequences(1)[0].take_slice();
    slice.home = RankId(1);
    let elsewhere = StepPlan { step: 6, in_halves: false, home_rows: Vec::new(), slices: vec![slice] };
    assert!(matches!(wait(rank.step(0, elsewhere)), Err(RankError::Refused { .. })));
    assert!(matches!(wait(rank.step(3, empty(7))), Err(RankError::Refused { .. })), "placement 3");
    wait(rank.step(0, empty(8))).unwrap();

    let stale = wait(rank.prepare(uneven(&checkpoint, 1, 0)));
    assert!(matches!(stale, Err(RankError::Refused { .. })), "{stale:?}");
    let none = chorale_plan::Placement { version: 1, layers: Vec::new() };
    assert!(matches!(wait(rank.prepare(none)), Err(RankError::Refused { .. })));
    wait(rank.prepare(uneven(&checkpoint, 1, 2))).unwrap();
    wait(rank.step(2, empty(9))).unwrap();
    assert!(matches!(wait(rank.step(0, empty(10))), Err(RankError::Refused { .. })), "it has gone over");
}

#[test]
fn a_lost_rank_is_blamed_and_the_epoch_is_over_for_who_lost_it() {
    let checkpoint = open("a-small");
    let world = World::new(&checkpoint, shape(1, 2, 2));
    world.generate(2, 1, |_| 0);
    wait(world.ranks[1].leave()).unwrap();
    let lost = wait(world.ranks[0].step(0, empty(1000)));
    assert!(matches!(lost, Err(RankError::Refused { .. })), "steps follow each other: {lost:?}");
    let world = World::of(world.ranks, &checkpoint, 2, world.shape, uneven(&checkpoint, 2, 0));
    wait(world.ranks[1].leave()).unwrap();
    let lost = wait(world.ranks[0].step(0, empty(1)));
    assert!(matches!(&lost, Err(RankError::Lost { blamed: Some(RankId(1)), .. })), "{lost:?}");
    assert!(lost.unwrap_err().to_string().contains("layer 0, dispatch of step 1"));
    let after = wait(world.ranks[0].step(0, empty(2)));
    assert!(matches!(after, Err(RankError::Lost { blamed: None, .. })), "{after:?}");
}

#[test]
fn a_pulse_tells_who_is_waited_for_while_the_thread_waits() {
    let checkpoint = open("a-small");
    let world = World::new(&checkpoint, shape(1, 2, 2));
    let rank = &world.ranks[0];
    assert_eq!(rank.pulse(), Default::default());
    let step = rank.step(0, empty(1));
    let deadline = Instant::now() + Duration::from_secs(5);
    let pulse = loop {
        let pulse = rank.pulse();
        if (pulse.waiting_for.is_some() && pulse.stalled_ms > 0) || Instant::now() > deadline {
            break pulse;
        }
        std::thread::yield_now();
    };
    assert_eq!((pulse.step, pulse.waiting_for), (Some(1), Some(RankId(1))));
    world.abort.abort();
    let over = wait(step);
    assert!(matches!(over, Err(RankError::Lost { blamed: None, .. })), "{over:?}");
    assert_eq!(rank.pulse(), Default::default());
}

#[test]
fn more_plans_than_can_wait_are_refused() {
    let checkpoint = open("a-small");
    let world = World::new(&checkpoint, shape(1, 2, 2));
    let mut steps: Vec<_> = (1..=9).map(|step| world.ranks[0].step(0, empty(step))).collect();
    let last = wait(steps.pop().unwrap());
    assert!(matches!(last, Err(RankError::Refused { .. })), "{last:?}");
    world.abort.abort();
    assert!(matches!(wait(steps.remove(0)), Err(RankError::Lost { .. })));
}

/// A transport with a bug.
struct Panics;

impl Transport for Panics {
    fn send(&mut self, _: RankId, _: Frame) -> Result<(), Fault> {
        panic!("a bug")
    }

    fn receive(&mut self, _: RankId) -> Result<Frame, Fault> {
        panic!("a bug")
    }
}

#[test]
fn a_panic_stops_the_rank_and_nobody_hangs() {
    let checkpoint = open("a-small");
    let rank = start_ranks(1).remove(0);
    let shape = shape(1, 2, 2);
    let good = assignment(&checkpoint, 1, shape, RankId(0), uneven(&checkpoint, 2, 0));
    wait(rank.take(good.clone(), Arc::clone(&checkpoint), Box::new(Panics), Box::new(|_| ()))).unwrap();
    assert_eq!(wait(rank.step(0, empty(1))), Err(RankError::Stopped));
    assert_eq!(wait(rank.leave()), Err(RankError::Stopped));
    let transport = Box::new(local(2, Duration::from_secs(1)).remove(0));
    assert_eq!(wait(rank.take(good, checkpoint, transport, Box::new(|_| ()))), Err(RankError::Stopped));
    assert_eq!(rank.pulse(), Default::default());
}
