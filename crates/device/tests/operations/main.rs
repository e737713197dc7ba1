//! Tests every operation of the portable device against plain f64 loops, over
//! random shapes and the edges. The checks are kbench's: a faster device is held
//! to the same ones.

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

mod fixtures;

use chorale_device::Cpu;
use chorale_kbench::Demands;
use chorale_kbench::checks::families;
use std::num::NonZeroUsize;

pub(crate) fn cpu() -> Cpu {
    Cpu::new(NonZeroUsize::new(2)).unwrap()
}

fn passes(family: &str) {
    let family = families().into_iter().find(|found| found.name == family).unwrap();
    for check in family.checks {
        if let Err(failure) = check.run(&mut cpu(), &Demands::CPU) {
            panic!("{}: {failure}", check.name);
        }
    }
}

#[test]
fn what_the_host_does() {
    passes("host");
}

#[test]
fn rows() {
    passes("rows");
}

#[test]
fn attention() {
    passes("attention");
}

#[test]
fn experts() {
    passes("experts");
}

#[test]
fn draws() {
    passes("draws");
}

#[test]
fn nothing() {
    passes("nothing");
}

/// Against itself: the checks themselves hold together.
#[test]
fn portable() {
    passes("portable");
}

#[test]
fn no_family_is_left_out() {
    let names: Vec<&str> = families::<Cpu>().iter().map(|family| family.name).collect();
    assert_eq!(names, ["host", "rows", "attention", "experts", "draws", "nothing", "portable"]);
}

/// A comparison that cannot fail proves nothing.
#[test]
fn a_device_that_is_wrong_fails() {
    let strict = Demands { head_dims: &[64], ..Demands::CUDA };
    // It rounds nothing, so it is not what a bf16 device is expected to be.
    let host = families::<Cpu>().into_iter().next().unwrap();
    let failure = host.checks[0].run(&mut cpu(), &strict).unwrap_err();
    assert!(failure.to_string().contains("in half"), "{failure}");
}
