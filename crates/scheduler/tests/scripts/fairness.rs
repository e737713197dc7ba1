//! Fair shares between keys.

use crate::play::{Play, check, config};
use chorale_scheduler::Config;
use expect_test::expect;

fn one_at_a_time() -> Config {
    let mut config = config(&[8]);
    config.homes[0].max_step_slices = 1;
    config
}

#[test]
fn inside_a_key_the_order_is_that_of_arrival() {
    check(
        one_at_a_time(),
        "2+1 2+1 2+1",
        expect![[r#"
        1: s0@0[0+2]*
        2: s1@0[0+2]*
        3: s2@0[0+2]*
    "#]],
    );
}

#[test]
fn keys_take_turns_however_many_requests_one_of_them_has() {
    check(
        one_at_a_time(),
        "4+1/k1 4+1/k1 4+1/k1 4+1/k1 4+1/k2 4+1/k2",
        expect![[r#"
        1: s0@0[0+4]*
        2: s4@0[0+4]*
        3: s1@0[0+4]*
        4: s5@0[0+4]*
        5: s2@0[0+4]*
        6: s3@0[0+4]*
    "#]],
    );
}

#[test]
fn turns_are_counted_in_tokens() {
    check(
        one_at_a_time(),
        "8+1/k1 8+1/k1 2+1/k2 2+1/k2 2+1/k2 2+1/k2",
        expect![[r#"
        1: s0@0[0+8]*
        2: s2@0[0+2]*
        3: s3@0[0+2]*
        4: s4@0[0+2]*
        5: s1@0[0+8]*
        6: s5@0[0+2]*
    "#]],
    );
}

#[test]
fn a_key_of_twice_the_weight_has_twice_the_turns() {
    check(
        one_at_a_time(),
        "4+1/k1 4+1/k1 4+1/k2/w2 4+1/k2/w2 4+1/k2/w2 4+1/k2/w2",
        expect![[r#"
        1: s0@0[0+4]*
        2: s2@0[0+4]*
        3: s3@0[0+4]*
        4: s1@0[0+4]*
        5: s4@0[0+4]*
        6: s5@0[0+4]*
    "#]],
    );
}

#[test]
fn a_long_prompt_shares_the_budget_with_other_keys_slice_by_slice() {
    check(
        config(&[8]),
        "40+1/k1 ; 12+1/k2 12+1/k1",
        expect![[r#"
        1: s0@0[0+8]
        2: s0@0[8+8]
        3: s1@0[0+8]
        4: s0@0[16+8]
        5: s1@0[8+4]* s0@0[24+4]
        6: s0@0[28+8]
        7: s0@0[36+4]* s2@0[0+4]
        8: s2@0[4+8]*
    "#]],
    );
}

#[test]
fn a_key_that_was_away_has_no_claim_on_the_past() {
    check(
        one_at_a_time(),
        "4+1/k1 4+1/k1 4+1/k1 4+1/k1 ; ; 4+1/k2 4+1/k2",
        expect![[r#"
        1: s0@0[0+4]*
        2: s1@0[0+4]*
        3: s2@0[0+4]*
        4: s4@0[0+4]*
        5: s3@0[0+4]*
        6: s5@0[0+4]*
    "#]],
    );
}

#[test]
fn over_a_long_time_keys_get_tokens_in_proportion_to_their_weights() {
    let mut config = one_at_a_time();
    config.homes[0].max_step_slices = 4;
    config.max_waiting_tokens = 100_000;
    config.max_waiting_requests = 10_000;
    let mut play = Play::new(config);
    for round in 0..600 {
        let prompt = 2 + round % 7;
        play.submit(&format!("{prompt}+3/k1")).unwrap();
        play.submit(&format!("{}+2/k2/w3", 9 - prompt)).unwrap();
    }
    (0..300).for_each(|_| play.step());
    let mut tokens = [0.0; 2];
    for line in play.ends.lines() {
        let (id, rest) = line[1..].split_once(':').unwrap();
        let counts = rest.split(", ").nth(1).unwrap();
        let (prompt, output) = counts.split_once('+').unwrap();
        let prompt: f64 = prompt.split_once('(').unwrap().0.parse().unwrap();
        tokens[id.parse::<usize>().unwrap() % 2] += prompt + 2.0 * output.parse::<f64>().unwrap();
    }
    let ratio = tokens[1] / tokens[0];
    assert!((2.7..3.3).contains(&ratio), "{tokens:?}");
}
