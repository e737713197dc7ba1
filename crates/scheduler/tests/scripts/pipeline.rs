//! Steps that are planned before the last one is committed.

use crate::play::{Play, check, check_ends, config, pages};
use chorale_scheduler::{Config, Request};
use expect_test::expect;

fn ahead(mut config: Config) -> Config {
    config.max_steps_in_flight = 2;
    config
}

#[test]
fn the_next_token_is_planned_before_it_is_known() {
    check(
        ahead(config(&[8])),
        "3+4",
        expect![[r#"
        1: s0@0[0+3]*
        2: s0@0[3+1~]*
        3: s0@0[4+1~]*
        4: s0@0[5+1~]*
    "#]],
    );
}

#[test]
fn slices_of_a_long_prompt_follow_each_other_without_a_pause() {
    check(
        ahead(config(&[8])),
        "20+2",
        expect![[r#"
        1: s0@0[0+8]
        2: s0@0[8+8]
        3: s0@0[16+4]*
        4: s0@0[20+1~]*
    "#]],
    );
}

#[test]
fn a_stop_token_found_at_the_commit_drops_what_was_planned_after_it() {
    check(
        ahead(config(&[8])),
        "3+9/e2 2+5",
        expect![[r#"
        1: s0@0[0+3]* s1@0[0+2]*
        2: s0@0[3+1~]* s1@0[2+1~]*
        3: s0@0[4+1~]* s1@0[3+1~]*
        4: s1@0[4+1~]*
        5: s1@0[5+1~]*
    "#]],
    );
    check_ends(
        ahead(config(&[8])),
        "3+9/e2 2+5",
        expect![[r#"
        s0: stop 1, 3(0)+2, began after 0 ms
        s1: length, 2(0)+5, began after 0 ms
    "#]],
    );
}

#[test]
fn pages_of_a_cancelled_sequence_return_when_its_steps_are_committed() {
    let mut play = Play::new(ahead(config(&[8])));
    play.play("3+9 ; x0");
    assert_eq!(play.stats().homes[0].full.num_held, 1);
    play.play(";");
    assert_eq!(play.stats().homes[0].full.num_held, 0);
    assert!(play.scheduler.is_idle());
}

#[test]
fn who_loses_its_pages_in_flight_keeps_what_it_sampled() {
    check(
        ahead(pages(5, 64)),
        "7+8 7+8",
        expect![[r#"
        1: s0@0[0+7]* s1@0[0+7]*
        2: s0@0[7+1~]* s1@0[7+1~]*
        3: s0@0[8+1~]*
        4: s0@0[9+1~]*
        5: s0@0[10+1~]*
        6: s0@0[11+1~]*
        7: s0@0[12+1~]*
        8: s0@0[13+1~]*
        9: s1@0[4+5]*
        10: s1@0[9+1~]*
        11: s1@0[10+1~]*
        12: s1@0[11+1~]*
        13: s1@0[12+1~]*
        14: s1@0[13+1~]*
    "#]],
    );
    check_ends(
        ahead(pages(5, 64)),
        "7+8 7+8",
        expect![[r#"
        s0: length, 7(0)+8, began after 0 ms
        s1: length, 7(0)+8, began after 0 ms, lost 1x
    "#]],
    );
}

#[test]
fn while_pages_are_on_their_way_back_nobody_else_loses_any() {
    check_ends(
        ahead(pages(7, 64)),
        "7+5 7+5 7+5",
        expect![[r#"
        s0: length, 7(0)+5, began after 0 ms
        s1: length, 7(0)+5, began after 0 ms
        s2: length, 7(0)+5, began after 0 ms, lost 1x
    "#]],
    );
}

#[test]
fn penalties_wait_for_the_token_that_they_count() {
    let mut play = Play::new(ahead(config(&[8])));
    let mut request = Request::new(vec![1, 2, 3], 3.try_into().unwrap());
    request.sampling.penalties =
        Some(chorale_plan::Penalties { repetition: 1.2, presence: 0.0, frequency: 0.0, history: Vec::new() });
    play.submit("2+4").unwrap();
    play.submit_request(request);
    play.run("");
    expect![[r#"
        1: s0@0[0+2]* s1@0[0+3]*
        2: s0@0[2+1~]*
        3: s0@0[3+1~]* s1@0[3+1]*
        4: s0@0[4+1~]*
        5: s1@0[4+1]*
    "#]]
    .assert_eq(&play.trace);
}

#[test]
fn a_step_that_was_in_flight_when_ranks_were_lost_is_void() {
    let mut scheduler = chorale_scheduler::Scheduler::new(ahead(config(&[8]))).unwrap();
    scheduler.submit(Request::new(vec![1, 2, 3], 2.try_into().unwrap()), 0).unwrap();
    let lost = [scheduler.schedule(0).unwrap(), scheduler.schedule(0).unwrap()];
    assert_eq!(scheduler.schedule(0), None);
    scheduler.uncompute_all();
    for plan in &lost {
        let output = chorale_plan::StepOutput { step: plan.step, samples: Vec::new() };
        assert_eq!(scheduler.commit(plan, &output), []);
    }
    let again = scheduler.schedule(0).unwrap();
    assert_eq!((again.step, &again.slices[0].tokens), (3, &lost[0].slices[0].tokens));
}
