//! Each operation as the plainest loop in f64, with roundings where a device
//! keeps values in 16 bits. Rows are vectors; nothing is shared with the
//! devices but the table of MXFP4's values, how rows become int8 and FP8, and the rotary
//! frequencies.

use bytes::Bytes;
use chorale_device::{
    BLOCK, BLOCK_BYTES, DenseDtype, DensePart, DenseSource, ExpertsSource, Mxfp4Part, Mxfp4Source,
    RopeParams, decode_block, decode_fp8_row, encode_fp8_row, quantize_row,
};

/// A matrix.
pub type Rows = Vec<Vec<f64>>;

/// The sigmoid's slope in gpt-oss's SwiGLU.
const SWIGLU_ALPHA: f64 = 1.702;

/// A small generator: SplitMix64.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// 64 random bits.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number less than `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.word() % bound as u64) as usize
    }

    /// One of several.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// Exact in bf16, within ±`scale`.
    pub fn bf16(&mut self, scale: f64) -> f64 {
        let unit = (self.word() >> 11) as f64 / (1u64 << 53) as f64;
        f64::from(f32::from_bits((((2.0 * unit - 1.0) * scale) as f32).to_bits() & 0xffff_0000))
    }

    /// A matrix of such numbers.
    pub fn rows(&mut self, rows: usize, cols: usize, scale: f64) -> Rows {
        (0..rows).map(|_| self.row(cols, scale)).collect()
    }

    /// A row of such numbers.
    pub fn row(&mut self, cols: usize, scale: f64) -> Vec<f64> {
        (0..cols).map(|_| self.bf16(scale)).collect()
    }

    /// Numbers from 0 to `count` in a random order.
    pub fn order(&mut self, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        for end in (1..count).rev() {
            order.swap(end, self.below(end + 1));
        }
        order
    }

    /// Blocks and scales of a random MXFP4 matrix, and its exact values.
    fn mxfp4(&mut self, rows: usize, cols: usize) -> (Mxfp4Part, Rows, Vec<f64>) {
        let packed: Vec<u8> = (0..rows * cols / 2).map(|_| self.word() as u8).collect();
        let scales: Vec<u8> = (0..rows * cols / BLOCK).map(|_| 120 + self.below(4) as u8).collect();
        let bias = self.row(rows, 0.5);
        let decoded = packed.as_chunks::<BLOCK_BYTES>().0.iter().zip(&scales);
        let values: Vec<f64> =
            decoded.flat_map(|(packed, &scale)| decode_block(packed, scale)).map(f64::from).collect();
        let part = Mxfp4Part { blocks: packed.into(), scales: scales.into(), bias: Some(to_bf16(&bias)) };
        (part, values.chunks(cols).map(<[f64]>::to_vec).collect(), bias)
    }
}

/// Numbers that are exact in bf16, as a checkpoint has them.
pub fn to_bf16(values: &[f64]) -> Bytes {
    values.iter().flat_map(|&value| ((value as f32).to_bits() >> 16).to_le_bytes()[..2].to_vec()).collect()
}

/// Numbers that are exact in f32, as a device takes them.
pub fn to_f32(rows: &Rows) -> Vec<f32> {
    rows.iter().flatten().map(|&value| value as f32).collect()
}

/// Consecutive rows with their biases.
pub type Run<'a> = (&'a [Vec<f64>], Option<&'a [f64]>);

/// A source in runs of rows, as checkpoints have them.
pub fn dense(runs: &[Run<'_>]) -> DenseSource {
    let parts = runs.iter().map(|(rows, bias)| DensePart {
        rows: rows.len(),
        weight: to_bf16(&rows.concat()),
        bias: bias.map(to_bf16),
    });
    let cols = runs.iter().find_map(|(rows, _)| rows.first()).map_or(0, Vec::len);
    DenseSource { cols, parts: parts.collect() }
}

/// A head's key or value as pages of FP8 keep it.
pub fn kept_fp8(values: &[f64]) -> Vec<f64> {
    let values: Vec<f32> = values.iter().map(|&value| value as f32).collect();
    let (mut codes, mut decoded) = (vec![0; values.len()], vec![0.0; values.len()]);
    let exponent = encode_fp8_row(&values, &mut codes);
    decode_fp8_row(&codes, exponent, &mut decoded);
    decoded.into_iter().map(f64::from).collect()
}

/// Weights as a device keeps them.
pub fn kept(weights: &Rows, dtype: DenseDtype) -> Rows {
    let quantized = |row: &Vec<f64>| {
        let mut integers = vec![0i8; row.len()];
        let weights: Vec<f32> = row.iter().map(|&weight| weight as f32).collect();
        let scale = quantize_row(&weights, &mut integers);
        integers.into_iter().map(|integer| f64::from(scale) * f64::from(integer)).collect()
    };
    match dtype {
        DenseDtype::Bf16 => weights.clone(),
        DenseDtype::Int8 => weights.iter().map(quantized).collect(),
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `weights * row + bias` for each row.
pub fn project(rows: &Rows, weights: &Rows, bias: &[f64]) -> Rows {
    let one = |row: &Vec<f64>| weights.iter().zip(bias).map(|(w, b)| dot(w, row) + b).collect();
    rows.iter().map(one).collect()
}

/// The norm of each row.
pub fn rms_norm(rows: &Rows, gain: &[f64], eps: f64) -> Rows {
    let one = |row: &Vec<f64>| {
        let rms = (dot(row, row) / row.len() as f64 + eps).sqrt();
        row.iter().zip(gain).map(|(value, gain)| value / rms * gain).collect()
    };
    rows.iter().map(one).collect()
}

/// Attention of one head of one query over its visible keys.
pub fn attend(query: &[f64], keys: &[&[f64]], values: &[&[f64]], sink: f64) -> Vec<f64> {
    let scale = 1.0 / (query.len() as f64).sqrt();
    let scores: Vec<f64> = keys.iter().map(|key| dot(query, key) * scale).collect();
    let largest = scores.iter().copied().fold(sink, f64::max);
    let sum = (sink - largest).exp() + scores.iter().map(|score| (score - largest).exp()).sum::<f64>();
    let mut out = vec![0.0; query.len()];
    for (score, value) in scores.iter().zip(values) {
        let weight = (score - largest).exp() / sum;
        for (out, value) in out.iter_mut().zip(*value) {
            *out += weight * value;
        }
    }
    out
}

/// Rotates a head: pairs `(i, i + half)`.
pub fn rotate(head: &[f64], position: u32, rope: &RopeParams) -> Vec<f64> {
    let half = head.len() / 2;
    let mut out = head.to_vec();
    for (i, frequency) in rope.frequencies().into_iter().enumerate() {
        let angle = f64::from(position) * frequency;
        let (sin, cos) = (angle.sin() * rope.factor(), angle.cos() * rope.factor());
        out[i] = head[i] * cos - head[i + half] * sin;
        out[i + half] = head[i + half] * cos + head[i] * sin;
    }
    out
}

/// A layer of random experts, and what each computes.
pub struct Experts {
    /// As a device takes them.
    pub source: ExpertsSource,
    gate_up: Vec<(Rows, Vec<f64>)>,
    down: Vec<(Rows, Vec<f64>)>,
}

/// Where the experts of random layers clamp: low, so that it happens.
const SWIGLU_LIMIT: f64 = 1.5;

impl Experts {
    /// So many experts.
    pub fn random(random: &mut Random, count: usize, hidden: usize, intermediate: usize) -> Self {
        let mut matrices = |rows: usize, cols: usize| {
            let (mut parts, mut values) = (Vec::new(), Vec::new());
            for _ in 0..count {
                let (part, weights, bias) = random.mxfp4(rows, cols);
                parts.push(part);
                values.push((weights, bias));
            }
            (Mxfp4Source { rows, cols, experts: parts }, values)
        };
        let (gate_up_source, gate_up) = matrices(2 * intermediate, hidden);
        let (down_source, down) = matrices(hidden, intermediate);
        let source =
            ExpertsSource { gate_up: gate_up_source, down: down_source, swiglu_limit: SWIGLU_LIMIT as f32 };
        Self { source, gate_up, down }
    }

    /// Some of them, in this order.
    pub fn pick(&self, experts: &[usize]) -> ExpertsSource {
        let pick = |source: &Mxfp4Source| Mxfp4Source {
            experts: experts.iter().map(|&expert| source.experts[expert].clone()).collect(),
            ..source.clone()
        };
        ExpertsSource {
            gate_up: pick(&self.source.gate_up),
            down: pick(&self.source.down),
            swiglu_limit: self.source.swiglu_limit,
        }
    }

    /// What an expert makes of a row; `round` is what keeping activations costs.
    pub fn output(&self, expert: usize, row: &[f64], round: impl Fn(f64) -> f64) -> Vec<f64> {
        let apply = |(weights, bias): &(Rows, Vec<f64>), row: &[f64]| -> Vec<f64> {
            weights.iter().zip(bias).map(|(weights, bias)| dot(weights, row) + bias).collect()
        };
        let products = apply(&self.gate_up[expert], row);
        let activations: Vec<f64> = products
            .chunks(2)
            .map(|pair| {
                let (gate, up) = (pair[0].min(SWIGLU_LIMIT), pair[1].clamp(-SWIGLU_LIMIT, SWIGLU_LIMIT));
                round(gate / (1.0 + (-SWIGLU_ALPHA * gate).exp()) * (up + 1.0))
            })
            .collect();
        apply(&self.down[expert], &activations)
    }
}
