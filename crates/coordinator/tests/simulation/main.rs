//! The whole cluster on paper: a coordinator's membership and workers that crash,
//! hang, freeze, lie and leave, on one clock and from one seed. A run that fails
//! prints its seed, and the same seed gives the same run:
//!
//! `CHORALE_SIMULATION_SEED=17 cargo test -p chorale-coordinator --test simulation`
//!
//! More runs: `CHORALE_SIMULATION_SEEDS=100000`.

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

mod checks;
#[path = "../../src/cluster/draw.rs"]
mod draw;
mod faults;
mod life;
mod worker;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use world::Simulation;

/// Runs that every `cargo test` makes: a few seconds' worth.
const NUM_SEEDS: u64 = 600;

fn number(text: Option<&str>) -> Option<u64> {
    text.map(|text| text.parse().unwrap())
}

#[test]
fn whatever_fails_the_cluster_comes_together_again() {
    let only = number(option_env!("CHORALE_SIMULATION_SEED"));
    let num_seeds = number(option_env!("CHORALE_SIMULATION_SEEDS")).unwrap_or(NUM_SEEDS);
    let seeds = only.map_or(0..num_seeds, |seed| seed..seed + 1);
    let started = std::time::Instant::now();
    let (mut num_epochs, mut num_steps, mut num_faults, mut num_moves) = (0, 0, 0, 0);
    for seed in seeds.clone() {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let mut simulation = Simulation::new(seed, only.is_some());
            simulation.run();
            simulation.counts
        }));
        let Ok(counts) = outcome else {
            panic!("seed {seed} failed: CHORALE_SIMULATION_SEED={seed} runs it alone, with its trace");
        };
        num_epochs += counts.num_epochs;
        num_steps += counts.num_steps;
        num_faults += counts.num_faults;
        num_moves += counts.num_moves;
    }
    let took = started.elapsed();
    println!(
        "{} seeds in {took:?}: {num_faults} faults, {num_epochs} epochs, {num_steps} steps, {num_moves} placements",
        seeds.end - seeds.start
    );
    if only.is_none() {
        assert!(num_epochs > 3 * num_seeds && num_steps > 50 * num_seeds && num_faults > 3 * num_seeds);
        assert!(num_moves > 0, "no placement ever changed");
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in [1, 2, 3] {
        let trace = || {
            let mut simulation = Simulation::new(seed, false);
            simulation.run();
            (simulation.counts, simulation.digest)
        };
        assert_eq!(trace(), trace());
    }
}
