//! The prefix cache: what is found, what is not, and what is forgotten first.

use crate::play::{Play, check, check_ends, config, pages};
use expect_test::expect;

#[test]
fn a_prefix_that_was_computed_is_not_computed_again() {
    check(
        config(&[32]),
        "20+1/c16 ; 20+1/c16 ; 9+1/c9",
        expect![[r#"
        1: s0@0[0+20]*
        2: s1@0[16+4]*
        3: s2@0[8+1]*
    "#]],
    );
}

#[test]
fn the_last_token_is_always_computed() {
    check(
        config(&[32]),
        "8+1/c8 ; 8+1/c8 ; 9+1/c8",
        expect![[r#"
        1: s0@0[0+8]*
        2: s1@0[4+4]*
        3: s2@0[8+1]*
    "#]],
    );
}

#[test]
fn what_was_sampled_can_be_found_too() {
    // The second prompt is the first with all of its output.
    let mut play = Play::new(config(&[32]));
    play.run("6+7");
    let mut prompt: Vec<u32> = (1000..1006).chain(100_001..100_008).collect();
    prompt.push(9);
    play.submit_request(chorale_scheduler::Request::new(prompt, 1.try_into().unwrap()));
    play.run("");
    expect![[r#"
        s0: length, 6(0)+7, began after 0 ms
        s1: length, 14(12)+1, began after 0 ms
    "#]]
    .assert_eq(&play.ends);
}

#[test]
fn the_next_turn_finds_the_prompt_although_a_long_output_followed_it() {
    check(
        config(&[32]),
        "13+40/c13 ; ; ; ; ; ; ; ; ; ; ; ; ; ; ; ; ; ; ; ; ; ; ; ; ; ; ; ; ; ; 20+1/c12",
        expect![[r#"
        1: s0@0[0+13]*
        2: s0@0[13+1]*
        3: s0@0[14+1]*
        4: s0@0[15+1]*
        5: s0@0[16+1]*
        6: s0@0[17+1]*
        7: s0@0[18+1]*
        8: s0@0[19+1]*
        9: s0@0[20+1]*
        10: s0@0[21+1]*
        11: s0@0[22+1]*
        12: s0@0[23+1]*
        13: s0@0[24+1]*
        14: s0@0[25+1]*
        15: s0@0[26+1]*
        16: s0@0[27+1]*
        17: s0@0[28+1]*
        18: s0@0[29+1]*
        19: s0@0[30+1]*
        20: s0@0[31+1]*
        21: s0@0[32+1]*
        22: s0@0[33+1]*
        23: s0@0[34+1]*
        24: s0@0[35+1]*
        25: s0@0[36+1]*
        26: s0@0[37+1]*
        27: s0@0[38+1]*
        28: s0@0[39+1]*
        29: s0@0[40+1]*
        30: s0@0[41+1]*
        31: s0@0[42+1]* s1@0[12+8]*
        32: s0@0[43+1]*
        33: s0@0[44+1]*
        34: s0@0[45+1]*
        35: s0@0[46+1]*
        36: s0@0[47+1]*
        37: s0@0[48+1]*
        38: s0@0[49+1]*
        39: s0@0[50+1]*
        40: s0@0[51+1]*
    "#]],
    );
}

#[test]
fn pages_are_shared_while_both_run() {
    let mut play = Play::new(config(&[32]));
    play.play("17+9/c16 ; 17+9/c16 ;");
    assert_eq!(play.stats().homes[0].full.num_held, 6);
    play.run("");
}

#[test]
fn pages_that_are_not_committed_are_not_found() {
    check(
        config(&[32]),
        "9+1/c8 9+1/c8",
        expect![[r#"
        1: s0@0[0+9]* s1@0[0+9]*
    "#]],
    );
}

#[test]
fn salts_do_not_find_each_other() {
    check_ends(
        config(&[32]),
        "9+1/c8/s1 ; 9+1/c8/s2 ; 9+1/c8 ; 9+1/c8/s1",
        expect![[r#"
        s0: length, 9(0)+1, began after 0 ms
        s1: length, 9(0)+1, began after 0 ms
        s2: length, 9(0)+1, began after 0 ms
        s3: length, 9(8)+1, began after 0 ms
    "#]],
    );
}

#[test]
fn a_request_can_keep_out_of_the_cache() {
    check_ends(
        config(&[32]),
        "9+1/c8/off ; 9+1/c8 ; 9+1/c8/off ; 9+1/c8",
        expect![[r#"
        s0: length, 9(0)+1, began after 0 ms
        s1: length, 9(0)+1, began after 0 ms
        s2: length, 9(0)+1, began after 0 ms
        s3: length, 9(8)+1, began after 0 ms
    "#]],
    );
}

#[test]
fn the_cache_can_be_switched_off() {
    let mut config = config(&[32]);
    config.prefix_caching = false;
    check_ends(
        config,
        "9+1/c8 ; 9+1/c8",
        expect![[r#"
        s0: length, 9(0)+1, began after 0 ms
        s1: length, 9(0)+1, began after 0 ms
    "#]],
    );
}

#[test]
fn what_was_used_the_longest_ago_is_forgotten_first() {
    // Six pages: the fourth prompt needs one of those that are kept, and takes
    // it from the second, since the third has used the first's again.
    check_ends(
        pages(6, 64),
        "8+1/c8 ; 8+1 ; 9+1/c8 ; 12+1 ; 9+1/c8",
        expect![[r#"
            s0: length, 8(0)+1, began after 0 ms
            s1: length, 8(0)+1, began after 0 ms
            s2: length, 9(8)+1, began after 0 ms
            s3: length, 12(0)+1, began after 0 ms
            s4: length, 9(8)+1, began after 0 ms
        "#]],
    );
}

#[test]
fn a_prefix_without_its_window_is_not_used() {
    // All full pages are kept, but the sliding pool is smaller.
    check(
        pages(64, 6),
        "24+1/c24 ; 17+1 ; 25+1/c24",
        expect![[r#"
            1: s0@0[0+24]*
            2: s1@0[0+17]*
            3: s2@0[0+24]
            4: s2@0[24+1]*
        "#]],
    );
}

#[test]
fn a_sequence_that_lost_its_pages_may_find_them_again() {
    check(
        pages(6, 64),
        "6+12 6+12",
        expect![[r#"
        1: s0@0[0+6]* s1@0[0+6]*
        2: s0@0[6+1]* s1@0[6+1]*
        3: s0@0[7+1]* s1@0[7+1]*
        4: s0@0[8+1]* s1@0[8+1]*
        5: s0@0[9+1]* s1@0[9+1]*
        6: s0@0[10+1]* s1@0[10+1]*
        7: s0@0[11+1]* s1@0[11+1]*
        8: s0@0[12+1]*
        9: s0@0[13+1]*
        10: s0@0[14+1]*
        11: s0@0[15+1]*
        12: s0@0[16+1]*
        13: s1@0[4+9]*
        14: s1@0[13+1]*
        15: s1@0[14+1]*
        16: s1@0[15+1]*
        17: s1@0[16+1]*
    "#]],
    );
}

#[test]
fn a_request_goes_to_the_home_that_knows_its_prefix() {
    check(
        config(&[32, 32]),
        "3+1 9+1/c8 ; 9+1/c8 9+1",
        expect![[r#"
        1: s0@0[0+3]* s1@1[0+9]*
        2: s3@0[0+9]* s2@1[8+1]*
    "#]],
    );
}

#[test]
fn a_crowded_home_is_passed_over_whatever_it_knows() {
    check(
        config(&[32, 32]),
        "9+1/c8 ; 9+3/c8 9+3/c8 9+3/c8 9+3/c8 9+3/c8",
        expect![[r#"
        1: s0@0[0+9]*
        2: s1@0[8+1]* s2@0[8+1]* s3@0[8+1]* s5@0[8+1]* s4@1[0+9]*
        3: s1@0[9+1]* s2@0[9+1]* s3@0[9+1]* s5@0[9+1]* s4@1[9+1]*
        4: s1@0[10+1]* s2@0[10+1]* s3@0[10+1]* s5@0[10+1]* s4@1[10+1]*
    "#]],
    );
}

#[test]
fn queries_and_hits_are_counted_in_tokens() {
    let mut play = Play::new(config(&[32]));
    play.run("20+1/c16 ; 20+1/c16 ; 5+1/off");
    let stats = play.stats();
    assert_eq!((stats.prefix_cache_queries_tokens, stats.prefix_cache_hits_tokens), (40, 16));
}
