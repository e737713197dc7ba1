//! Draws with random parameters, alone and mixed.

use crate::{VOCAB, agree, cuda, draw, logits, mask, plain};
use chorale_device::{Draw, PenaltyTerms};
use chorale_kbench::reference::Random;

/// Seeds of the emulator, of which each runs in another order.
const SEEDS: u64 = 6;

fn mixed(random: &mut Random, vocab: usize, position: u32) -> Draw {
    let token = |random: &mut Random| random.below(vocab) as u32;
    let mut history: Vec<u32> = (0..random.below(40)).map(|_| token(random)).collect();
    history.sort_unstable();
    history.dedup();
    let order = random.order(history.len());
    let penalties = (random.below(3) == 0).then(|| PenaltyTerms {
        repetition: random.pick(&[1.0, 1.3, 0.8]),
        presence: random.pick(&[0.0, 0.5, -1.0]),
        frequency: random.pick(&[0.0, 0.25]),
        history: order.iter().map(|&place| (history[place], random.below(4) as u32)).collect(),
    });
    let keeps = random.word();
    let num_biases = random.pick(&[0, 0, 1, 9]);
    let bias: Vec<(u32, f32)> =
        (0..num_biases).map(|_| (token(random), random.pick(&[3.0, -100.0, 0.5]))).collect();
    Draw {
        temperature: random.pick(&[0.0, 0.2, 0.7, 1.0, 1.0, 1.6, 5.0]),
        top_k: random.pick(&[0, 0, 0, 1, 2, 20, 50, 1000, 3000, u32::MAX]),
        top_p: random.pick(&[1.0, 1.0, 1.0, 0.99, 0.9, 0.5, 0.01]),
        min_p: random.pick(&[0.0, 0.0, 0.01, 0.2, 1.0]),
        bias,
        penalties,
        allowed: (random.below(4) == 0)
            .then(|| mask(vocab, |token| keeps.rotate_left(token * 7) & 3 == 0))
            .flatten(),
        seed: random.word(),
        position,
        num_logprobs: random.pick(&[None, None, Some(0), Some(5)]),
    }
}

fn mixes(vocab: usize, rounds: u64, rows: usize) {
    let (mut num_different, mut num_drawn) = (0, 0);
    for round in 0..rounds {
        let random = &mut Random(round * 1000 + vocab as u64);
        let logits: Vec<Vec<f32>> = (0..rows).map(|_| logits(random, vocab)).collect();
        let draws: Vec<Draw> = (0..rows).map(|row| mixed(random, vocab, row as u32)).collect();
        num_different +=
            agree(&format!("mix {round} of {vocab}"), &mut cuda(1 + round % SEEDS), &logits, &draws);
        num_drawn += rows;
    }
    assert!(num_different * 1000 <= num_drawn, "{num_different} of {num_drawn} differ");
}

#[test]
fn mixes_of_5_tokens() {
    mixes(5, 20, 100);
}

#[test]
fn mixes_of_777_tokens() {
    mixes(777, 20, 64);
}

#[test]
fn mixes_of_5000_tokens() {
    mixes(5000, 16, 24);
}

#[test]
fn mixes_of_a_whole_vocabulary() {
    mixes(VOCAB, 2, 16);
}

#[test]
fn each_parameter_alone() {
    let vocab = 6000;
    let random = &mut Random(3);
    let row = logits(random, vocab);
    let kinds = [
        plain(1.0),
        plain(1e-5),
        plain(100.0),
        Draw { top_k: 40, ..plain(1.0) },
        Draw { top_k: 1, ..plain(1.0) },
        Draw { top_k: 2048, ..plain(2.0) },
        Draw { top_k: 2049, ..plain(2.0) },
        Draw { top_k: 5999, ..plain(2.0) },
        Draw { top_k: 6000, ..plain(2.0) },
        Draw { top_p: 0.9, ..plain(1.0) },
        Draw { top_p: 0.9, ..plain(30.0) },
        Draw { top_p: 1e-9, ..plain(30.0) },
        Draw { top_p: 0.95, top_k: 2500, ..plain(30.0) },
        Draw { min_p: 0.05, ..plain(1.0) },
        Draw { min_p: 0.9, ..plain(30.0) },
        Draw { min_p: 0.9, top_p: 0.9, ..plain(30.0) },
        Draw { min_p: 1.5, ..plain(1.0) },
    ];
    for (seed, kind) in kinds.into_iter().enumerate() {
        let draws: Vec<Draw> = (0..20).map(|position| Draw { position, ..kind.clone() }).collect();
        let num_different = agree("alone", &mut cuda(seed as u64), &vec![row.clone(); 20], &draws);
        assert!(num_different <= 1, "{kind:?}: {num_different} of 20 differ");
    }
}

/// Many equal logits: more than can be listed at once fall into one bin, and
/// into one logit.
#[test]
fn ties_are_broken_by_the_token() {
    let vocab = 9000;
    let rows: [Vec<f32>; 4] = [
        vec![0.25; vocab],
        (0..vocab).map(|token| (token * 7919 % 4) as f32 * 0.01).collect(),
        (0..vocab).map(|token| if token % 3 == 0 { 1.0 } else { f32::NEG_INFINITY }).collect(),
        (0..vocab).map(|token| -(token as f32).ln()).collect(),
    ];
    for (seed, row) in rows.iter().enumerate() {
        let kinds =
            [(0, 0.5), (0, 0.999), (1, 1.0), (100, 1.0), (2048, 0.5), (2500, 1.0), (2500, 0.7), (9000, 0.9)];
        let draws: Vec<Draw> = (0..40)
            .map(|position| {
                let (top_k, top_p) = kinds[position as usize % kinds.len()];
                Draw { top_k, top_p, position, ..plain([1.0, 0.5][position as usize % 2]) }
            })
            .collect();
        let num_different = agree("ties", &mut cuda(seed as u64), &vec![row.clone(); 40], &draws);
        assert_eq!(num_different, 0, "row {seed}");
    }
}

#[test]
fn tokens_come_as_often_as_they_are_probable() {
    let probabilities = [0.5f64, 0.2, 0.15, 0.1, 0.05];
    let row: Vec<f32> = probabilities.iter().map(|p| p.ln() as f32).collect();
    let kinds = [
        (plain(1.0), vec![0.5, 0.2, 0.15, 0.1, 0.05]),
        (Draw { top_k: 2, ..plain(1.0) }, vec![5.0 / 7.0, 2.0 / 7.0, 0.0, 0.0, 0.0]),
        (Draw { top_p: 0.8, ..plain(1.0) }, vec![0.5 / 0.85, 0.2 / 0.85, 0.15 / 0.85, 0.0, 0.0]),
        (Draw { min_p: 0.25, ..plain(1.0) }, vec![0.5 / 0.85, 0.2 / 0.85, 0.15 / 0.85, 0.0, 0.0]),
    ];
    let count = 3000;
    for (kind, expected) in kinds {
        let draws: Vec<Draw> = (0..count).map(|position| Draw { position, ..kind.clone() }).collect();
        let mut shares = vec![0.0; row.len()];
        for drawn in draw(&mut cuda(1), &vec![row.clone(); count as usize], &draws) {
            shares[drawn.token as usize] += 1.0 / f64::from(count);
        }
        for (share, expected) in shares.iter().zip(&expected) {
            assert!((share - expected).abs() < 0.035, "{shares:?} is not {expected:?}: {kind:?}");
            assert!(*expected > 0.0 || *share == 0.0, "{shares:?} has what is not kept: {kind:?}");
        }
    }
}
