//! Workers that turn out to be faster than they seemed at first.

use super::*;

/// Says what it has measured.
fn measures(table: &mut Table, member: u64, bytes_per_s: u64) {
    let pulse = Pulse { memory_bytes_per_s: Some(bytes_per_s), ..Pulse::default() };
    table.say(member, FromWorker::Pulse(pulse));
}

/// A group of one at 1000, and a worker beside it that seemed to be so fast.
fn with_a_spare(bytes_per_s: u64) -> Table {
    let mut table = Table::new(test_config(1, 1));
    table.join(Offer { memory_bytes_per_s: 1000, ..offer(1) });
    table.all_ready();
    table.join(Offer { memory_bytes_per_s: bytes_per_s, ..offer(2) });
    table.wait(5000);
    table.actions.clear();
    table
}

#[test]
fn who_seemed_too_slow_at_its_start_gets_a_place_when_it_is_found_to_be_faster() {
    let mut table = with_a_spare(10);
    assert_eq!(table.ranks(), [1], "it has nothing to offer");
    measures(&mut table, 2, 1000);
    assert_eq!(table.ranks(), [1, 2]);
    let place = table.assignment(2).unwrap();
    assert_eq!(place.placement.experts_of(Rank(1), 0).len(), 4, "a half of the experts");
    table.all_ready();
    let status = table.membership.status();
    assert_eq!(status.members[1].memory_bytes_per_s, 1000);
    assert_eq!(status.num_faults, 0);
}

#[test]
fn noise_changes_nothing() {
    let mut table = with_a_spare(100);
    for bytes_per_s in [100, 110, 125, 90, 0] {
        measures(&mut table, 2, bytes_per_s);
        measures(&mut table, 1, bytes_per_s);
        table.wait(2000);
    }
    assert_eq!((table.suspensions(), table.ranks()), (0, vec![1]));
    let rates: Vec<u64> =
        table.membership.status().members.iter().map(|member| member.memory_bytes_per_s).collect();
    assert_eq!(rates, [1000, 100]);
}

#[test]
fn a_world_is_not_ended_for_a_small_gain() {
    // One of eight experts is an eighth of the work, of which the other is relieved.
    let mut table = with_a_spare(10);
    measures(&mut table, 2, 150);
    table.wait(2000);
    assert_eq!(table.ranks(), [1, 2], "7 of 8 experts: more than a tenth is gained");
    let mut config = test_config(1, 1);
    config.model.num_experts = 16;
    let mut table = Table::new(config);
    table.join(Offer { memory_bytes_per_s: 1000, ..offer(1) });
    table.all_ready();
    table.join(Offer { memory_bytes_per_s: 10, ..offer(2) });
    table.wait(5000);
    table.actions.clear();
    measures(&mut table, 2, 70);
    table.wait(5000);
    assert_eq!((table.suspensions(), table.ranks()), (0, vec![1]), "15 of 16 are less than a tenth");
    // A world that ends for another reason takes it in.
    table.event(Event::StepBegan { step: 1 });
    table.say(1, FromWorker::Refused { epoch: Epoch(1), step: 1, reason: "slices overlap".to_owned() });
    assert_eq!(table.ranks(), [1, 2]);
}

#[test]
fn experts_move_to_a_rank_that_is_found_to_be_faster_while_steps_run() {
    let mut table = Table::new(test_config(1, 2));
    table.join(Offer { memory_bytes_per_s: 1000, ..offer(1) });
    table.join(Offer { memory_bytes_per_s: 10, ..offer(2) });
    table.all_ready();
    assert!(table.assignment(2).unwrap().placement.experts_of(Rank(1), 0).is_empty());
    table.actions.clear();
    measures(&mut table, 2, 1000);
    let prepared = (1..20).any(|round| {
        let rows = vec![vec![100 * round; 8]; 2];
        let (epoch, standing) = (table.epoch(), Standing::default());
        table.say(1, FromWorker::Loads { epoch, rows, standing });
        table.wait(5000);
        table.told(2).iter().any(|message| {
            let ToWorker::Prepare { placement, .. } = message else { return false };
            !placement.experts_of(Rank(1), 0).is_empty()
        })
    });
    assert!(prepared, "it is to load experts");
    assert_eq!(table.suspensions(), 0);
}
