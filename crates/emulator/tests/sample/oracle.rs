//! Draws in f64, the plainest way: where a uniform number lies among tokens.

use chorale_device::Draw;

/// How far beside its share of the mass a uniform number may be for a token.
const BETWEEN: f64 = 1e-9;

/// Logits as a draw sees them.
fn seen(logits: &[f32], draw: &Draw) -> Vec<f32> {
    let mut seen = logits.to_vec();
    if let Some(allowed) = &draw.allowed {
        for (token, logit) in seen.iter_mut().enumerate() {
            if allowed.get(token / 32).is_none_or(|word| word >> (token % 32) & 1 == 0) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
    for &(token, bias) in &draw.bias {
        seen[token as usize] += bias;
    }
    if let Some(penalties) = &draw.penalties {
        for &(token, count) in &penalties.history {
            let logit = &mut seen[token as usize];
            *logit *= if *logit > 0.0 { 1.0 / penalties.repetition } else { penalties.repetition };
            if count > 0 {
                *logit -= penalties.presence + penalties.frequency * count as f32;
            }
        }
    }
    seen
}

/// The tokens that a draw may fall on, in the order of the draw, each with the
/// share of the mass up to it.
fn shares(logits: &[f32], draw: &Draw) -> Vec<(u32, f64)> {
    let seen = seen(logits, draw);
    let largest = f64::from(seen.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let weight = |logit: f32| ((f64::from(logit) - largest) / f64::from(draw.temperature)).exp();
    let weights = (0u32..).zip(seen.iter().map(|&logit| weight(logit)));
    let mut kept: Vec<(u32, f64)> =
        weights.filter(|&(_, weight)| weight > 0.0 && weight >= f64::from(draw.min_p)).collect();
    if draw.top_k > 0 || draw.top_p < 1.0 {
        kept.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    }
    if draw.top_k > 0 {
        kept.truncate(draw.top_k as usize);
    }
    if draw.top_p < 1.0 {
        let needed = f64::from(draw.top_p) * kept.iter().map(|&(_, weight)| weight).sum::<f64>();
        let mut sum = 0.0;
        let reaches = kept.iter().position(|&(_, weight)| {
            sum += weight;
            sum >= needed
        });
        kept.truncate(reaches.map_or(kept.len(), |last| last + 1));
    }
    let total: f64 = kept.iter().map(|&(_, weight)| weight).sum();
    let mut sum = 0.0;
    for (_, weight) in &mut kept {
        sum += *weight;
        *weight = sum / total;
    }
    kept
}

/// Asserts that a draw is so close between two tokens that it may be either.
pub(crate) fn assert_between(logits: &[f32], draw: &Draw, found: u32, expected: u32, what: &str) {
    assert!(draw.temperature > 0.0, "{what}: token {found}, the largest is {expected}");
    let shares = shares(logits, draw);
    let uniform = draw.uniform();
    let place = |token: u32| shares.iter().position(|&(other, _)| other == token);
    for token in [found, expected] {
        let place = place(token);
        let place = place.unwrap_or_else(|| panic!("{what}: token {token} is not kept"));
        let begin = if place == 0 { 0.0 } else { shares[place - 1].1 };
        let apart = (begin - uniform).max(uniform - shares[place].1);
        assert!(
            apart < BETWEEN,
            "{what}: {uniform} is {apart} from token {token}: {found} for {expected}, {:?}",
            Draw { allowed: None, penalties: None, ..draw.clone() }
        );
    }
}
