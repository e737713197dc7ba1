//! The emulator finds bugs: each kernel here has one, and is right without it.
//!
//! A bug ends the process, or makes results differ for some seed; so each runs
//! in a process of its own, which must fail with the words that belong to it.

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

mod rig;

use bytemuck::{Pod, Zeroable};
use chorale_cuda::{Kernel, Launches};
use rig::{Rig, Words, distance, matrix, pairs, product};
use std::process::Command;

const SEEDS: std::ops::Range<u64> = 1..30;

/// A test `bug` that passes where the process running `bug::it` fails with one
/// of the texts, and a test `mended` of the same kernel without its bug.
macro_rules! planted {
    ($($name:ident: $run:expr, $bug:expr, [$($text:expr),+];)*) => {$(
        mod $name {
            use super::*;

            #[test]
            #[ignore = "fails; the test beside it wants that"]
            fn it() {
                SEEDS.for_each(|seed| $run(seed, $bug));
            }

            #[test]
            fn is_found() {
                expect_failure(concat!(stringify!($name), "::it"), &[$($text),+]);
            }

            #[test]
            fn is_not_found_where_it_is_not() {
                SEEDS.for_each(|seed| $run(seed, 0));
            }
        }
    )*};
}

fn expect_failure(test: &str, texts: &[&str]) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{test} passed");
    assert!(texts.iter().any(|text| said.contains(text)), "{test} said:\n{said}");
}

const DIFFERS: &str = "the result differs";
// With the feature `races`, the emulator does not wait for a result.
const RACE: &str = "and nothing orders the two";
const OVERTAKEN: &str = "the phase has had its 1 arrivals";
const STUCK: &str = "wait for mbarrier_wait";

fn expect_words(found: &[u32], expected: &[u32]) {
    assert!(found == expected, "{DIFFERS}: {found:?}");
}

/// Runs a kernel of `planted.cu` on the words 1, 2, …, right unless there is a bug.
struct Planted {
    name: &'static str,
    threads: u32,
    shared_bytes: u32,
    expected: fn(&[u32], usize) -> u32,
}

impl Planted {
    fn run(&self, seed: u64, bug: u32) {
        let rig = Rig::new(seed);
        let input: Vec<u32> = (1..=128).collect();
        let count = self.threads as usize;
        let output = rig.room(count);
        let args = Words { input: rig.put(&input), output, count: 128, flag: u32::from(bug == 0) };
        rig.launch(self.name, self.threads, [1, 1, 1], self.shared_bytes, &args);
        let expected: Vec<u32> = (0..count).map(|i| (self.expected)(&input, i)).collect();
        expect_words(&rig.get(output, count), &expected);
    }
}

const fn one(name: &'static str, threads: u32, expected: fn(&[u32], usize) -> u32) -> Planted {
    Planted { name, threads, shared_bytes: 0, expected }
}

const SHARED_END: Planted =
    Planted { name: "planted_shared_end", threads: 32, shared_bytes: 1000, expected: |input, i| input[i] };

fn reuse(input: &[u32], i: usize) -> u32 {
    (0..4).map(|round| (input[127 - i] + round) * (round + 1)).sum()
}

/// The kernel before has many blocks, and this one reads what the last wrote.
fn early_read(seed: u64, bug: u32) {
    let rig = Rig::new(seed);
    let (input, between, output) = (rig.put(&[7_u32; 64]), rig.room(64), rig.room(64));
    let mut launches = Launches::default();
    let first = Words { input, output: between, count: 64, flag: 0 };
    launches.push(Kernel { name: "selftest_chain", threads: 64 }, [1, 1, 1], 0, &first);
    let second = Words { input: between, output, count: 64, flag: u32::from(bug == 0) };
    launches.push(Kernel { name: "planted_early_read", threads: 64 }, [1, 1, 1], 0, &second);
    rig.run(&launches).unwrap();
    expect_words(&rig.get(output, 64), &[22; 64]);
}

/// The last kernel reads before it waits what the first wrote: right if the one
/// between them has waited before it let the last begin.
fn early_trigger(seed: u64, bug: u32) {
    let rig = Rig::new(seed);
    let (input, between, other, output) = (rig.put(&[7_u32; 64]), rig.room(64), rig.room(64), rig.room(64));
    let mut launches = Launches::default();
    let args = |input, output, flag| Words { input, output, count: 64, flag };
    launches.push(Kernel { name: "selftest_chain", threads: 64 }, [1, 1, 1], 0, &args(input, between, 0));
    let second = args(input, other, u32::from(bug == 0));
    launches.push(Kernel { name: "planted_early_trigger", threads: 64 }, [1, 1, 1], 0, &second);
    launches.push(
        Kernel { name: "planted_early_read", threads: 64 },
        [1, 1, 1],
        0,
        &args(between, output, 0),
    );
    rig.run(&launches).unwrap();
    expect_words(&rig.get(output, 64), &[22; 64]);
}

/// The second block reads far past 128 words.
fn bounds(seed: u64, bug: u32) {
    let rig = Rig::new(seed);
    let output = rig.put(&[0_u32; 32]);
    let input = rig.put(&(0..128).collect::<Vec<u32>>());
    let args = Words { input, output, count: 128, flag: u32::from(bug == 0) };
    rig.launch("planted_bounds", 32, [2, 1, 1], 0, &args);
    expect_words(&rig.get(output, 32), &(0..32).collect::<Vec<u32>>());
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct WgmmaArgs {
    input: u64,
    output: u64,
    bug: u32,
    pad: u32,
}

fn wgmma(seed: u64, bug: u32) {
    let rig = Rig::hopper(seed);
    let rows = matrix(5, 64, 16);
    let output = rig.room(64 * 8);
    let args = WgmmaArgs { input: rig.put(&pairs(&rows)), output, bug, pad: 0 };
    rig.launch("planted_wgmma", 128, [1, 1, 1], 64 * 128, &args);
    let expected = product(&rows, &rows[..8 * 16], 16);
    assert!(distance(&rig.get(output, 64 * 8), &expected) < 1e-3, "{DIFFERS}");
}

fn ring(seed: u64, bug: u32) {
    // The right ring has a test of its own, with as many seeds.
    if bug > 0 || seed == 1 {
        let (results, expected) =
            chorale_kbench::primitives::ring_with_bug(&(Rig::hopper(seed).gpu as _), bug).unwrap();
        assert!(distance(&results, &expected) < 1e-3, "{DIFFERS}");
    }
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct RegistersArgs {
    output: u64,
    bug: u32,
    pad: u32,
}

fn registers(seed: u64, bug: u32) {
    let rig = Rig::hopper(seed);
    let output = rig.room(384);
    rig.launch("planted_registers", 384, [1, 1, 1], 0, &RegistersArgs { output, bug, pad: 0 });
    expect_words(&rig.get(output, 384), &(0..384).collect::<Vec<u32>>());
}

#[cfg(feature = "races")]
fn bulk(seed: u64, bug: u32) {
    let rig = Rig::hopper(seed);
    let input: Vec<u32> = (0..256).map(|i| i * 7).collect();
    let output = rig.room(128);
    let args = WgmmaArgs { input: rig.put(&input), output, bug, pad: 0 };
    rig.launch("planted_bulk", 128, [1, 1, 1], 512, &args);
    let expected: Vec<u32> = (0..128).map(|i| input[i] + 2 * input[128 + i]).collect();
    expect_words(&rig.get(output, 128), &expected);
}

planted! {
    missing_barrier: |s, b| one("planted_barrier", 128, |i, at| i[127 - at]).run(s, b), 1, [DIFFERS, RACE];
    missing_warp_barrier: |s, b| one("planted_warp_barrier", 32, |i, at| i[31 - at]).run(s, b), 1, [DIFFERS, RACE];
    missing_second_barrier: |s, b| one("planted_reuse", 128, reuse).run(s, b), 1, [DIFFERS, RACE];
    missing_copy_wait: |s, b| one("planted_copy", 32, |i, at| i[at * 4 + 1]).run(s, b), 1, [DIFFERS];
    copy_over_what_is_read: |s, b| one("planted_early_copy", 32, |i, at| i[at * 4 + 1]).run(s, b), 1, [DIFFERS];
    missing_pdl_wait: |s, b| one("planted_wait", 64, |i, at| i[at]).run(s, b), 1,
        ["kernel planted_wait, block (0, 0, 0), thread 40: the thread ended without pdl_wait()"];
    read_before_pdl_wait: early_read, 1, [DIFFERS];
    trigger_before_pdl_wait: early_trigger, 1, [DIFFERS];
    read_out_of_bounds: bounds, 1, ["kernel planted_bounds, block (1, 0, 0), thread"];
    divergent_barrier: |s, b| one("planted_divergence", 64, |i, at| i[at]).run(s, b), 1,
        ["kernel planted_divergence, block (0, 0, 0), thread", "divergent barrier"];
    deadlock: |s, b| one("planted_deadlock", 64, |i, at| i[at ^ 1]).run(s, b), 1, ["wait for __shfl_xor_sync"];
    shuffle_with_an_ended_lane: |s, b| one("planted_ended_lane", 32, |i, at| i[at ^ 1]).run(s, b), 1,
        ["has lanes that have ended", "the thread ended, and lane"];
    two_operations_at_once: |s, b| one("planted_mixed_lanes", 32, |i, at| i[at ^ 1]).run(s, b), 1,
        ["at __ballot_sync with mask ffffffff"];
    write_past_shared_memory: |s, b| SHARED_END.run(s, b), 1, ["past the end of dynamic shared memory"];
    write_past_global_memory: |s, b| one("planted_global_end", 32, |i, at| i[at]).run(s, b), 1,
        ["past the end of a global allocation of 128"];
    unaligned_vector: |s, b| one("planted_vector", 32, |i, at| i[at * 2]).run(s, b), 1,
        ["kernel planted_vector, block (0, 0, 0), thread", "at an address that is no multiple of its size"];
    unaligned_copy_of_nothing: |s, b| one("planted_copied_zeros", 32, |_, _| 0).run(s, b), 1,
        ["is no multiple of 16"];
    unaligned_matrix: |s, b| one("planted_alignment", 32, |_, at| first_of_matrix(at)).run(s, b), 1,
        ["ldmatrix_x4: shared address"];
    rows_that_are_not_swizzled: wgmma, 1, [DIFFERS];
    registers_written_before_the_wait: wgmma, 2, [DIFFERS];
    accumulators_read_before_the_wait: wgmma, 3, [DIFFERS];
    barriers_without_a_fence: ring, 1, ["without fence_mbarrier_init()"];
    a_ring_that_overtakes: ring, 2, [DIFFERS, RACE, OVERTAKEN, STUCK];
    bytes_that_never_come: ring, 3, [STUCK];
    boxes_read_before_they_come: ring, 4, [DIFFERS, RACE, OVERTAKEN, "bulk copies are unfinished"];
    missing_wgmma_fence: ring, 5, ["no wgmma_fence()"];
    boxes_given_back_too_early: ring, 6, [DIFFERS, RACE, STUCK];
    boxes_given_back_by_one_warp_for_all: ring, 7, [DIFFERS, RACE];
    rows_that_begin_within_the_swizzle: wgmma, 5, ["behind a multiple of 1024"];
    registers_taken_that_are_fewer: registers, 1, ["setmaxnreg_inc<40>: the thread has 168 registers"];
}

#[cfg(feature = "races")]
planted! {
    missing_proxy_fence: wgmma, 4, ["wrote without fence_proxy_async()"];
    bulk_copy_over_what_was_read: bulk, 1, ["read without fence_proxy_async()"];
}

/// The word of the first matrix's fragment, where rows are the words 1, 2, ….
fn first_of_matrix(lane: usize) -> u32 {
    (lane / 4 * 4 + lane % 4 + 1) as u32
}
