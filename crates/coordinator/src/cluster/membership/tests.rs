//! One decision at a time; how they work together is what the simulation shows.

use super::*;
use crate::cluster::status::{ClusterState, MemberState};
use crate::cluster::test_config;
use chorale_plan::{Assignment, KvFormat, Offer, PROTOCOL, Pulse, Standing, StepOutput, StepReport};

fn offer(session: u64) -> Offer {
    Offer {
        session,
        version: "0.1.0".to_owned(),
        protocol: PROTOCOL,
        checkpoint: "abc".to_owned(),
        address: format!("10.0.0.{session}:7000"),
        device: "cpu".to_owned(),
        memory_bytes: 1000,
        memory_bytes_per_s: 10,
        experts_only: false,
        nccl: None,
        kv_dtypes: vec![KvFormat::F32, KvFormat::Bf16, KvFormat::Fp8],
        host_expert_bytes: 0,
    }
}

/// A membership, its clock, and what it did.
struct Table {
    membership: Membership,
    now_ms: u64,
    actions: Vec<Action>,
}

impl Table {
    fn new(config: ClusterConfig) -> Self {
        Self { membership: Membership::new(config).unwrap(), now_ms: 0, actions: Vec::new() }
    }

    /// A cluster of so many workers of session 1 on, which serves.
    fn serving(config: ClusterConfig, num: u64) -> Self {
        let mut table = Self::new(config);
        (1..=num).for_each(|session| table.join(offer(session)));
        table.all_ready();
        table.actions.clear();
        table
    }

    fn event(&mut self, event: Event) {
        self.actions.extend(self.membership.apply(self.now_ms, event));
    }

    fn say(&mut self, member: u64, message: FromWorker) {
        self.event(Event::Said { member: MemberId(member), message });
    }

    /// A worker comes; its stream has its session's number.
    fn join(&mut self, offer: Offer) {
        self.join_as(offer.session, offer);
    }

    fn join_as(&mut self, member: u64, offer: Offer) {
        self.event(Event::Connected { member: MemberId(member) });
        self.say(member, FromWorker::Offer(offer));
    }

    fn broke(&mut self, member: u64) {
        self.event(Event::Broke { member: MemberId(member), reason: "reset".to_owned() });
    }

    /// Time passes; who is there says that it is.
    fn wait(&mut self, ms: u64) {
        let end = self.now_ms + ms;
        while self.now_ms < end {
            self.now_ms += 50;
            let members: Vec<MemberId> = self.membership.members.keys().copied().collect();
            for member in members {
                let pulse = self.membership.members[&member].pulse;
                self.say(member.0, FromWorker::Pulse(pulse));
            }
            self.actions.extend(self.membership.tick(self.now_ms));
        }
    }

    fn epoch(&self) -> Epoch {
        self.membership.epoch
    }

    /// Members by rank.
    fn ranks(&self) -> Vec<u64> {
        let members = |present: &Present| present.draft.members.iter().map(|member| member.0).collect();
        self.membership.present.as_ref().map(members).unwrap_or_default()
    }

    fn all_ready(&mut self) {
        let epoch = self.epoch();
        self.ranks().into_iter().for_each(|member| self.say(member, FromWorker::Ready { epoch }));
        assert!(self.serves(), "{:?}", self.membership.status().state);
    }

    fn serves(&self) -> bool {
        self.membership.status().state == ClusterState::Serving
    }

    fn lost(&mut self, member: u64, step: u64, blamed: u32) {
        let (epoch, reason) = (self.epoch(), "timeout".to_owned());
        self.say(member, FromWorker::Lost { epoch, step, blamed: Some(Rank(blamed)), reason });
    }

    fn told(&self, member: u64) -> Vec<&ToWorker> {
        let told = self.actions.iter().filter_map(|action| match action {
            Action::Tell(id, message) if id.0 == member && *message != ToWorker::Pulse => Some(message),
            _ => None,
        });
        told.collect()
    }

    fn assignment(&self, member: u64) -> Option<&Assignment> {
        self.told(member).into_iter().rev().find_map(|message| match message {
            ToWorker::Assigned(assignment) => Some(&**assignment),
            _ => None,
        })
    }

    fn turned(&self, member: u64) -> &str {
        assert!(self.actions.contains(&Action::Close(MemberId(member))));
        match self.told(member).last() {
            Some(ToWorker::Turned { reason, .. }) => reason,
            told => panic!("{told:?}"),
        }
    }

    fn suspensions(&self) -> usize {
        self.actions.iter().filter(|action| matches!(action, Action::Suspend { .. })).count()
    }
}

#[test]
fn the_first_epoch_waits_for_all_and_serves_when_all_are_ready() {
    let mut table = Table::new(test_config(2, 1));
    table.join(offer(1));
    table.wait(10_000);
    let ClusterState::Lacking { lack, .. } = table.membership.status().state else { panic!() };
    assert_eq!((lack.num_workers, lack.reason.as_str()), (1, "1 of 2 workers are here"));
    table.join(offer(2));
    let place = table.assignment(2).unwrap();
    assert_eq!((place.epoch, place.rank, place.shape.num_ranks), (Epoch(1), Rank(1), 2));
    assert_eq!(place.addresses, ["10.0.0.1:7000", "10.0.0.2:7000"]);
    table.say(1, FromWorker::Ready { epoch: Epoch(0) });
    table.say(2, FromWorker::Ready { epoch: Epoch(1) });
    assert!(!table.serves(), "what is said of another epoch is ignored");
    table.say(1, FromWorker::Ready { epoch: Epoch(1) });
    let Some(Action::Serve(world)) = table.actions.last() else { panic!("{:?}", table.actions.last()) };
    assert_eq!((world.homes.len(), world.homes[0].rank), (1, Rank(0)));
    assert!(world.homes[0].num_full_blocks >= 8);
}

#[test]
fn the_first_epoch_may_do_with_less_after_a_while() {
    let mut config = test_config(2, 1);
    config.timeouts.first_epoch_ms = Some(3000);
    let mut table = Table::new(config);
    table.join(offer(1));
    table.wait(2950);
    assert!(table.ranks().is_empty());
    table.wait(100);
    assert_eq!(table.ranks(), [1]);
}

#[test]
fn what_cannot_be_used_is_turned_away_with_the_remedy() {
    let mut table = Table::new(test_config(2, 1));
    table.join(offer(1));
    table.join(Offer { protocol: 99, ..offer(2) });
    assert!(table.turned(2).contains("run the same release"), "{}", table.turned(2));
    table.join(Offer { checkpoint: "xyz".to_owned(), ..offer(3) });
    assert!(
        table.turned(3).contains("another checkpoint (xyz) than the cluster (abc)"),
        "{}",
        table.turned(3)
    );
    table.join(Offer { memory_bytes: 19, ..offer(4) });
    assert!(table.turned(4).contains("give it more"), "{}", table.turned(4));
    table.join(Offer { address: offer(1).address, ..offer(5) });
    assert!(table.turned(5).contains("--advertise"), "{}", table.turned(5));
    table.event(Event::Connected { member: MemberId(6) });
    table.say(6, FromWorker::Leaving);
    assert!(table.turned(6).contains("did not say who it is"), "{}", table.turned(6));
    table.join(offer(7));
    table.say(7, FromWorker::Offer(offer(7)));
    assert!(table.turned(7).contains("twice"), "{}", table.turned(7));
    assert_eq!(table.membership.members.len(), 1);
}

#[test]
fn who_keeps_keys_and_values_otherwise_is_turned_away() {
    let config = ClusterConfig { kv_dtype: Some(KvFormat::F32), ..test_config(1, 1) };
    let mut table = Table::new(config);
    let gpu = |session| Offer { kv_dtypes: vec![KvFormat::Bf16, KvFormat::Fp8], ..offer(session) };
    table.join(gpu(1));
    assert!(table.turned(1).contains("--kv-cache-dtype is f32"), "{}", table.turned(1));
    assert!(table.turned(1).contains("as bf16 or fp8: ask"), "{}", table.turned(1));
    table.join(Offer { kv_dtypes: Vec::new(), ..offer(2) });
    assert!(table.turned(2).contains("names no way"), "{}", table.turned(2));
    table.join(Offer { experts_only: true, ..gpu(3) });
    table.join(offer(4));
    assert_eq!(table.membership.members.len(), 2);
    assert_eq!(table.assignment(4).unwrap().room.kv_dtype, KvFormat::F32);
}

#[test]
fn no_more_than_a_bounded_number_are_let_in() {
    let mut table = Table::new(test_config(1, 1));
    (1..=17).for_each(|session| table.join(offer(session)));
    assert!(table.turned(17).contains("16 workers are here"), "{}", table.turned(17));
    assert_eq!(table.membership.members.len(), 16);
}

#[test]
fn a_broken_stream_is_a_new_epoch_of_the_rest_at_once() {
    let mut table = Table::serving(test_config(2, 2), 4);
    table.broke(2);
    assert_eq!(table.suspensions(), 1);
    assert_eq!(table.ranks(), [1, 4, 3], "rank 3's weights are those of rank 1; one home is left");
    assert_eq!(table.assignment(4).unwrap().epoch, Epoch(2));
    table.all_ready();
    let status = table.membership.status();
    assert_eq!((status.num_recoveries, status.num_epochs), (1, 2));
    assert_eq!(status.faults[0].rank, Some(Rank(1)));
}

#[test]
fn silence_is_a_broken_stream() {
    let mut table = Table::serving(test_config(1, 1), 2);
    table.now_ms += 1000;
    table.say(1, FromWorker::Pulse(Pulse::default()));
    table.now_ms += 600;
    table.actions.extend(table.membership.tick(table.now_ms));
    assert!(table.actions.contains(&Action::Close(MemberId(2))));
    assert_eq!(table.ranks(), [1]);
}

#[test]
fn who_held_up_the_others_is_left_out_and_may_return() {
    let mut table = Table::serving(test_config(1, 3), 3);
    table.event(Event::StepBegan { step: 1 });
    table.lost(1, 1, 1);
    assert_eq!(table.suspensions(), 1, "no step runs while the culprit is found");
    assert!(matches!(table.membership.status().state, ClusterState::Inquiring { .. }));
    table.lost(2, 1, 2);
    table.wait(350);
    assert_eq!(table.ranks(), [1, 2], "the chain leads to rank 2");
    assert_eq!(table.told(3).last(), Some(&&ToWorker::Dismissed { epoch: Epoch(1) }));
    let status = table.membership.status();
    assert!(matches!(status.members[2].state, MemberState::Excluded { .. }), "{:?}", status.members[2]);
    assert_eq!(status.faults[0].address.as_deref(), Some("10.0.0.3:7000"));
    table.all_ready();
    table.wait(3000);
    assert_eq!(table.ranks(), [1, 2, 3], "after its time it is taken in again");
}

#[test]
fn two_that_cannot_talk_are_kept_apart_longer_and_longer() {
    let mut table = Table::serving(test_config(1, 3), 3);
    let mut apart = Vec::new();
    for step in 1..5 {
        table.event(Event::StepBegan { step });
        table.lost(1, step, 2);
        table.lost(3, step, 0);
        table.lost(2, step, 0);
        table.wait(350);
        let began = table.now_ms;
        table.all_ready();
        while table.ranks().len() < 3 {
            table.wait(50);
        }
        apart.push(table.now_ms - began);
        table.all_ready();
    }
    assert!(apart.windows(2).all(|pair| pair[1] > pair[0] + pair[0] / 2), "{apart:?}");
}

#[test]
fn a_device_that_fails_blames_nobody_else() {
    let mut table = Table::serving(test_config(1, 3), 3);
    table.event(Event::StepBegan { step: 1 });
    let reason = "out of memory".to_owned();
    table.say(2, FromWorker::Lost { epoch: Epoch(1), step: 1, blamed: None, reason });
    table.lost(1, 1, 2);
    table.lost(3, 1, 1);
    assert_eq!(table.ranks(), [1, 3]);
    assert_eq!(table.membership.faults[0].reason, "out of memory");
}

#[test]
fn a_plan_that_is_refused_is_nobodys_fault() {
    let mut table = Table::serving(test_config(1, 2), 2);
    table.event(Event::StepBegan { step: 1 });
    let reason = "slices overlap".to_owned();
    table.say(2, FromWorker::Refused { epoch: Epoch(1), step: 1, reason });
    table.lost(1, 1, 1);
    assert_eq!((table.ranks(), table.epoch()), (vec![1, 2], Epoch(2)));
    assert_eq!(table.membership.faults[0].rank, None);
}

#[test]
fn a_hang_is_found_by_the_pulse_and_names_its_rank() {
    let mut table = Table::serving(test_config(1, 2), 2);
    table.event(Event::StepBegan { step: 1 });
    let pulse = Pulse { step: Some(1), waiting_for: Some(Rank(1)), stalled_ms: 4100, ..Pulse::default() };
    table.say(1, FromWorker::Pulse(pulse));
    assert!(table.serves(), "who waits does not hang");
    table.say(2, FromWorker::Pulse(Pulse { waiting_for: None, ..pulse }));
    assert_eq!(table.ranks(), [1]);
    assert!(table.membership.faults[0].reason.contains("computes for 4100 ms"));
}

#[test]
fn a_step_has_a_deadline_though_everybody_seems_busy() {
    let mut table = Table::serving(test_config(1, 2), 2);
    table.event(Event::StepBegan { step: 1 });
    for member in [1, 2] {
        table.say(member, FromWorker::Pulse(Pulse { step: Some(1), ..Pulse::default() }));
    }
    let report = StepReport::default();
    let output = StepOutput { step: 1, samples: Vec::new() };
    table.say(2, FromWorker::Done { epoch: Epoch(1), output, report });
    table.wait(19_900);
    assert!(table.serves());
    table.wait(150);
    assert_eq!(table.ranks(), [2], "rank 0 was not done");
}

#[test]
fn loading_that_does_not_go_on_is_given_up() {
    let mut table = Table::new(test_config(1, 2));
    (1..=2).for_each(|session| table.join(offer(session)));
    let loading = |bytes| FromWorker::Loading {
        epoch: Epoch(1),
        bytes,
        total_bytes: 100,
        tensors: 0,
        total_tensors: 1,
    };
    table.say(1, loading(1));
    table.wait(4000);
    table.say(1, loading(2));
    table.say(2, FromWorker::Ready { epoch: Epoch(1) });
    table.wait(4900);
    assert_eq!(table.epoch(), Epoch(1));
    table.wait(200);
    assert_eq!(table.membership.faults[0].rank, Some(Rank(0)));
}

#[test]
fn who_cannot_reach_another_says_so_and_one_of_the_two_goes() {
    let mut table = Table::new(test_config(1, 2));
    (1..=2).for_each(|session| table.join(offer(session)));
    let reason = "no route".to_owned();
    let unable = FromWorker::Unable { epoch: Epoch(1), blamed: Some(Rank(1)), reason };
    table.say(1, unable);
    table.wait(350);
    assert_eq!(table.membership.faults[0].rank, Some(Rank(1)));
    assert_eq!(table.suspensions(), 0, "nothing served");
}

#[test]
fn several_that_join_cost_one_pause_between_two_steps() {
    let mut table = Table::serving(test_config(2, 2), 4);
    table.broke(4);
    table.all_ready();
    table.actions.clear();
    table.event(Event::StepBegan { step: 1 });
    table.join(offer(5));
    table.wait(600);
    table.join(offer(6));
    table.wait(1500);
    assert!(table.serves(), "a step is running");
    table.event(Event::StepEnded);
    assert_eq!(table.suspensions(), 1);
    assert_eq!(table.ranks(), [1, 2, 3, 5, 6]);
    let shape = table.assignment(6).unwrap().shape;
    assert_eq!((shape.data_parallel_size, shape.num_ranks), (2, 5), "the last holds experts");
    table.all_ready();
    table.wait(5000);
    assert_eq!(table.suspensions(), 1);
}

#[test]
fn who_leaves_is_let_go_when_the_others_have_taken_over() {
    let mut table = Table::serving(test_config(1, 2), 2);
    table.say(1, FromWorker::Leaving);
    assert_eq!(table.ranks(), [2]);
    assert_eq!(table.told(1).last(), Some(&&ToWorker::Farewell));
    table.broke(1);
    assert_eq!(table.membership.num_faults, 0, "it said so");
    // The last one stays until there is another.
    table.all_ready();
    table.say(2, FromWorker::Leaving);
    table.wait(3000);
    assert!(table.serves());
    table.join(offer(3));
    assert_eq!(table.ranks(), [3]);
    assert_eq!(table.told(2).last(), Some(&&ToWorker::Farewell));
}

#[test]
fn the_same_session_on_a_new_stream_replaces_the_old_and_keeps_its_rank() {
    let mut table = Table::serving(test_config(2, 1), 2);
    table.join_as(10, offer(1));
    assert!(table.actions.contains(&Action::Close(MemberId(1))));
    assert_eq!(table.ranks(), [10, 2]);
    assert_eq!(table.membership.num_faults, 0);
}

#[test]
fn a_lack_is_told_in_numbers_and_ends_when_somebody_comes() {
    let small = |session| Offer { memory_bytes: 130, ..offer(session) };
    let mut table = Table::new(test_config(1, 2));
    (1..=2).for_each(|session| table.join(small(session)));
    let ClusterState::Lacking { lack, .. } = table.membership.status().state else { panic!() };
    assert!(lack.reason.contains("2 of 8 experts of each layer have no place"), "{lack:?}");
    assert_eq!(lack.bytes, 2 * 2 * 10);
    table.join(small(3));
    table.all_ready();
    table.broke(3);
    let dismissed = ToWorker::Dismissed { epoch: Epoch(1) };
    assert_eq!(table.told(1).last(), Some(&&dismissed), "nothing goes on without the third");
}

#[test]
fn a_leaver_that_nobody_can_replace_is_an_ordinary_loss_in_the_end() {
    let mut table = Table::serving(test_config(1, 1), 1);
    table.say(1, FromWorker::Leaving);
    table.wait(3000);
    assert!(table.serves(), "it stays as long as it likes");
    table.event(Event::StepBegan { step: 1 });
    table.broke(1);
    assert_eq!(table.suspensions(), 1, "the step is void");
    assert!(matches!(table.membership.status().state, ClusterState::Lacking { .. }));
    assert_eq!(table.membership.num_faults, 0, "it had said so");
    table.join(offer(2));
    table.all_ready();
}

#[test]
fn a_coordinator_that_starts_anew_goes_on_above_all_old_epochs() {
    let config = ClusterConfig { first_epoch: Epoch(5000), ..test_config(1, 1) };
    let mut table = Table::new(config);
    table.join(offer(1));
    assert_eq!(table.assignment(1).unwrap().epoch, Epoch(5000));
}

mod carrier;
mod lengths;
mod placement;
mod speeds;
