//! Each operation as the plainest loop in f64: what the portable device is
//! tested against. Rows are vectors; nothing is shared with the crate but the
//! table of MXFP4's values.

use bytes::Bytes;
use chorale_device::{BLOCK, BLOCK_BYTES, DensePart, DenseSource, Mxfp4Part, decode_block};

pub(crate) type Rows = Vec<Vec<f64>>;

/// A small generator for tests: SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// Exact in bf16, within ±`scale`.
    pub(crate) fn bf16(&mut self, scale: f64) -> f64 {
        let unit = (self.next() >> 11) as f64 / (1u64 << 53) as f64;
        f64::from(f32::from_bits((((2.0 * unit - 1.0) * scale) as f32).to_bits() & 0xffff_0000))
    }

    pub(crate) fn rows(&mut self, rows: usize, cols: usize, scale: f64) -> Rows {
        (0..rows).map(|_| (0..cols).map(|_| self.bf16(scale)).collect()).collect()
    }

    pub(crate) fn row(&mut self, cols: usize, scale: f64) -> Vec<f64> {
        (0..cols).map(|_| self.bf16(scale)).collect()
    }

    /// Blocks and scales of a random MXFP4 matrix, and its exact values.
    pub(crate) fn mxfp4(&mut self, rows: usize, cols: usize) -> (Mxfp4Part, Rows, Vec<f64>) {
        let packed: Vec<u8> = (0..rows * cols / 2).map(|_| self.next() as u8).collect();
        let scales: Vec<u8> = (0..rows * cols / BLOCK).map(|_| 120 + self.below(4) as u8).collect();
        let bias = self.row(rows, 0.5);
        let decoded = packed.as_chunks::<BLOCK_BYTES>().0.iter().zip(&scales);
        let values: Vec<f64> =
            decoded.flat_map(|(packed, &scale)| decode_block(packed, scale)).map(f64::from).collect();
        let part = Mxfp4Part { blocks: packed.into(), scales: scales.into(), bias: Some(to_bf16(&bias)) };
        (part, values.chunks(cols).map(<[f64]>::to_vec).collect(), bias)
    }
}

pub(crate) fn to_bf16(values: &[f64]) -> Bytes {
    values.iter().flat_map(|&value| ((value as f32).to_bits() >> 16).to_le_bytes()[..2].to_vec()).collect()
}

/// Consecutive rows with their biases.
pub(crate) type Run<'a> = (&'a [Vec<f64>], Option<&'a [f64]>);

/// A source in runs of rows, as checkpoints have them.
pub(crate) fn dense(runs: &[Run<'_>]) -> DenseSource {
    let parts = runs.iter().map(|(rows, bias)| DensePart {
        rows: rows.len(),
        weight: to_bf16(&rows.concat()),
        bias: bias.map(to_bf16),
    });
    let cols = runs.iter().find_map(|(rows, _)| rows.first()).map_or(0, Vec::len);
    DenseSource { cols, parts: parts.collect() }
}

pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

pub(crate) fn project(rows: &Rows, weights: &Rows, bias: &[f64]) -> Rows {
    let one = |row: &Vec<f64>| weights.iter().zip(bias).map(|(w, b)| dot(w, row) + b).collect();
    rows.iter().map(one).collect()
}

pub(crate) fn rms_norm(rows: &Rows, gain: &[f64], eps: f64) -> Rows {
    let one = |row: &Vec<f64>| {
        let rms = (dot(row, row) / row.len() as f64 + eps).sqrt();
        row.iter().zip(gain).map(|(value, gain)| value / rms * gain).collect()
    };
    rows.iter().map(one).collect()
}

/// Attention of one head of one query over its visible keys.
pub(crate) fn attend(query: &[f64], keys: &[&[f64]], values: &[&[f64]], sink: f64) -> Vec<f64> {
    let scale = 1.0 / (query.len() as f64).sqrt();
    let scores: Vec<f64> = keys.iter().map(|key| dot(query, key) * scale).collect();
    let largest = scores.iter().copied().fold(sink, f64::max);
    let sum = (sink - largest).exp() + scores.iter().map(|score| (score - largest).exp()).sum::<f64>();
    let mut out = vec![0.0; query.len()];
    for (score, value) in scores.iter().zip(values) {
        for (out, value) in out.iter_mut().zip(*value) {
            *out += (score - largest).exp() / sum * value;
        }
    }
    out
}

/// One expert on one row.
pub(crate) fn expert(row: &[f64], gate_up: (&Rows, &[f64]), down: (&Rows, &[f64]), limit: f64) -> Vec<f64> {
    let products: Vec<f64> = gate_up.0.iter().zip(gate_up.1).map(|(w, b)| dot(w, row) + b).collect();
    let activations: Vec<f64> = products
        .chunks(2)
        .map(|pair| {
            let (gate, up) = (pair[0].min(limit), pair[1].clamp(-limit, limit));
            gate / (1.0 + (-1.702 * gate).exp()) * (up + 1.0)
        })
        .collect();
    down.0.iter().zip(down.1).map(|(w, b)| dot(w, &activations) + b).collect()
}

/// Rotates a head by given angles: pairs `(i, i + half)`.
pub(crate) fn rotate(head: &[f64], position: u32, theta: f64) -> Vec<f64> {
    let half = head.len() / 2;
    let mut out = head.to_vec();
    for i in 0..half {
        let angle = f64::from(position) * theta.powf(-(2.0 * i as f64) / head.len() as f64);
        out[i] = head[i] * angle.cos() - head[i + half] * angle.sin();
        out[i + half] = head[i + half] * angle.cos() + head[i] * angle.sin();
    }
    out
}
