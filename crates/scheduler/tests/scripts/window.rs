//! Pages of the sliding layers: only the window and the slice are held.

use crate::play::{Play, config, pages};
use chorale_scheduler::Config;
use expect_test::{Expect, expect};

fn check_pages(config: Config, script: &str, expect: Expect) {
    let mut play = Play::new(config);
    play.with_pages = true;
    play.run(script);
    expect.assert_eq(&play.trace);
}

#[test]
fn pages_behind_the_window_are_returned_and_taken_again() {
    let mut config = pages(64, 4);
    config.homes[0].max_step_tokens = 8;
    config.prefix_caching = false;
    check_pages(
        config,
        "15+8",
        expect![[r#"
        1: s0@0[0+8] full 0:0,1 sliding 0:0,1
        2: s0@0[8+7]* full 0:0,1,2,3 sliding 0:0,1,2,3
        3: s0@0[15+1]* full 0:0,1,2,3 sliding 2:2,3
        4: s0@0[16+1]* full 0:0,1,2,3,4 sliding 2:2,3,1
        5: s0@0[17+1]* full 0:0,1,2,3,4 sliding 2:2,3,1
        6: s0@0[18+1]* full 0:0,1,2,3,4 sliding 2:2,3,1
        7: s0@0[19+1]* full 0:0,1,2,3,4 sliding 3:3,1
        8: s0@0[20+1]* full 0:0,1,2,3,4,5 sliding 3:3,1,2
        9: s0@0[21+1]* full 0:0,1,2,3,4,5 sliding 3:3,1,2
    "#]],
    );
}

#[test]
fn a_slice_is_no_longer_than_the_sliding_pages_allow() {
    check_pages(
        pages(64, 3),
        "20+1",
        expect![[r#"
        1: s0@0[0+12] full 0:0,1,2 sliding 0:0,1,2
        2: s0@0[12+4] full 0:0,1,2,3 sliding 1:1,2,0
        3: s0@0[16+4]* full 0:0,1,2,3,4 sliding 2:2,0,1
    "#]],
    );
}

#[test]
fn in_flight_pages_behind_the_window_are_held_until_the_commit() {
    let mut config = pages(64, 5);
    config.homes[0].max_step_tokens = 8;
    config.max_steps_in_flight = 2;
    config.prefix_caching = false;
    check_pages(
        config,
        "20+4",
        expect![[r#"
        1: s0@0[0+8] full 0:0,1 sliding 0:0,1
        2: s0@0[8+8] full 0:0,1,2,3 sliding 0:0,1,2,3
        3: s0@0[16+4]* full 0:0,1,2,3,4 sliding 2:2,3,4
        4: s0@0[20+1~]* full 0:0,1,2,3,4,5 sliding 3:3,4,1
        5: s0@0[21+1~]* full 0:0,1,2,3,4,5 sliding 3:3,4,1
        6: s0@0[22+1~]* full 0:0,1,2,3,4,5 sliding 3:3,4,1
    "#]],
    );
}

#[test]
fn windows_of_running_sequences_never_compete() {
    // Three pages each: the third sequence waits although pages are blank.
    let mut play = Play::new(pages(64, 8));
    play.play("2+30 2+30 2+30 ;");
    assert_eq!((play.stats().num_running, play.stats().num_waiting()), (2, 1));
    play.run("");
    assert_eq!(play.stats().num_preemptions, 0);
}

#[test]
fn a_model_without_sliding_layers_needs_no_pages_for_them() {
    let mut config = config(&[8]);
    config.window_tokens = None;
    config.homes[0].num_sliding_blocks = 0;
    check_pages(
        config,
        "6+3",
        expect![[r#"
        1: s0@0[0+6]* full 0:0,1 sliding 0:
        2: s0@0[6+1]* full 0:0,1 sliding 0:
        3: s0@0[7+1]* full 0:0,1 sliding 0:
    "#]],
    );
}
