//! Log-probabilities.

use crate::{VOCAB, agree, cuda, logits, plain};
use chorale_device::{Draw, Drawn};
use chorale_kbench::reference::Random;

/// Asserts that two devices give the same log-probabilities, each for its token.
pub(crate) fn assert_same_scores(row: &[f32], found: &Drawn, expected: &Drawn, what: &str) {
    let close =
        |a: f32, b: f32| a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= 1e-5 * b.abs().max(1.0);
    assert_eq!(found.logprob.is_some(), expected.logprob.is_some(), "{what}");
    if let (Some(found_score), Some(score)) = (found.logprob, expected.logprob) {
        let apart = row[found.token as usize] - row[expected.token as usize];
        assert!(
            close(found_score, score + if apart.is_nan() { 0.0 } else { apart }),
            "{what}: {found:?} is not {expected:?}"
        );
    }
    assert_eq!(found.top_logprobs.len(), expected.top_logprobs.len(), "{what}");
    for (place, (a, b)) in found.top_logprobs.iter().zip(&expected.top_logprobs).enumerate() {
        assert!(a.0 == b.0 && close(a.1, b.1), "{what}: {a:?} is not {b:?} at {place}");
    }
}

#[test]
fn scores_are_those_of_the_untouched_logits() {
    for vocab in [1, 5, 777, 5000, 30_000] {
        let random = &mut Random(vocab as u64);
        let mut rows: Vec<Vec<f32>> = (0..9).map(|_| logits(random, vocab)).collect();
        // Ties, so that more than are listed are equal.
        rows.push(vec![0.5; vocab]);
        rows.push((0..vocab).map(|token| (token % 3) as f32).collect());
        rows.push((0..vocab).map(|token| token as f32 * 1e-3).collect());
        let counts = [0, 1, 2, 5, 20, 33, 100, 1024, 2048, 20, 1024, 7];
        let draws: Vec<Draw> = (0..12)
            .map(|index: usize| Draw {
                num_logprobs: Some(counts[index]),
                bias: if index.is_multiple_of(2) { vec![(0, 2.0)] } else { Vec::new() },
                position: index as u32,
                ..plain([0.0, 1.0, 0.7][index % 3])
            })
            .collect();
        agree("scores", &mut cuda(2), &rows, &draws);
    }
}

#[test]
fn scores_of_a_whole_vocabulary() {
    let row = logits(&mut Random(5), VOCAB);
    let draws = [
        Draw { num_logprobs: Some(20), ..plain(1.0) },
        Draw { num_logprobs: None, ..plain(1.0) },
        Draw { num_logprobs: Some(0), ..plain(0.0) },
    ];
    assert_eq!(agree("scores", &mut cuda(3), &vec![row; 3], &draws), 0);
}
