//! What becomes of a world when what carries its rows fails.

use super::*;

fn with_nccl(session: u64) -> Offer {
    Offer { nccl: Some(22_809), ..offer(session) }
}

fn pair() -> Table {
    let mut table = Table::new(test_config(2, 1));
    table.join(with_nccl(1));
    table.join(with_nccl(2));
    table
}

impl Table {
    fn carrier(&self) -> Carrier {
        self.assignment(1).unwrap().carrier
    }

    /// Workers say that what carries rows failed.
    fn strand(&mut self, members: &[u64], step: Option<u64>) {
        let epoch = self.epoch();
        for &member in members {
            let reason = "ncclCommInitRankConfig failed".to_owned();
            self.say(member, FromWorker::CarrierFailed { epoch, step, reason });
        }
    }
}

#[test]
fn nccl_that_fails_twice_is_done_without_and_nobody_is_left_out() {
    let mut table = pair();
    assert_eq!((table.epoch(), table.carrier()), (Epoch(1), Carrier::Nccl));
    // All have spoken: the next epoch is there at once, by the same means.
    table.strand(&[2, 1], None);
    assert_eq!((table.epoch(), table.ranks(), table.carrier()), (Epoch(2), vec![1, 2], Carrier::Nccl));
    // One alone is waited for the others a while.
    table.strand(&[2], None);
    assert_eq!(table.epoch(), Epoch(2));
    table.wait(5000);
    assert_eq!((table.epoch(), table.ranks(), table.carrier()), (Epoch(3), vec![1, 2], Carrier::Frames));
    table.all_ready();
    let status = table.membership.status();
    assert_eq!((status.carrier, status.num_carrier_failures), (Some(Carrier::Frames), 2));
    assert!(status.members.iter().all(|member| member.num_faults == 0), "{:?}", status.members);
    assert!(status.faults.iter().all(|fault| fault.rank.is_none() && fault.reason.contains("ncclComm")));
    // A worker that is started anew is tried with again.
    table.broke(2);
    table.all_ready();
    table.join_as(3, Offer { address: offer(2).address, ..with_nccl(3) });
    table.wait(20_000);
    assert_eq!((table.ranks().len(), table.carrier()), (2, Carrier::Nccl));
}

#[test]
fn a_step_that_nccl_fails_ends_in_a_new_epoch_with_everybody() {
    let mut table = pair();
    table.all_ready();
    table.event(Event::StepBegan { step: 1 });
    table.strand(&[1, 2], Some(1));
    assert_eq!(table.suspensions(), 1);
    assert_eq!((table.epoch(), table.ranks(), table.carrier()), (Epoch(2), vec![1, 2], Carrier::Nccl));
    table.all_ready();
    // What is said of a step that does not run is out of date.
    table.strand(&[1], Some(9));
    assert!(table.serves());
}

#[test]
fn who_failed_by_itself_is_to_blame_and_not_nccl() {
    let mut table = pair();
    let epoch = table.epoch();
    table.strand(&[1], None);
    let reason = "out of memory".to_owned();
    table.say(2, FromWorker::Unable { epoch, blamed: None, reason });
    assert_eq!(table.membership.status().num_carrier_failures, 0);
    assert_eq!(table.membership.status().members.iter().map(|one| one.num_faults).sum::<u32>(), 1);
}

impl Table {
    /// Workers of session 1 on compute a step, by these numbers of exchanges.
    fn stall(&mut self, stalled_ms: u32, exchanges: &[u32]) {
        for (&exchanges, member) in exchanges.iter().zip(1..) {
            let pulse = Pulse { step: Some(1), stalled_ms, exchanges, ..Pulse::default() };
            self.say(member, FromWorker::Pulse(pulse));
        }
    }
}

#[test]
fn of_devices_that_wait_for_each_other_the_rank_that_is_behind_is_to_blame() {
    let mut table = pair();
    table.all_ready();
    table.event(Event::StepBegan { step: 1 });
    table.stall(3900, &[73, 12]);
    assert!(table.serves());
    // The first that is known to be late is not the one that holds the others up.
    table.stall(4100, &[73]);
    let fault = &table.membership.faults[0];
    assert_eq!(fault.rank, Some(Rank(1)));
    assert!(fault.reason.contains("computes for 3900 ms"), "{}", fault.reason);
}

#[test]
fn who_waits_for_a_rank_that_gets_on_is_not_to_blame() {
    let mut table = pair();
    table.all_ready();
    table.event(Event::StepBegan { step: 1 });
    table.stall(10, &[73, 12]);
    table.stall(9000, &[73]);
    assert!(table.serves());
}

#[test]
fn devices_that_all_hang_blame_what_carries_their_rows() {
    let mut table = pair();
    table.all_ready();
    table.event(Event::StepBegan { step: 1 });
    table.stall(3900, &[73, 73]);
    table.stall(4100, &[73]);
    assert_eq!((table.epoch(), table.ranks(), table.carrier()), (Epoch(2), vec![1, 2], Carrier::Nccl));
    let status = table.membership.status();
    assert!(status.members.iter().all(|member| member.num_faults == 0), "{:?}", status.members);
    assert!(status.faults[0].reason.contains("hangs on the devices of ranks 0, 1"), "{:?}", status.faults);
}
