//! The golden checkpoints through the whole engine. Roundings to bf16 change
//! routes, and those change logits a lot, so that logits are compared as
//! distributions over many positions: with the portable device's, which agree
//! with the oracles.

mod company;
mod fixtures;

pub use company::differing_cuts;
pub use fixtures::{Continuation, GOLDENS, Golden};

use crate::failure::{Failure, Outcome, ensure};
use chorale_device::{Cpu, DenseDtype, Device, KvDtype};
use chorale_link::{Link, Solo};
use chorale_model::checkpoint::Checkpoint;
use chorale_model::offline::{OfflineLimits, OfflineSequence};
use chorale_model::shard::ShardSpec;
use chorale_model::{GptOss, Room};
use chorale_plan::{SamplingParams, StepPlan, TokenId};

/// A bf16 device may lose this many times what bf16 throughout costs.
const LOSS_ALLOWED: f64 = 2.0;
/// Best tokens of so few positions may differ whatever the share.
const FLIPS_ALLOWED: f64 = 2.0;
/// A continuation must not leave the golden one where its token led by more.
const SURE_MARGIN: f64 = 0.75;

/// How far distributions lie apart.
#[derive(Clone, Copy, Debug, Default)]
pub struct Distance {
    /// Positions that were compared.
    pub positions: f64,
    /// Kullback-Leibler divergences, summed.
    pub divergence: f64,
    /// Positions where the best tokens differ.
    pub flips: f64,
}

/// What may be lost on some prompts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bar {
    divergence: f64,
    flips: f64,
}

impl Distance {
    /// Of logits `[positions, vocab]` from those that are taken for right.
    pub fn between(found: &[f32], right: &[f32], vocab: usize) -> Result<Self, Failure> {
        ensure(found.len() == right.len(), || format!("{} logits, not {}", found.len(), right.len()))?;
        let rows = found.chunks(vocab).zip(right.chunks(vocab));
        Ok(rows.fold(Self::default(), |sum, (found, right)| Self {
            positions: sum.positions + 1.0,
            divergence: sum.divergence + divergence(right, found),
            flips: sum.flips + f64::from(u8::from(argmax(found) != argmax(right))),
        }))
    }

    fn add(&mut self, other: Self) {
        self.positions += other.positions;
        self.divergence += other.divergence;
        self.flips += other.flips;
    }
}

impl Bar {
    /// For some prompts of a model, each compared at all of its positions.
    pub fn of(golden: &Golden, prompts: &[&str]) -> Result<Self, Failure> {
        prompts.iter().try_fold(Self::default(), |bar, prompt| {
            let positions = golden.prompt(prompt)?.len() as f64;
            let (divergence, flips) = golden.bf16_loss(prompt)?;
            Ok(Self {
                divergence: bar.divergence + positions * divergence,
                flips: bar.flips + positions * flips,
            })
        })
    }

    /// Whether a distance is within it.
    pub fn holds(&self, distance: &Distance, what: impl Fn() -> String) -> Outcome {
        let allowed = LOSS_ALLOWED * self.divergence;
        ensure(distance.divergence <= allowed, || {
            let mean = |sum: f64| sum / distance.positions;
            format!(
                "{}: mean divergence {:.2e}, not {:.2e}",
                what(),
                mean(distance.divergence),
                mean(allowed)
            )
        })?;
        let allowed = LOSS_ALLOWED * self.flips + FLIPS_ALLOWED;
        ensure(distance.flips <= allowed, || {
            format!(
                "{}: other best tokens at {} of {} positions, not at most {allowed:.0}",
                what(),
                distance.flips,
                distance.positions
            )
        })
    }
}

/// What an engine keeps its numbers in.
#[derive(Clone, Copy, Debug, Default)]
pub struct Formats {
    /// Dense weights, except routers.
    pub dense: DenseDtype,
    /// Keys and values, or what the device likes best.
    pub kv: Option<KvDtype>,
}

fn log_softmax(logits: &[f32]) -> impl Iterator<Item = f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - largest).exp()).sum();
    let normalizer = f64::from(largest) + sum.ln();
    logits.iter().map(move |&logit| f64::from(logit) - normalizer)
}

fn divergence(right: &[f32], found: &[f32]) -> f64 {
    let pairs = log_softmax(right).zip(log_softmax(found));
    let sum: f64 = pairs.map(|(right, found)| right.exp() * (right - found)).sum();
    // What is not a number is further off than all else.
    if sum.is_nan() { f64::INFINITY } else { sum }
}

fn argmax(logits: &[f32]) -> Option<usize> {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]).then(b.cmp(&a)))
}

/// Room for one prompt of any fixture in slices.
pub fn limits(max_slice_tokens: usize, block_size: usize) -> OfflineLimits {
    let max_tokens = 400;
    OfflineLimits { num_sequences: 1, max_tokens, max_slice_tokens, max_rows: max_slice_tokens, block_size }
}

/// Logits at all positions of a prompt, computed in slices.
pub fn logits<D: Device, L: Link<D>>(
    engine: &mut GptOss<D, L>,
    prompt: &[TokenId],
    limits: OfflineLimits,
) -> Result<Vec<f32>, Failure> {
    let mut sequence = OfflineSequence::new(0, prompt.to_vec(), limits, engine.config());
    let mut logits = Vec::new();
    while sequence.num_pending() > 0 {
        let slice = sequence.take_slice(limits.max_slice_tokens, &SamplingParams::greedy());
        logits.extend(engine.logits(&[slice], usize::MAX, &mut ())?);
    }
    Ok(logits)
}

/// An engine of one rank.
pub fn engine<D: Device>(
    mut device: D,
    (checkpoint, formats): (&Checkpoint, Formats),
    limits: OfflineLimits,
) -> Result<GptOss<D, Solo<D>>, Failure> {
    let config = checkpoint.config();
    let link = Solo::new(&mut device, config.num_experts as u32)?;
    let room = limits.room(config, formats.kv.unwrap_or(D::KV_DTYPES[0]));
    let room = Room { has_halves: false, ..room };
    let spec = ShardSpec { dense_dtype: formats.dense, ..ShardSpec::whole(config) };
    Ok(GptOss::load(device, link, checkpoint, &spec, &room, &mut |_| ())?)
}

/// What the portable device computes on some prompts.
pub fn portable(
    golden: &Golden,
    (checkpoint, formats): (&Checkpoint, Formats),
    prompts: &[&str],
) -> Result<Vec<Vec<f32>>, Failure> {
    let limits = limits(400, 64);
    let mut engine = engine(Cpu::new(None)?, (checkpoint, formats), limits)?;
    prompts.iter().map(|prompt| logits(&mut engine, &golden.prompt(prompt)?, limits)).collect()
}

/// Compares an engine with the portable device on some prompts, computed in slices;
/// `right` is what the latter makes of them with the same formats.
pub fn agrees<D: Device>(
    device: D,
    (golden, checkpoint, formats): (&Golden, &Checkpoint, Formats),
    (prompts, right): (&[&str], &[Vec<f32>]),
    limits: OfflineLimits,
) -> Result<Distance, Failure> {
    let mut engine = engine(device, (checkpoint, formats), limits)?;
    let vocab = checkpoint.config().vocab_size;
    let mut distance = Distance::default();
    for (prompt, right) in prompts.iter().zip(right) {
        let found = logits(&mut engine, &golden.prompt(prompt)?, limits)?;
        distance.add(Distance::between(&found, right, vocab)?);
    }
    let what = || format!("{}, slices of {}", golden.name, limits.max_slice_tokens);
    Bar::of(golden, prompts)?.holds(&distance, what)?;
    Ok(distance)
}

/// Continues a prompt greedily through the engine's steps: as the golden
/// continuation does, at least up to where that was not sure.
pub fn continues<D: Device>(
    device: D,
    (golden, checkpoint): (&Golden, &Checkpoint),
    prompt: &str,
    count: usize,
    limits: OfflineLimits,
) -> Result<usize, Failure> {
    let mut engine = engine(device, (checkpoint, Formats::default()), limits)?;
    let mut sequence = OfflineSequence::new(0, golden.prompt(prompt)?, limits, checkpoint.config());
    for step in 1.. {
        let slice = sequence.take_slice(limits.max_slice_tokens, &SamplingParams::greedy());
        let output =
            engine.step(&StepPlan { step, in_halves: false, home_rows: Vec::new(), slices: vec![slice] })?;
        output.samples.iter().for_each(|sample| sequence.push(sample.token));
        if sequence.output().len() >= count {
            break;
        }
    }
    let expected = golden.continuation(prompt)?;
    let places = sequence.output().iter().zip(&expected.tokens);
    let agreed = places.take_while(|(found, expected)| found == expected).count();
    if let Some(&margin) = expected.margins[..count].get(agreed) {
        ensure(margin <= SURE_MARGIN, || {
            format!(
                "{}, {prompt}: token {agreed} is {}, not {}, which leads by {margin:.2}",
                golden.name,
                sequence.output()[agreed],
                expected.tokens[agreed]
            )
        })?;
    }
    Ok(agreed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_logits_are_no_distance_apart_whatever_their_offset() {
        let (a, b) = ([0.0, 1.0, 2.0], [5.0, 6.0, 7.0]);
        assert!(divergence(&a, &b).abs() < 1e-12);
        assert!(divergence(&a, &[0.0, 1.0, 9.0]) > 0.1);
        assert_eq!(divergence(&a, &[f32::NAN, 1.0, 9.0]), f64::INFINITY);
    }

    #[test]
    fn the_bar_refuses_what_is_further_than_twice_the_loss() -> Outcome {
        let bar = Bar::of(&GOLDENS[0], &["p17", "p130"])?;
        let distance = Distance { positions: 147.0, divergence: bar.divergence, flips: 3.0 };
        bar.holds(&distance, String::new)?;
        let far = Distance { divergence: 2.1 * bar.divergence, ..distance };
        assert!(bar.holds(&far, String::new).is_err());
        assert!(bar.holds(&Distance { flips: 40.0, ..distance }, String::new).is_err());
        assert!(bar.holds(&Distance { divergence: f64::INFINITY, ..distance }, String::new).is_err());
        Ok(())
    }
}
