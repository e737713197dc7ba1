//! Draws a token from a row of logits. A draw depends on its row, its seed and
//! its position alone, never on the batch.

use crate::columns::{Draw, PenaltyTerms};
use crate::device::Drawn;
use std::cmp::Ordering;

/// Draws one token.
pub(super) fn draw(logits: &[f32], draw: &Draw) -> Drawn {
    let token = choose(logits, draw);
    let Some(num_top) = draw.num_logprobs else {
        return Drawn { token, logprob: None, top_logprobs: Vec::new() };
    };
    let normalizer = log_sum_exp(logits);
    let logprob = |token: u32| (f64::from(logits[token as usize]) - normalizer) as f32;
    let top = largest(logits, num_top as usize);
    Drawn {
        token,
        logprob: Some(logprob(token)),
        top_logprobs: top.into_iter().map(|token| (token, logprob(token))).collect(),
    }
}

fn choose(logits: &[f32], draw: &Draw) -> u32 {
    let untouched = draw.allowed.is_none() && draw.bias.is_empty() && draw.penalties.is_none();
    if untouched && draw.temperature == 0.0 {
        return argmax(logits);
    }
    let mut logits = logits.to_vec();
    if let Some(allowed) = &draw.allowed {
        forbid_others(&mut logits, allowed);
    }
    for &(token, bias) in &draw.bias {
        logits[token as usize] += bias;
    }
    if let Some(penalties) = &draw.penalties {
        penalize(&mut logits, penalties);
    }
    if draw.temperature == 0.0 {
        return argmax(&logits);
    }
    let kept = Kept::of(&logits, draw);
    kept.pick(draw.uniform())
}

/// Makes every token that is not in the set impossible.
fn forbid_others(logits: &mut [f32], allowed: &[u32]) {
    for (index, logits) in logits.chunks_mut(32).enumerate() {
        let word = allowed.get(index).copied().unwrap_or(0);
        for (bit, logit) in logits.iter_mut().enumerate() {
            if word >> bit & 1 == 0 {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

fn penalize(logits: &mut [f32], penalties: &PenaltyTerms) {
    for &(token, num_in_output) in &penalties.history {
        let logit = &mut logits[token as usize];
        *logit = if *logit > 0.0 { *logit / penalties.repetition } else { *logit * penalties.repetition };
        if num_in_output > 0 {
            *logit -= penalties.presence + penalties.frequency * num_in_output as f32;
        }
    }
}

/// The tokens that a draw may fall on, with their unnormalised probabilities.
struct Kept {
    tokens: Vec<(u32, f64)>,
}

impl Kept {
    fn of(logits: &[f32], draw: &Draw) -> Self {
        let top = argmax(logits);
        let temperature = f64::from(draw.temperature);
        let largest = f64::from(logits[top as usize]);
        let weight = |logit: f32| ((f64::from(logit) - largest) / temperature).exp();
        let floor = f64::from(draw.min_p);
        let mut tokens: Vec<(u32, f64)> = (0u32..)
            .zip(logits)
            .map(|(token, &logit)| (token, weight(logit)))
            // The most probable token is always kept, even when the logits
            // hold infinities and its weight is not a number.
            .filter(|&(token, weight)| token == top || (weight > 0.0 && weight >= floor))
            .map(|(token, weight)| (token, if token == top { 1.0 } else { weight }))
            .collect();
        if draw.top_k > 0 {
            keep_first(&mut tokens, draw.top_k as usize);
        }
        if draw.top_p < 1.0 {
            keep_mass(&mut tokens, f64::from(draw.top_p));
        }
        Self { tokens }
    }

    /// The token at the share `uniform` of the kept mass.
    fn pick(&self, uniform: f64) -> u32 {
        let total: f64 = self.tokens.iter().map(|&(_, weight)| weight).sum();
        let target = uniform * total;
        let mut sum = 0.0;
        for &(token, weight) in &self.tokens {
            sum += weight;
            if target < sum {
                return token;
            }
        }
        // Rounding may leave the last token's share empty.
        self.tokens[self.tokens.len() - 1].0
    }
}

/// By descending weight, the lowest token first among equals.
fn by_weight(a: &(u32, f64), b: &(u32, f64)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Keeps the `count` heaviest tokens, heaviest first.
fn keep_first(tokens: &mut Vec<(u32, f64)>, count: usize) {
    if count < tokens.len() {
        tokens.select_nth_unstable_by(count - 1, by_weight);
        tokens.truncate(count);
    }
    tokens.sort_unstable_by(by_weight);
}

/// Keeps the fewest heaviest tokens with at least the share `mass`, heaviest first.
fn keep_mass(tokens: &mut Vec<(u32, f64)>, mass: f64) {
    let needed = mass * tokens.iter().map(|&(_, weight)| weight).sum::<f64>();
    // Nearly always a few hundred tokens hold the mass, and sorting the whole
    // vocabulary would cost more than the rest of the draw.
    let mut sorted = 256;
    loop {
        let end = sorted.min(tokens.len());
        if end < tokens.len() {
            tokens.select_nth_unstable_by(end, by_weight);
        }
        tokens[..end].sort_unstable_by(by_weight);
        let mut sum = 0.0;
        for (index, &(_, weight)) in tokens[..end].iter().enumerate() {
            sum += weight;
            if sum >= needed {
                tokens.truncate(index + 1);
                return;
            }
        }
        if end == tokens.len() {
            return;
        }
        sorted *= 8;
    }
}

/// The largest logit, the lowest token among equals. What is not a number loses.
fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (token, &logit) in logits.iter().enumerate() {
        if logit > logits[best] || logits[best].is_nan() && !logit.is_nan() {
            best = token;
        }
    }
    best as u32
}

/// The `count` largest logits' tokens, largest first.
fn largest(logits: &[f32], count: usize) -> Vec<u32> {
    let order = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let mut tokens: Vec<u32> = (0..logits.len() as u32).collect();
    let count = count.min(tokens.len());
    if count == 0 {
        return Vec::new();
    }
    tokens.select_nth_unstable_by(count - 1, order);
    tokens.truncate(count);
    tokens.sort_unstable_by(order);
    tokens
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - largest).exp()).sum();
    largest + sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::f32::consts::LN_2;

    fn plain(temperature: f32) -> Draw {
        Draw {
            temperature,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            allowed: None,
            bias: Vec::new(),
            penalties: None,
            seed: 1,
            position: 0,
            num_logprobs: None,
        }
    }

    /// The share of each token among draws at many positions.
    fn shares(logits: &[f32], params: &Draw) -> Vec<f64> {
        let mut counts = vec![0.0; logits.len()];
        for position in 0..20_000 {
            counts[draw(logits, &Draw { position, ..params.clone() }).token as usize] += 1.0 / 20_000.0;
        }
        counts
    }

    fn assert_close(shares: &[f64], expected: &[f64]) {
        for (share, expected) in shares.iter().zip(expected) {
            assert!((share - expected).abs() < 0.015, "{shares:?} is not {expected:?}");
        }
    }

    const LOGITS: [f32; 4] = [0.0, LN_2, 2.0 * LN_2, -LN_2];

    #[test]
    fn greedy_takes_the_lowest_of_equals() {
        assert_eq!(draw(&[1.0, 5.0, 5.0], &plain(0.0)).token, 1);
    }

    #[test]
    fn temperature_one_draws_the_softmax() {
        assert_close(&shares(&LOGITS, &plain(1.0)), &[1.0 / 7.5, 2.0 / 7.5, 4.0 / 7.5, 0.5 / 7.5]);
    }

    #[test]
    fn temperature_sharpens() {
        let total = 1.0 + 4.0 + 16.0 + 0.25;
        let expected = [1.0 / total, 4.0 / total, 16.0 / total, 0.25 / total];
        assert_close(&shares(&LOGITS, &plain(0.5)), &expected);
    }

    #[test]
    fn top_k_keeps_the_largest() {
        let draw = Draw { top_k: 2, ..plain(1.0) };
        assert_close(&shares(&LOGITS, &draw), &[0.0, 1.0 / 3.0, 2.0 / 3.0, 0.0]);
    }

    #[test]
    fn top_p_keeps_the_fewest_that_reach_the_mass() {
        let reached_by_two = Draw { top_p: 0.79, ..plain(1.0) };
        assert_close(&shares(&LOGITS, &reached_by_two), &[0.0, 1.0 / 3.0, 2.0 / 3.0, 0.0]);
        let needs_three = Draw { top_p: 0.81, ..plain(1.0) };
        assert_close(&shares(&LOGITS, &needs_three), &[1.0 / 7.0, 2.0 / 7.0, 4.0 / 7.0, 0.0]);
    }

    #[test]
    fn min_p_is_a_share_of_the_most_probable() {
        let draw = Draw { min_p: 0.3, ..plain(1.0) };
        assert_close(&shares(&LOGITS, &draw), &[0.0, 1.0 / 3.0, 2.0 / 3.0, 0.0]);
    }

    #[test]
    fn top_p_finds_its_mass_in_a_flat_vocabulary() {
        let logits = vec![0.0f32; 5000];
        let draw_params = Draw { top_p: 0.5, ..plain(1.0) };
        let highest =
            (0..2000).map(|position| draw(&logits, &Draw { position, ..draw_params.clone() }).token).max();
        assert!((2400..2500).contains(&highest.unwrap()), "{highest:?}");
    }

    #[test]
    fn only_allowed_tokens_are_drawn() {
        let allowed = |tokens: &[u32]| {
            let mut words = [0u32; 2];
            tokens.iter().for_each(|token| words[*token as usize / 32] |= 1 << (token % 32));
            Some(words.to_vec().into())
        };
        let logits: Vec<f32> = (0..40).map(|token| token as f32 / 10.0).collect();
        assert_eq!(draw(&logits, &Draw { allowed: allowed(&[3, 7]), ..plain(0.0) }).token, 7);
        let params = Draw { allowed: allowed(&[3, 33]), bias: vec![(39, 100.0)], ..plain(2.0) };
        let shares = shares(&logits, &params);
        assert!(shares[3] > 0.1 && shares[33] > 0.1 && (shares[3] + shares[33] - 1.0).abs() < 1e-9);
    }

    #[test]
    fn bias_and_penalties_change_the_largest() {
        let banned = Draw { bias: vec![(2, -100.0)], ..plain(0.0) };
        assert_eq!(draw(&LOGITS, &banned).token, 1);
        let terms = |repetition, presence, frequency, history| Draw {
            penalties: Some(PenaltyTerms { repetition, presence, frequency, history }),
            ..plain(0.0)
        };
        assert_eq!(draw(&LOGITS, &terms(1.0, 1.0, 0.0, vec![(2, 1)])).token, 1, "presence");
        assert_eq!(draw(&LOGITS, &terms(1.0, 1.0, 0.0, vec![(2, 0)])).token, 2, "in the prompt only");
        assert_eq!(draw(&LOGITS, &terms(1.0, 0.0, 0.3, vec![(2, 3)])).token, 1, "frequency");
        assert_eq!(draw(&LOGITS, &terms(2.5, 0.0, 0.0, vec![(2, 0)])).token, 1, "repetition");
        assert_eq!(draw(&[-1.0, -1.5], &terms(2.0, 0.0, 0.0, vec![(0, 0)])).token, 1, "below zero");
    }

    #[test]
    fn logprobs_are_those_of_the_untouched_logits() {
        let params = Draw { bias: vec![(3, 50.0)], num_logprobs: Some(2), ..plain(0.7) };
        let drawn = draw(&LOGITS, &params);
        assert_eq!(drawn.token, 3);
        assert!((drawn.logprob.unwrap() - (0.5f32 / 7.5).ln()).abs() < 1e-6);
        let tokens: Vec<u32> = drawn.top_logprobs.iter().map(|top| top.0).collect();
        assert_eq!(tokens, [2, 1]);
        assert!((drawn.top_logprobs[0].1 - (4.0f32 / 7.5).ln()).abs() < 1e-6);
    }

    proptest! {
        #[test]
        fn any_logits_and_parameters_give_a_token_of_the_vocabulary(
            logits in prop::collection::vec(prop_oneof![
                8 => -50f32..50.0,
                1 => Just(f32::NAN), 1 => Just(f32::INFINITY), 1 => Just(f32::NEG_INFINITY),
            ], 1..300),
            temperature in prop_oneof![Just(0.0f32), 1e-6f32..10.0],
            top_k in 0u32..400,
            top_p in 0.0f32..=1.0,
            min_p in 0.0f32..=1.0,
            position in any::<u32>(),
        ) {
            let params = Draw { top_k, top_p, min_p, position, num_logprobs: Some(5), ..plain(temperature) };
            let drawn = draw(&logits, &params);
            prop_assert!((drawn.token as usize) < logits.len());
            prop_assert_eq!(drawn.token, draw(&logits, &params).token);
        }
    }
}
