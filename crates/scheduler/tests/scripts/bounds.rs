//! What is refused, and what runs out of time.

use crate::play::{Play, check_ends, config, pages};
use chorale_scheduler::{ConfigError, FinishReason, Pool, PoolStats, Progress, Rejected, Request, Scheduler};
use expect_test::expect;

#[test]
fn a_request_that_can_never_fit_is_refused_at_once() {
    let mut play = Play::new(pages(5, 2));
    let too_long = |pool, needed, available| Err(Rejected::TooLong { pool, needed, available });
    assert_eq!(play.submit("8+14"), too_long(Pool::Full, 6, 5));
    assert_eq!(play.submit("8+13"), too_long(Pool::Sliding, 3, 2));
    assert!(play.submit("8+1").is_ok());
    play.run("");
}

#[test]
fn a_prompt_must_leave_room_for_a_token_in_the_context() {
    let mut play = Play::new(config(&[32]));
    let exceeded = Rejected::ContextExceeded { prompt_tokens: 256, max_context_tokens: 256 };
    assert_eq!(play.submit("256+1"), Err(exceeded));
    assert_eq!(play.submit("0+1"), Err(Rejected::EmptyPrompt));
    play.run("250+100");
    expect![[r#"
        s0: length, 250(0)+6, began after 0 ms
    "#]]
    .assert_eq(&play.ends);
}

#[test]
fn the_queue_is_bounded_in_requests() {
    let mut config = config(&[32]);
    config.max_waiting_requests = 2;
    let mut play = Play::new(config);
    play.play("3+1 4+1");
    let full = Rejected::QueueFull { waiting_requests: 2, waiting_tokens: 7 };
    assert_eq!(play.submit("5+1"), Err(full));
    play.step();
    assert!(play.submit("5+1").is_ok());
}

#[test]
fn the_queue_is_bounded_in_tokens_but_one_request_may_always_wait() {
    let mut config = config(&[32]);
    config.max_waiting_tokens = 10;
    let mut play = Play::new(config);
    play.play("12+1");
    let full = Rejected::QueueFull { waiting_requests: 1, waiting_tokens: 12 };
    assert_eq!(play.submit("1+1"), Err(full));
    play.step();
    play.play("6+1 4+1");
    assert!(play.submit("1+1").is_err());
}

#[test]
fn who_waits_too_long_for_a_first_slice_gives_up() {
    let mut config = config(&[8]);
    config.homes[0].max_step_slices = 1;
    config.max_waiting_ms = Some(30);
    check_ends(
        config,
        "2+9 2+1 ; ; 2+1",
        expect![[r#"
            s1: waited too long, 2(0)+0, began never
            s2: waited too long, 2(0)+0, began never
            s0: length, 2(0)+9, began after 0 ms
        "#]],
    );
}

#[test]
fn a_deadline_ends_a_sequence_wherever_it_is() {
    let mut config = config(&[8]);
    config.homes[0].max_step_slices = 1;
    check_ends(
        config,
        "2+9/d30 2+9/d20 2+1",
        expect![[r#"
        s1: deadline, 2(0)+0, began never
        s0: deadline, 2(0)+3, began after 0 ms
        s2: length, 2(0)+1, began after 30 ms
    "#]],
    );
}

#[test]
fn a_sequence_ends_once() {
    let mut play = Play::new(config(&[8]));
    let id = play.submit("2+9").unwrap();
    assert!(matches!(
        play.scheduler.cancel(id),
        Some(Progress::Finished { reason: FinishReason::Cancelled, .. })
    ));
    assert_eq!(play.scheduler.cancel(id), None);
    assert_eq!(play.scheduler.usage(id), None);
}

#[test]
fn homes_that_became_too_small_end_what_they_cannot_hold() {
    let mut config = config(&[32, 32]);
    let mut play = Play::new(config.clone());
    play.play("3+2 30+9 ;");
    config.homes.truncate(1);
    config.homes[0].num_full_blocks = 4;
    let ended = play.scheduler.rehome(config.homes).unwrap();
    assert!(matches!(ended[..], [Progress::Finished { reason: FinishReason::NoRoom, .. }]));
    play.scheduler.check_invariants();
    play.run("");
}

#[test]
fn a_held_sequence_waits_until_it_is_released_and_may_end_before() {
    let mut play = Play::new(config(&[32]));
    play.play("3+2 3+2 3+2");
    let ids = [0, 1, 2].map(chorale_plan::SequenceId);
    assert!(play.scheduler.hold(ids[0]) && play.scheduler.hold(ids[1]));
    assert!(!play.scheduler.hold(ids[0]), "it is held already");
    assert_eq!(play.stats().num_waiting(), 3);
    play.play("; ;");
    assert!(!play.scheduler.hold(ids[2]), "it is over");
    assert!(play.scheduler.cancel(ids[0]).is_some());
    play.scheduler.check_invariants();
    assert!(play.scheduler.schedule(0).is_none(), "nobody is left who is not held");
    play.scheduler.uncompute_all();
    assert!(play.scheduler.schedule(0).is_none());
    play.scheduler.release(ids[1]);
    play.run("");
}

#[test]
fn stats_say_who_waits_and_why() {
    let mut play = Play::new(pages(5, 64));
    play.play("7+8 7+8 ; ; ; 13+1 ;");
    let stats = play.stats();
    assert_eq!((stats.num_running, stats.num_waiting_capacity, stats.num_waiting_deferred), (1, 1, 1));
    assert_eq!((stats.waiting_tokens, stats.num_preemptions), (13, 1));
    assert_eq!(stats.homes[0].full, PoolStats { num_blocks: 5, num_held: 3, num_cached: 2 });
    assert_eq!(stats.kv_usage(), 0.6);
}

#[test]
fn configurations_that_cannot_work_are_refused() {
    let with = |change: fn(&mut chorale_scheduler::Config)| {
        let mut config = config(&[8, 8]);
        change(&mut config);
        Scheduler::new(config).map(drop).unwrap_err()
    };
    assert_eq!(with(|config| config.homes.clear()), ConfigError::NoHome);
    assert_eq!(with(|config| config.homes[1].rank.0 = 0), ConfigError::HomeTwice { rank: 0 });
    assert_eq!(with(|config| config.window_tokens = Some(0)), ConfigError::Zero { field: "window_tokens" });
    let narrow = ConfigError::SlicesExceedTokens { rank: 1, max_step_tokens: 7, max_step_slices: 8 };
    assert_eq!(with(|config| config.homes[1].max_step_tokens = 7), narrow);
}

#[test]
#[should_panic(expected = "a sample is missing")]
fn an_output_that_does_not_fit_the_plan_is_our_own_mistake() {
    let mut scheduler = Scheduler::new(config(&[8])).unwrap();
    scheduler.submit(Request::new(vec![5], 2.try_into().unwrap()), 0).unwrap();
    let plan = scheduler.schedule(0).unwrap();
    scheduler.commit(&plan, &chorale_plan::StepOutput { step: 1, samples: Vec::new() });
}
