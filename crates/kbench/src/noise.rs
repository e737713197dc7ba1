//! Random weights in bulk, in the layout of checkpoints: about as large as
//! keeps activations where they are.

use crate::reference::Random;
use bytes::Bytes;
use chorale_device::{BLOCK, DensePart, DenseSource, ExpertsSource, Mxfp4Part, Mxfp4Source};

/// Exponents of the weights: from 2^-8 to 2^-5.
const EXPONENTS: u64 = 119;
/// Scales of MXFP4 blocks, whose elements are 3 in the mean.
const SCALES: u64 = 118;
/// gpt-oss's.
const SWIGLU_LIMIT: f32 = 7.0;

/// bf16 of both signs.
pub fn bf16(random: &mut Random, len: usize) -> Bytes {
    let mut bytes = Vec::with_capacity(len * 2 + 8);
    while bytes.len() < len * 2 {
        let word = random.word();
        // Four numbers a word: their signs and mantissas, then exponents from the bits between.
        let exponents = (word >> 7 & 0x0001_0001_0001_0001) + 0x0001_0001_0001_0001 * EXPONENTS;
        bytes.extend_from_slice(&((word & 0x807f_807f_807f_807f) | exponents << 7).to_le_bytes());
    }
    bytes.truncate(len * 2);
    bytes.into()
}

/// A dense matrix.
pub fn dense(random: &mut Random, rows: usize, cols: usize, has_bias: bool) -> DenseSource {
    let weight = bf16(random, rows * cols);
    let bias = has_bias.then(|| bf16(random, rows));
    DenseSource { cols, parts: vec![DensePart { rows, weight, bias }] }
}

/// The experts of a layer.
pub fn experts(random: &mut Random, count: usize, hidden: usize, intermediate: usize) -> ExpertsSource {
    let mut matrix = |rows: usize, cols: usize| {
        let part = |_| Mxfp4Part {
            blocks: bits(random, rows * cols / 2),
            scales: scales(random, rows * cols / BLOCK),
            bias: Some(bf16(random, rows)),
        };
        Mxfp4Source { rows, cols, experts: (0..count).map(part).collect() }
    };
    let (gate_up, down) = (matrix(2 * intermediate, hidden), matrix(hidden, intermediate));
    ExpertsSource { gate_up, down, swiglu_limit: SWIGLU_LIMIT }
}

/// Activations that are exact in bf16, up to 2 in size.
pub fn activations(random: &mut Random, len: usize) -> Vec<f32> {
    (0..len).map(|_| random.bf16(2.0) as f32).collect()
}

/// Bytes: MXFP4 elements, two in each.
pub fn bits(random: &mut Random, len: usize) -> Bytes {
    let mut bytes: Vec<u8> = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&random.word().to_le_bytes());
    }
    bytes.truncate(len);
    bytes.into()
}

/// Scales of MXFP4 blocks.
pub fn scales(random: &mut Random, len: usize) -> Bytes {
    let mut bytes: Vec<u8> = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        let word = (random.word() & 0x0303_0303_0303_0303) + 0x0101_0101_0101_0101 * SCALES;
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.truncate(len);
    bytes.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_of_both_signs_and_of_the_size_of_weights() {
        let bytes = bf16(&mut Random(1), 4099);
        let values = bytes.as_chunks::<2>().0.iter();
        let values: Vec<f32> =
            values.map(|bits| f32::from_bits(u32::from(u16::from_le_bytes(*bits)) << 16)).collect();
        assert_eq!(values.len(), 4099);
        assert!(values.iter().all(|value| (1.0 / 256.0..1.0 / 32.0).contains(&value.abs())));
        let mean = values.iter().sum::<f32>() / 4099.0;
        assert!(mean.abs() < 1e-3, "{mean}");
    }
}
