//! Weights as the portable device keeps them: views of the checkpoint's own
//! bytes, decoded row by row where they are used. Nothing is copied but norms,
//! sinks and biases, which are small and read as f32, and matrices that are
//! asked for in eight bits.

use super::CpuError;
use crate::device::ExpertOrigin;
use crate::dtype::DenseDtype;
use crate::int8::quantize_row;
use crate::mxfp4::{BLOCK, BLOCK_BYTES, decode_scale, element_bits};
use crate::weights::{DenseSource, ExpertsSource, Mxfp4Source};
use bytes::Bytes;
use rayon::prelude::*;
use std::sync::Arc;

/// A matrix in runs of rows.
#[derive(Debug)]
pub struct Linear {
    pub(super) cols: usize,
    parts: Vec<Part>,
}

#[derive(Debug)]
struct Part {
    first_row: usize,
    num_rows: usize,
    weight: Weight,
    bias: Vec<f32>,
}

#[derive(Debug)]
enum Weight {
    Bf16(Bytes),
    Int8 { integers: Vec<i8>, scales: Vec<f32> },
}

impl Linear {
    pub(super) fn new(source: DenseSource, dtype: DenseDtype) -> Result<Self, CpuError> {
        let cols = source.cols;
        let mut first_row = 0;
        let parts = source.parts.into_iter().map(|part| {
            assert_eq!(part.weight.len(), part.rows * cols * 2, "bf16 weights [rows, cols]");
            let weight = Weight::new(part.weight, cols, dtype)?;
            let bias = part.bias.map_or_else(Vec::new, |bias| decode_bf16(&bias));
            assert!(bias.is_empty() || bias.len() == part.rows, "a bias for each row");
            let placed = Part { first_row, num_rows: part.rows, weight, bias };
            first_row += part.rows;
            Ok(placed)
        });
        Ok(Self { cols, parts: parts.collect::<Result<_, _>>()? })
    }

    pub(super) fn num_rows(&self) -> usize {
        self.parts.last().map_or(0, |part| part.first_row + part.num_rows)
    }

    /// Runs of rows that are contiguous in memory, as `(first row, rows)`.
    pub(super) fn runs(&self) -> impl Iterator<Item = (usize, Rows<'_>)> {
        self.parts.iter().map(|part| {
            let values = part.weight.values();
            (part.first_row, Rows { num_rows: part.num_rows, values, bias: &part.bias })
        })
    }

    /// Decodes one row.
    pub(super) fn row(&self, row: usize, out: &mut [f32]) {
        let part = self.parts.iter().rfind(|part| part.first_row <= row).expect("a row of the table");
        part.weight.values().decode_row(row - part.first_row, out);
    }
}

impl Weight {
    fn new(bytes: Bytes, cols: usize, dtype: DenseDtype) -> Result<Self, CpuError> {
        match dtype {
            DenseDtype::Bf16 => {
                touch(&bytes);
                Ok(Self::Bf16(bytes))
            }
            DenseDtype::Int8 => {
                let num_rows = bytes.len() / (2 * cols);
                let mut integers = super::zeros(num_rows * cols)?;
                let mut scales = super::zeros(num_rows)?;
                let rows = integers.par_chunks_exact_mut(cols).zip(&mut scales).enumerate();
                rows.for_each_init(
                    || vec![0.0; cols],
                    |decoded, (row, (integers, scale))| {
                        Values::Bf16(&bytes).decode_row(row, decoded);
                        *scale = quantize_row(decoded, integers);
                    },
                );
                Ok(Self::Int8 { integers, scales })
            }
        }
    }

    fn values(&self) -> Values<'_> {
        match self {
            Self::Bf16(bytes) => Values::Bf16(bytes),
            Self::Int8 { integers, scales } => Values::Int8 { integers, scales },
        }
    }
}

/// The experts of one layer, in the order of the rank's local experts.
#[derive(Debug)]
pub struct Experts {
    pub(super) gate_up: Mxfp4,
    pub(super) down: Mxfp4,
    pub(super) swiglu_limit: f32,
}

/// One MXFP4 matrix for each local expert.
#[derive(Debug)]
pub(super) struct Mxfp4 {
    pub(super) num_rows: usize,
    pub(super) cols: usize,
    experts: Vec<Expert>,
}

#[derive(Clone, Debug)]
struct Expert {
    blocks: Bytes,
    scales: Bytes,
    bias: Arc<[f32]>,
}

impl Experts {
    pub(super) fn new(source: ExpertsSource) -> Self {
        assert_eq!(source.gate_up.rows, 2 * source.down.cols, "a gate and an up for each input of down");
        assert_eq!(source.gate_up.cols, source.down.rows, "experts read and write the residual's width");
        Self {
            gate_up: Mxfp4::new(source.gate_up),
            down: Mxfp4::new(source.down),
            swiglu_limit: source.swiglu_limit,
        }
    }

    /// Some of these and some that are added, in a given order. Weights are views: nothing is copied.
    pub(super) fn regroup(&self, order: &[ExpertOrigin], added: Self) -> Self {
        Self {
            gate_up: self.gate_up.regroup(order, &added.gate_up),
            down: self.down.regroup(order, &added.down),
            swiglu_limit: added.swiglu_limit,
        }
    }
}

impl Mxfp4 {
    fn new(source: Mxfp4Source) -> Self {
        let (num_rows, cols) = (source.rows, source.cols);
        assert_eq!(cols % BLOCK, 0, "MXFP4 rows are whole blocks");
        let experts = source.experts.into_iter().map(|part| {
            assert_eq!(part.blocks.len(), num_rows * cols / 2, "two elements in a byte");
            assert_eq!(part.scales.len(), num_rows * cols / BLOCK, "a scale for each block");
            let bias = part.bias.map_or_else(Vec::new, |bias| decode_bf16(&bias));
            assert!(bias.is_empty() || bias.len() == num_rows, "a bias for each row");
            touch(&part.blocks);
            touch(&part.scales);
            Expert { blocks: part.blocks, scales: part.scales, bias: bias.into() }
        });
        Self { num_rows, cols, experts: experts.collect() }
    }

    fn regroup(&self, order: &[ExpertOrigin], added: &Self) -> Self {
        assert_eq!((self.num_rows, self.cols), (added.num_rows, added.cols), "experts of one layer");
        let experts = order.iter().map(|origin| match *origin {
            ExpertOrigin::Held(index) => self.experts[index].clone(),
            ExpertOrigin::Added(index) => added.experts[index].clone(),
        });
        Self { num_rows: self.num_rows, cols: self.cols, experts: experts.collect() }
    }

    /// The matrix of one local expert.
    pub(super) fn expert(&self, index: usize) -> Rows<'_> {
        let expert = &self.experts[index];
        let values = Values::Mxfp4 { blocks: &expert.blocks, scales: &expert.scales };
        Rows { num_rows: self.num_rows, values, bias: &expert.bias }
    }
}

/// Rows of weights that lie together in memory.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) num_rows: usize,
    values: Values<'a>,
    bias: &'a [f32],
}

#[derive(Clone, Copy)]
enum Values<'a> {
    Bf16(&'a [u8]),
    Int8 { integers: &'a [i8], scales: &'a [f32] },
    Mxfp4 { blocks: &'a [u8], scales: &'a [u8] },
}

impl Rows<'_> {
    #[inline(always)]
    pub(super) fn decode(&self, row: usize, out: &mut [f32]) {
        self.values.decode_row(row, out);
    }

    #[inline(always)]
    pub(super) fn bias(&self, row: usize) -> f32 {
        if self.bias.is_empty() { 0.0 } else { self.bias[row] }
    }
}

impl Values<'_> {
    #[inline(always)]
    fn decode_row(&self, row: usize, out: &mut [f32]) {
        let cols = out.len();
        match self {
            Self::Bf16(bytes) => {
                let row = &bytes[row * cols * 2..][..cols * 2];
                for (out, bits) in out.iter_mut().zip(row.as_chunks::<2>().0) {
                    *out = f32::from_bits(u32::from(u16::from_le_bytes(*bits)) << 16);
                }
            }
            Self::Int8 { integers, scales } => {
                let integers = &integers[row * cols..][..cols];
                for (out, integer) in out.iter_mut().zip(integers) {
                    *out = f32::from(*integer) * scales[row];
                }
            }
            Self::Mxfp4 { blocks, scales } => {
                let blocks = &blocks[row * cols / 2..][..cols / 2];
                let scales = &scales[row * cols / BLOCK..][..cols / BLOCK];
                let packed = blocks.as_chunks::<BLOCK_BYTES>().0;
                let decoded = out.as_chunks_mut::<BLOCK>().0;
                for ((packed, &scale), decoded) in packed.iter().zip(scales).zip(decoded) {
                    decode_block(packed, decode_scale(scale), decoded);
                }
            }
        }
    }
}

/// As [`crate::mxfp4::decode_block`], in a form that vectorises.
#[inline(always)]
fn decode_block(packed: &[u8; BLOCK_BYTES], scale: f32, out: &mut [f32; BLOCK]) {
    let mut codes = [0u8; BLOCK];
    for (i, byte) in packed.iter().enumerate() {
        codes[2 * i] = byte & 0x0f;
        codes[2 * i + 1] = byte >> 4;
    }
    let mut bits = [0u16; BLOCK];
    for (bits, code) in bits.iter_mut().zip(&codes) {
        *bits = element_bits(*code);
    }
    for (out, bits) in out.iter_mut().zip(&bits) {
        *out = f32::from_bits(u32::from(*bits) << 16) * scale;
    }
}

/// Little-endian bf16 to f32.
pub(super) fn decode_bf16(bytes: &[u8]) -> Vec<f32> {
    let values = bytes.as_chunks::<2>().0.iter();
    values.map(|bits| f32::from_bits(u32::from(u16::from_le_bytes(*bits)) << 16)).collect()
}

/// Reads a byte of each page of a view, so that a mapped file is in memory
/// when loading ends and not when the first step waits for it.
fn touch(bytes: &Bytes) {
    const PAGE: usize = 4096;
    std::hint::black_box(bytes.iter().step_by(PAGE).fold(0u8, |sum, byte| sum ^ byte));
}
