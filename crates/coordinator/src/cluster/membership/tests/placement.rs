//! Experts that move while steps run, and those that do not.

use super::*;
use crate::cluster::Timeouts;

fn loads(epoch: Epoch, rows: Vec<Vec<u64>>) -> FromWorker {
    FromWorker::Loads { epoch, rows, standing: Standing::default() }
}

#[test]
fn hot_experts_get_copies_while_steps_run() {
    let mut table = Table::serving(test_config(1, 2), 2);
    let mut rows = vec![vec![10; 8]; 2];
    rows[0][0] = 1000;
    rows[1][1] = 1000;
    for round in 1..4 {
        let rows = rows.iter().map(|rows| rows.iter().map(|rows| rows * round).collect()).collect();
        table.say(1, loads(Epoch(1), rows));
        table.wait(if round == 3 { 1000 } else { 10_000 });
    }
    let Some(ToWorker::Prepare { placement, .. }) = table.told(2).last().copied().cloned() else { panic!() };
    assert_eq!(placement.version, 1);
    assert_eq!(placement.layers[0][0], [Rank(0), Rank(1)]);
    table.say(1, FromWorker::Prepared { epoch: Epoch(1), version: 1 });
    table.say(2, FromWorker::Prepared { epoch: Epoch(1), version: 7 });
    assert_eq!(table.membership.placement().unwrap().version, 0);
    let before = table.membership.status().imbalance.unwrap();
    table.say(2, FromWorker::Prepared { epoch: Epoch(1), version: 1 });
    assert_eq!(table.actions.last(), Some(&Action::Place { epoch: Epoch(1), version: 1 }));
    assert!(table.membership.status().imbalance.unwrap() < before);
    assert_eq!(table.suspensions(), 0, "no step was lost");
    // What is known of loads is used in the next epoch from the start.
    table.join(offer(3));
    table.wait(1500);
    assert!(table.assignment(3).unwrap().placement.layers[0][0].len() > 1);
}

/// Skewed loads, until the ranks are told of a placement: its version, and how
/// long it took.
fn prepare(table: &mut Table) -> (u32, u64) {
    table.actions.clear();
    let began = table.now_ms;
    loop {
        table.wait(1000);
        let rows = table.now_ms / 100;
        let mut rows = vec![vec![rows; 8]; 2];
        rows[0][0] *= 100;
        let epoch = table.epoch();
        table.say(1, loads(epoch, rows));
        let version = table.told(2).into_iter().find_map(|message| match message {
            ToWorker::Prepare { placement, .. } => Some(placement.version),
            _ => None,
        });
        match version {
            Some(version) => return (version, table.now_ms - began),
            None => assert!(table.now_ms - began < 100_000, "experts are to move"),
        }
    }
}

#[test]
fn a_placement_that_a_rank_cannot_load_is_given_up_and_tried_again_later() {
    let config = test_config(1, 2);
    let config = ClusterConfig { timeouts: Timeouts { loading_ms: 60_000, ..config.timeouts }, ..config };
    let mut table = Table::serving(config, 2);
    assert_eq!(prepare(&mut table).0, 1);
    table.say(1, FromWorker::Prepared { epoch: Epoch(1), version: 1 });
    let unprepared =
        |version| FromWorker::Unprepared { epoch: Epoch(1), version, reason: "out of memory".to_owned() };
    table.say(2, unprepared(7));
    assert!(table.membership.present.as_ref().unwrap().pending.is_some(), "nobody asked for version 7");
    table.say(2, unprepared(1));
    table.say(2, FromWorker::Prepared { epoch: Epoch(1), version: 1 });
    assert_eq!(table.membership.placement().unwrap().version, 0, "what is given up is not used");
    assert!(table.serves() && table.suspensions() == 0);
    let (version, first_ms) = prepare(&mut table);
    assert_eq!(version, 2);
    // The second time nobody answers.
    while table.membership.present.as_ref().unwrap().pending.is_some() {
        table.wait(50);
    }
    let (version, second_ms) = prepare(&mut table);
    assert_eq!(version, 3);
    assert!(second_ms > first_ms + 5000, "{first_ms} ms, then {second_ms} ms");
    for member in [1, 2] {
        table.say(member, FromWorker::Prepared { epoch: Epoch(1), version: 3 });
    }
    let status = table.membership.status();
    assert_eq!((status.placement, status.num_rebalances, status.num_faults), (3, 1, 0));
    assert!(status.num_moved_experts > 0);
    assert_eq!(status.experts.busiest[0].expert, 0);
    assert_eq!(status.experts.rows.len(), 8);
}
