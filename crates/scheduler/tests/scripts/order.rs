//! Who runs in which step, when pages are plenty.

use crate::play::{check, config};
use expect_test::expect;

#[test]
fn a_long_prompt_is_chunked_beside_a_running_decode() {
    check(
        config(&[8]),
        "3+3 12+1",
        expect![[r#"
        1: s0@0[0+3]* s1@0[0+5]
        2: s0@0[3+1]* s1@0[5+7]*
        3: s0@0[4+1]*
    "#]],
    );
}

#[test]
fn a_prompt_is_admitted_into_what_is_left_of_the_budget() {
    check(
        config(&[8]),
        "6+1 6+1 6+1",
        expect![[r#"
        1: s0@0[0+6]* s1@0[0+2]
        2: s1@0[2+4]* s2@0[0+4]
        3: s2@0[4+2]*
    "#]],
    );
}

#[test]
fn no_more_sequences_than_slices_run_at_a_time() {
    let mut config = config(&[8]);
    config.homes[0].max_step_slices = 2;
    check(
        config,
        "1+3 1+1 1+1 1+1",
        expect![[r#"
        1: s0@0[0+1]* s1@0[0+1]*
        2: s0@0[1+1]* s2@0[0+1]*
        3: s0@0[2+1]* s3@0[0+1]*
    "#]],
    );
}

#[test]
fn sequences_spread_over_homes_that_have_a_cache() {
    check(
        config(&[4, 0, 4]),
        "3+1 3+1",
        expect![[r#"
        1: s0@0[0+3]* s1@2[0+3]*
    "#]],
    );
}

#[test]
fn each_home_has_its_own_budget() {
    check(
        config(&[4, 8]),
        "10+1 10+1 10+1",
        expect![[r#"
        1: s0@0[0+4] s1@1[0+8]
        2: s0@0[4+4] s1@1[8+2]* s2@1[0+6]
        3: s0@0[8+2]* s2@1[6+4]*
    "#]],
    );
}

#[test]
fn slices_are_listed_by_rank_whatever_the_order_of_arrival() {
    let mut config = config(&[8, 8]);
    config.homes[0].num_full_blocks = 63;
    config.homes.reverse();
    check(
        config,
        "4+2 4+2",
        expect![[r#"
            1: s1@0[0+4]* s0@1[0+4]*
            2: s1@0[4+1]* s0@1[4+1]*
        "#]],
    );
}

#[test]
fn a_lower_priority_number_goes_first_in_prompts_and_slots() {
    let mut config = config(&[8]);
    config.homes[0].max_step_slices = 1;
    check(
        config,
        "2+1 2+1/p5 2+1/p-5",
        expect![[r#"
        1: s2@0[0+2]*
        2: s0@0[0+2]*
        3: s1@0[0+2]*
    "#]],
    );
}

#[test]
fn an_urgent_prompt_takes_the_budget_between_the_slices_of_a_long_one() {
    check(
        config(&[8]),
        "24+1 ; 8+1/p-1 4+1/p1",
        expect![[r#"
        1: s0@0[0+8]
        2: s1@0[0+8]*
        3: s0@0[8+8]
        4: s0@0[16+8]*
        5: s2@0[0+4]*
    "#]],
    );
}

#[test]
fn a_cancelled_sequence_is_not_planned_again() {
    check(
        config(&[8]),
        "4+9 4+2 ; x0",
        expect![[r#"
        1: s0@0[0+4]* s1@0[0+4]*
        2: s1@0[4+1]*
    "#]],
    );
}
