//! The sampler on the emulator, against the portable device: the same logits,
//! the same draws. A uniform number may fall so close between two tokens that
//! the rounding of sums decides; then, and only then, the tokens may differ.

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

mod greedy;
mod oracle;
mod random;
mod scores;
mod steps;

use chorale_cuda::Cuda;
use chorale_device::Precision::Full;
use chorale_device::{BatchLimits, Columns, Cpu, Device, Draw, Drawn, KvDtype, KvShape, RopeParams};
use chorale_device::{SliceColumns, Table};
use chorale_emulator::{Emulator, Options};
use chorale_kbench::reference::Random;
use std::num::NonZeroUsize;
use std::sync::Arc;

const VOCAB: usize = 201_088;
const ROPE: RopeParams = RopeParams { head_dim: 64, theta: 10_000.0, yarn: None };

fn cuda(seed: u64) -> Cuda {
    Cuda::new(Emulator::new(Options { seed, ..Options::default() }).unwrap())
}

fn cpu() -> Cpu {
    Cpu::new(NonZeroUsize::new(2)).unwrap()
}

fn batch<D: Device>(device: &mut D, rows: usize) -> D::Batch {
    let limits = BatchLimits { max_rows: rows, max_slices: rows, max_logit_rows: rows };
    let kv = KvShape {
        windows: vec![None],
        num_query_heads: 1,
        num_kv_heads: 1,
        head_dim: 64,
        dtype: KvDtype::Bf16,
        block_size: 16,
        num_full_blocks: 1,
        num_sliding_blocks: 1,
    };
    device.batch(limits, &ROPE, &kv).unwrap()
}

/// A step of sequences of one row each, of which all are drawn from.
fn drawing(draws: &[Draw]) -> Columns {
    let rows = 0..draws.len() as u32;
    let page = || Table { first: 0, pages: vec![0] };
    let slice = |row| SliceColumns { rows: row..row + 1, full: page(), sliding: page() };
    Columns {
        tokens: vec![0; draws.len()],
        positions: vec![0; draws.len()],
        slices: rows.clone().map(slice).collect(),
        logit_rows: rows.collect(),
        draws: draws.to_vec(),
        ..Columns::default()
    }
}

/// What a device draws from rows of logits.
fn draw<D: Device>(device: &mut D, rows: &[Vec<f32>], draws: &[Draw]) -> Vec<Drawn> {
    let mut batch = batch(device, rows.len());
    let mut samples = device.samples(rows.len()).unwrap();
    device.begin(&drawing(draws), &samples, &mut batch).unwrap();
    let mut logits = device.matrix(rows.len(), rows[0].len(), Full).unwrap();
    device.write(&rows.concat(), &mut logits).unwrap();
    device.sample(&logits, &batch, &mut samples).unwrap();
    device.fetch_samples(&samples).unwrap().wait().unwrap()
}

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

/// A mask of the tokens for which `is_allowed`.
fn mask(vocab: usize, is_allowed: impl Fn(u32) -> bool) -> Option<Arc<[u32]>> {
    let mut words = vec![0u32; vocab.div_ceil(32)];
    (0..vocab as u32)
        .filter(|&token| is_allowed(token))
        .for_each(|token| words[token as usize / 32] |= 1 << (token % 32));
    Some(words.into())
}

fn unit(random: &mut Random) -> f64 {
    (random.word() >> 11) as f64 / (1u64 << 53) as f64
}

/// Logits as models have them: a bell, and a few that stand out.
fn logits(random: &mut Random, vocab: usize) -> Vec<f32> {
    let mut bell = || (0..6).map(|_| unit(random) * 2.0 - 1.0).sum::<f64>() * 1.5;
    let mut row: Vec<f32> = (0..vocab).map(|_| bell() as f32).collect();
    for _ in 0..vocab.min(12) {
        row[random.below(vocab)] += (unit(random) * 8.0) as f32;
    }
    row
}

/// Draws on both devices, and asserts that they agree where they must. Gives how
/// many tokens differ.
fn agree(what: &str, device: &mut Cuda, rows: &[Vec<f32>], draws: &[Draw]) -> usize {
    let found = draw(device, rows, draws);
    let expected = draw(&mut cpu(), rows, draws);
    assert_eq!(found.len(), expected.len(), "{what}");
    let mut num_different = 0;
    for (index, ((found, expected), (row, draw))) in
        found.iter().zip(&expected).zip(rows.iter().zip(draws)).enumerate()
    {
        if found.token != expected.token {
            num_different += 1;
            oracle::assert_between(row, draw, found.token, expected.token, &format!("{what}, draw {index}"));
        }
        scores::assert_same_scores(row, found, expected, &format!("{what}, draw {index}"));
    }
    num_different
}
