//! What happens when pages run out.

use crate::play::{check, check_ends, config, pages};
use expect_test::expect;

#[test]
fn the_latest_arrival_loses_its_pages_and_is_computed_again() {
    check(
        pages(5, 64),
        "7+8 7+8",
        expect![[r#"
        1: s0@0[0+7]* s1@0[0+7]*
        2: s0@0[7+1]* s1@0[7+1]*
        3: s0@0[8+1]*
        4: s0@0[9+1]*
        5: s0@0[10+1]*
        6: s0@0[11+1]*
        7: s0@0[12+1]*
        8: s0@0[13+1]*
        9: s1@0[4+5]*
        10: s1@0[9+1]*
        11: s1@0[10+1]*
        12: s1@0[11+1]*
        13: s1@0[12+1]*
        14: s1@0[13+1]*
    "#]],
    );
}

#[test]
fn the_highest_priority_number_loses_its_pages_first() {
    check(
        pages(5, 64),
        "7+8/p1 7+8",
        expect![[r#"
        1: s1@0[0+7]* s0@0[0+7]*
        2: s1@0[7+1]* s0@0[7+1]*
        3: s1@0[8+1]*
        4: s1@0[9+1]*
        5: s1@0[10+1]*
        6: s1@0[11+1]*
        7: s1@0[12+1]*
        8: s1@0[13+1]*
        9: s0@0[4+5]*
        10: s0@0[9+1]*
        11: s0@0[10+1]*
        12: s0@0[11+1]*
        13: s0@0[12+1]*
        14: s0@0[13+1]*
    "#]],
    );
}

#[test]
fn what_was_lost_is_counted_and_still_finishes() {
    check_ends(
        pages(5, 64),
        "7+8 7+8",
        expect![[r#"
        s0: length, 7(0)+8, began after 0 ms
        s1: length, 7(0)+8, began after 0 ms, lost 1x
    "#]],
    );
}

#[test]
fn a_prompt_waits_until_its_pages_are_there_and_is_not_overtaken() {
    check(
        pages(5, 64),
        "14+2 12+2 2+1",
        expect![[r#"
        1: s0@0[0+14]*
        2: s0@0[14+1]*
        3: s1@0[0+12]* s2@0[0+2]*
        4: s1@0[12+1]*
    "#]],
    );
}

#[test]
fn a_running_sequence_keeps_room_for_its_next_page() {
    check(
        pages(4, 64),
        "4+9 8+1",
        expect![[r#"
        1: s0@0[0+4]* s1@0[0+8]*
        2: s0@0[4+1]*
        3: s0@0[5+1]*
        4: s0@0[6+1]*
        5: s0@0[7+1]*
        6: s0@0[8+1]*
        7: s0@0[9+1]*
        8: s0@0[10+1]*
        9: s0@0[11+1]*
    "#]],
    );
}

#[test]
fn half_filled_prompts_never_wait_for_each_other() {
    let mut config = pages(8, 64);
    config.homes[0].max_step_tokens = 8;
    check(
        config,
        "24+1/k1 24+1/k2",
        expect![[r#"
        1: s0@0[0+8]
        2: s0@0[8+8]
        3: s0@0[16+8]*
        4: s1@0[0+8]
        5: s1@0[8+8]
        6: s1@0[16+8]*
    "#]],
    );
}

#[test]
fn when_all_ranks_are_lost_everything_is_computed_again() {
    check(
        config(&[16]),
        "5+4 9+3 ; ; ! 3+1",
        expect![[r#"
        1: s0@0[0+5]* s1@0[0+9]*
        2: s0@0[5+1]* s1@0[9+1]*
        3: s0@0[0+7]* s1@0[0+9]
        4: s0@0[7+1]* s1@0[9+2]* s2@0[0+3]*
    "#]],
    );
}

#[test]
fn sequences_that_are_homed_anew_go_on_where_they_were() {
    check_ends(
        config(&[16, 16]),
        "5+4 9+3 ; ; ! ; !",
        expect![[r#"
        s1: length, 9(0)+3, began after 0 ms
        s0: length, 5(0)+4, began after 0 ms
    "#]],
    );
}
