//! Draws at temperature 0, and what logits may hold that is no number.

use crate::{VOCAB, agree, cuda, draw, mask, plain};
use chorale_device::{Draw, PenaltyTerms};

const SIZES: [usize; 8] = [1, 5, 32, 777, 4095, 4096, 5000, VOCAB];

#[test]
fn the_lowest_of_the_largest_is_drawn() {
    for vocab in SIZES {
        let flat = vec![-1.5f32; vocab];
        let with = |values: &[(usize, f32)]| {
            let mut row = flat.clone();
            values.iter().for_each(|&(token, value)| row[token % vocab] = value);
            row
        };
        let cases = [
            (flat.clone(), 0),
            (with(&[(vocab - 1, 2.0)]), vocab - 1),
            (with(&[(vocab / 2, 2.0), (vocab - 1, 2.0)]), vocab / 2),
            (with(&[(0, f32::NAN), (vocab - 1, -1.0)]), vocab - 1),
            (with(&[(vocab / 3, f32::INFINITY), (vocab - 1, f32::NAN)]), vocab / 3),
            (vec![f32::NAN; vocab], 0),
            (vec![-f32::NAN; vocab], 0),
            (vec![f32::NEG_INFINITY; vocab], 0),
        ];
        let rows: Vec<Vec<f32>> = cases.iter().map(|(row, _)| row.clone()).collect();
        let device = &mut cuda(vocab as u64);
        let greedy = vec![plain(0.0); rows.len()];
        let tokens: Vec<u32> = draw(device, &rows, &greedy).iter().map(|drawn| drawn.token).collect();
        if vocab > 4 {
            let expected: Vec<u32> = cases.iter().map(|&(_, token)| token as u32).collect();
            assert_eq!(tokens, expected, "vocabulary of {vocab}");
        }
        assert_eq!(agree("greedy", device, &rows, &greedy), 0);
    }
}

#[test]
fn zeros_of_either_sign_are_equal() {
    let rows = vec![vec![-0.0, 0.0, -1.0], vec![0.0, -0.0, -1.0]];
    let device = &mut cuda(1);
    let tokens: Vec<u32> =
        draw(device, &rows, &[plain(0.0), plain(0.0)]).iter().map(|drawn| drawn.token).collect();
    assert_eq!(tokens, [0, 0]);
}

#[test]
fn what_is_no_number_is_drawn_only_where_nothing_else_is() {
    let odd = [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, 3.0e38, -3.0e38, 1e-3];
    for (seed, vocab) in [(1, 5), (2, 40), (3, 5000)] {
        let rows: Vec<Vec<f32>> = (0..24)
            .map(|row| {
                let period = 2 + row % 7;
                (0..vocab).map(|token| odd[(token * period + row + token / 11) % odd.len()]).collect()
            })
            .collect();
        let draws: Vec<Draw> = (0..24)
            .map(|position| Draw {
                top_k: [0, 3, 0][position as usize % 3],
                top_p: [1.0, 1.0, 0.5][position as usize % 3],
                min_p: [0.0, 0.1][position as usize / 12],
                position,
                num_logprobs: [None, Some(3)][position as usize % 2],
                ..plain([0.0, 1.0, 1e-6, 3.0][position as usize % 4])
            })
            .collect();
        agree("odd logits", &mut cuda(seed), &rows, &draws);
    }
}

#[test]
fn masks_biases_and_penalties_decide_the_largest() {
    for vocab in [96, 777, 20_000] {
        let row: Vec<f32> = (0..vocab).map(|token| (token % 50) as f32 / 10.0).collect();
        let terms = |repetition, presence, frequency, history| {
            Some(PenaltyTerms { repetition, presence, frequency, history })
        };
        let last = vocab as u32 - 1;
        let every: Vec<(u32, u32)> = (0..vocab as u32).map(|token| (token, token % 3)).collect();
        let draws = [
            Draw { allowed: mask(vocab, |token| token % 50 < 20), ..plain(0.0) },
            Draw { allowed: mask(vocab, |token| token == last), ..plain(0.0) },
            Draw { allowed: mask(vocab, |_| false), ..plain(0.0) },
            // Shorter than the vocabulary: what is beyond is not allowed.
            Draw { allowed: Some([7u32 << 20].as_slice().into()), ..plain(0.0) },
            Draw { bias: vec![(last, 100.0), (3, 50.0)], ..plain(0.0) },
            Draw { bias: vec![(9, 0.1); 60], ..plain(0.0) },
            Draw { bias: vec![(last, 3.0), (2, 8.0), (last, 6.0), (2, -8.0)], ..plain(0.0) },
            Draw { penalties: terms(1.0, 2.0, 0.5, every.clone()), ..plain(0.0) },
            Draw { penalties: terms(3.0, 0.0, 0.0, every.iter().rev().copied().collect()), ..plain(0.0) },
            Draw {
                allowed: mask(vocab, |token| token % 2 == 1),
                bias: vec![(49, -1.0), (last, 0.3)],
                penalties: terms(1.7, -0.5, 0.25, vec![(49, 1), (48, 4), (47, 0), (last, 2)]),
                ..plain(0.0)
            },
        ];
        let rows = vec![row; draws.len()];
        assert_eq!(agree("adjusted", &mut cuda(5), &rows, &draws), 0);
    }
}
