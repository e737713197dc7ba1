//! Sampling, against the portable device. A random number may fall so close
//! between two tokens that the order of additions decides: a device may then
//! draw either.

use super::{columns, greedy, limits, no_pages};
use crate::demands::Demands;
use crate::failure::{Failure, Outcome, ensure};
use crate::reference::Random;
use chorale_device::Precision::Full;
use chorale_device::{Columns, Cpu, Device, Draw, Drawn, PenaltyTerms};
use std::sync::Arc;

/// How far beside its share of the mass a random number may be for a token.
const BETWEEN: f64 = 1e-5;

/// Draws from rows of logits.
fn draw<D: Device>(
    device: &mut D,
    demands: &Demands,
    logits: &[f32],
    draws: &[Draw],
) -> Result<Vec<Drawn>, Failure> {
    let count = draws.len();
    let (rope, kv) = no_pages(demands);
    let mut batch = device.batch(limits(count), &rope, &kv)?;
    let mut samples = device.samples(count)?;
    let logit_rows = (0..count as u32).collect();
    let step = Columns { logit_rows, draws: draws.to_vec(), ..columns(count) };
    device.begin(&step, &samples, &mut batch)?;
    let mut matrix = device.matrix(count, logits.len() / count, Full)?;
    device.write(logits, &mut matrix)?;
    device.sample(&matrix, &batch, &mut samples)?;
    Ok(device.fetch_samples(&samples)?.wait()?)
}

fn cpu() -> Result<Cpu, Failure> {
    Ok(Cpu::new(None)?)
}

/// Logits with a few that stand out, as a model's do.
fn logits(random: &mut Random, vocab: usize) -> Vec<f32> {
    let mut bump = || (random.bf16(2.0) + random.bf16(2.0) + random.bf16(2.0)) as f32;
    (0..vocab).map(|token| bump() * bump() + token as f32 * 1e-6).collect()
}

pub(super) fn greedy_draws<D: Device>(device: &mut D, demands: &Demands) -> Outcome {
    let vocab = 777;
    let flat = vec![1.5f32; vocab];
    let with = |values: &[(usize, f32)]| {
        let mut row = flat.clone();
        values.iter().for_each(|&(token, value)| row[token] = value);
        row
    };
    let mask = |tokens: &[u32]| {
        let mut words = vec![0u32; 20];
        tokens.iter().for_each(|token| words[*token as usize / 32] |= 1 << (token % 32));
        Some(Arc::from(words))
    };
    let cases = [
        (flat.clone(), greedy(), 0),
        (with(&[(3, 2.0), (700, 2.0)]), greedy(), 3),
        (with(&[(776, 9.0)]), greedy(), 776),
        (with(&[(0, f32::NEG_INFINITY), (1, -3.0)]), greedy(), 2),
        (vec![-4.0; vocab], greedy(), 0),
        (with(&[(5, 2.0)]), Draw { allowed: mask(&[639, 77, 600]), ..greedy() }, 77),
        (with(&[(5, 2.0)]), Draw { bias: vec![(5, -1.0), (44, 0.25)], ..greedy() }, 44),
        (with(&[(5, 2.0), (6, 1.9)]), penalized(&[(5, 1)]), 6),
        (with(&[(5, 2.0), (6, 1.9)]), penalized(&[(5, 0), (6, 3)]), 0),
    ];
    let rows: Vec<f32> = cases.iter().flat_map(|(row, ..)| row.clone()).collect();
    let draws: Vec<Draw> = cases.iter().map(|(_, draw, _)| draw.clone()).collect();
    let found = draw(device, demands, &rows, &draws)?;
    ensure(found.len() == cases.len(), || format!("{} tokens of {}", found.len(), cases.len()))?;
    for (index, (found, (_, _, expected))) in found.iter().zip(&cases).enumerate() {
        ensure(found.token == *expected, || format!("case {index}: token {}, not {expected}", found.token))?;
        ensure(found.logprob.is_none() && found.top_logprobs.is_empty(), || {
            format!("case {index}: log-probabilities that nobody asked for")
        })?;
    }
    Ok(())
}

/// What was fetched is what was drawn by then.
pub(super) fn fetches<D: Device>(device: &mut D, demands: &Demands) -> Outcome {
    let (rope, kv) = no_pages(demands);
    let mut batch = device.batch(limits(2), &rope, &kv)?;
    let mut samples = device.samples(2)?;
    let step = Columns { logit_rows: vec![0, 1], draws: vec![greedy(); 2], ..columns(2) };
    let mut matrix = device.matrix(2, 40, Full)?;
    let mut fetched = Vec::new();
    for token in 0..5 {
        device.begin(&step, &samples, &mut batch)?;
        let logits: Vec<f32> = (0..80).map(|place| if place % 40 == token { 1.0 } else { 0.0 }).collect();
        device.write(&logits, &mut matrix)?;
        device.sample(&matrix, &batch, &mut samples)?;
        fetched.push(device.fetch_samples(&samples)?);
    }
    for (step, fetched) in fetched.into_iter().enumerate() {
        let tokens: Vec<u32> = fetched.wait()?.iter().map(|drawn| drawn.token).collect();
        ensure(tokens == [step as u32; 2], || format!("step {step} drew {tokens:?}"))?;
    }
    Ok(())
}

fn penalized(history: &[(u32, u32)]) -> Draw {
    let terms = PenaltyTerms { repetition: 2.0, presence: 0.1, frequency: 0.1, history: history.to_vec() };
    Draw { penalties: Some(terms), ..greedy() }
}

fn random_draw(random: &mut Random, vocab: usize) -> Draw {
    let token = |random: &mut Random| random.below(vocab) as u32;
    let history = |random: &mut Random| {
        let tokens: std::collections::BTreeSet<u32> = (0..random.below(30)).map(|_| token(random)).collect();
        tokens.into_iter().map(|token| (token, random.below(4) as u32)).collect()
    };
    let penalties = (random.below(3) == 0).then(|| PenaltyTerms {
        repetition: random.pick(&[1.0, 1.3, 0.8]),
        presence: random.pick(&[0.0, 0.5]),
        frequency: random.pick(&[0.0, 0.25]),
        history: history(random),
    });
    let words = vocab.div_ceil(32) - random.below(2);
    let allowed = (random.below(4) == 0)
        .then(|| (0..words).map(|_| (random.word() & random.word()) as u32 | 1).collect::<Arc<[u32]>>());
    let bias =
        if random.below(3) == 0 { vec![(token(random), 3.0), (token(random), -100.0)] } else { vec![] };
    Draw {
        temperature: random.pick(&[0.0, 0.3, 1.0, 1.0, 1.7]),
        top_k: random.pick(&[0, 0, 1, 5, 40, 1_000_000]),
        top_p: random.pick(&[1.0, 1.0, 0.9, 0.5, 0.05]),
        min_p: random.pick(&[0.0, 0.0, 0.02, 0.3]),
        allowed,
        bias,
        penalties,
        seed: random.word(),
        position: random.below(100_000) as u32,
        num_logprobs: None,
    }
}

pub(super) fn portable<D: Device>(device: &mut D, demands: &Demands) -> Outcome {
    let mut cpu = cpu()?;
    let mut sizes = vec![(777, 4), (4000, 3), (33, 2)];
    if demands.is_full_size {
        sizes.push((201_088, 2));
    }
    for (vocab, num_steps) in sizes {
        let random = &mut Random(demands.seed + vocab as u64);
        for step in 0..num_steps {
            let count = 1 + 13 * step;
            let draws: Vec<Draw> = (0..count).map(|_| random_draw(random, vocab)).collect();
            let rows: Vec<f32> = draws.iter().flat_map(|_| logits(random, vocab)).collect();
            let found = draw(device, demands, &rows, &draws)?;
            let expected = draw(&mut cpu, demands, &rows, &draws)?;
            ensure(found.len() == count, || format!("{} tokens of {count} draws", found.len()))?;
            for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let row = &rows[index * vocab..][..vocab];
                let is_between = || is_between(row, &draws[index], found.token);
                ensure(found.token == expected.token || is_between(), || {
                    format!(
                        "row {index} of {count}, vocabulary of {vocab}: token {}, not {}, for {}",
                        found.token,
                        expected.token,
                        describe(&draws[index]),
                    )
                })?;
            }
        }
    }
    Ok(())
}

fn describe(draw: &Draw) -> String {
    let allowed = draw.allowed.as_ref().map(|words| words.len());
    let short = Draw { allowed: None, ..draw.clone() };
    format!("{short:?}, allowed words {allowed:?}")
}

/// Whether the draw's random number falls on the token or right beside it.
fn is_between(logits: &[f32], draw: &Draw, token: u32) -> bool {
    let mut logits: Vec<f64> = logits.iter().map(|&logit| f64::from(logit)).collect();
    if let Some(allowed) = &draw.allowed {
        for (token, logit) in logits.iter_mut().enumerate() {
            if allowed.get(token / 32).is_none_or(|word| word >> (token % 32) & 1 == 0) {
                *logit = f64::NEG_INFINITY;
            }
        }
    }
    draw.bias.iter().for_each(|&(token, bias)| logits[token as usize] += f64::from(bias));
    if let Some(terms) = &draw.penalties {
        for &(token, count) in &terms.history {
            let (logit, repetition) = (&mut logits[token as usize], f64::from(terms.repetition));
            *logit = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
            if count > 0 {
                *logit -= f64::from(terms.presence) + f64::from(terms.frequency) * f64::from(count);
            }
        }
    }
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if draw.temperature == 0.0 {
        return largest - logits[token as usize] < 1e-5;
    }
    let weight = |logit: f64| ((logit - largest) / f64::from(draw.temperature)).exp();
    let mut kept: Vec<(u32, f64)> = (0u32..).zip(logits.iter().map(|&logit| weight(logit))).collect();
    kept.retain(|&(_, weight)| weight > 0.0 && weight >= f64::from(draw.min_p) * (1.0 - 1e-6));
    if draw.top_k > 0 || draw.top_p < 1.0 {
        kept.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    }
    if draw.top_k > 0 {
        kept.truncate(draw.top_k as usize);
    }
    if draw.top_p < 1.0 {
        let needed = f64::from(draw.top_p) * kept.iter().map(|kept| kept.1).sum::<f64>();
        let mut sum = 0.0;
        let reached = kept.iter().position(|kept| {
            sum += kept.1;
            sum >= needed
        });
        kept.truncate(reached.map_or(kept.len(), |last| last + 1));
    }
    let total: f64 = kept.iter().map(|kept| kept.1).sum();
    let Some(place) = kept.iter().position(|kept| kept.0 == token) else { return false };
    let before = kept[..place].iter().map(|kept| kept.1).sum::<f64>() / total;
    let after = before + kept[place].1 / total;
    (before - BETWEEN..after + BETWEEN).contains(&draw.uniform())
}

pub(super) fn logprobs<D: Device>(device: &mut D, demands: &Demands) -> Outcome {
    let mut cpu = cpu()?;
    for vocab in [33, 777, 5000] {
        let random = &mut Random(demands.seed + 7 + vocab as u64);
        let draws = [Some(0), Some(1), None, Some(5), Some(20), Some(20)].map(|num_logprobs| Draw {
            num_logprobs,
            temperature: 1.0,
            ..random_draw(random, vocab)
        });
        let rows: Vec<f32> = draws.iter().flat_map(|_| logits(random, vocab)).collect();
        let found = draw(device, demands, &rows, &draws)?;
        let expected = draw(&mut cpu, demands, &rows, &draws)?;
        for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let what = || format!("row {index}, vocabulary of {vocab}");
            let close = |a: f32, b: f32| (a - b).abs() < 1e-4;
            if found.token == expected.token {
                let agrees = match (found.logprob, expected.logprob) {
                    (Some(found), Some(expected)) => close(found, expected),
                    (found, expected) => found == expected,
                };
                ensure(agrees, || format!("{}: {:?}, not {:?}", what(), found.logprob, expected.logprob))?;
            }
            let (found, expected) = (&found.top_logprobs, &expected.top_logprobs);
            let agrees = found.len() == expected.len()
                && found
                    .iter()
                    .zip(expected)
                    .all(|(found, expected)| found.0 == expected.0 && close(found.1, expected.1));
            ensure(agrees, || format!("{}: best tokens {found:?}, not {expected:?}", what()))?;
        }
    }
    Ok(())
}
