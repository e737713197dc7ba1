//! Paged keys and values: for each layer `[pages, kv heads, block size, head
//! dim]`, so that a head's keys of a page lie together.

use super::CpuError;
use crate::columns::{SliceColumns, Table};
use crate::device::KvShape;
use crate::dtype::KvDtype;
use crate::fp8::{decode_fp8_row, encode_fp8_row};

/// Keys and values of all layers.
#[derive(Debug)]
pub struct KvCache {
    pub(super) shape: KvShape,
    layers: Vec<Layer>,
}

#[derive(Debug)]
struct Layer {
    keys: Rows,
    values: Rows,
}

/// One row for each position and head.
#[derive(Debug)]
enum Rows {
    F32(Vec<f32>),
    Bf16(Vec<u16>),
    Fp8 { codes: Vec<u8>, exponents: Vec<u8> },
}

impl KvCache {
    pub(super) fn new(shape: &KvShape) -> Result<Self, CpuError> {
        assert!(shape.head_dim.is_multiple_of(2) && shape.block_size > 0);
        let layers = shape.windows.iter().map(|window| {
            let pages = if window.is_some() { shape.num_sliding_blocks } else { shape.num_full_blocks };
            // Too much to count is too much to have.
            let rows = [shape.num_kv_heads, shape.block_size];
            let rows = rows.iter().fold(pages, |rows, factor| rows.saturating_mul(*factor));
            let rows = || Rows::new(shape.dtype, rows, shape.head_dim);
            Ok(Layer { keys: rows()?, values: rows()? })
        });
        Ok(Self { shape: shape.clone(), layers: layers.collect::<Result<_, _>>()? })
    }

    /// The pages that `layer` keeps a slice's positions in.
    pub(super) fn table<'a>(&self, layer: usize, slice: &'a SliceColumns) -> &'a Table {
        if self.shape.windows[layer].is_some() { &slice.sliding } else { &slice.full }
    }

    /// Writes one head's key and value at a position.
    pub(super) fn write(&mut self, at: Place, key: &[f32], value: &[f32]) {
        let row = self.row(at);
        let layer = &mut self.layers[at.layer];
        layer.keys.write(row, key);
        layer.values.write(row, value);
    }

    /// One head's keys from a place on, `count` of them in the same page;
    /// decoded into `decoded` where they are not f32.
    #[inline(always)]
    pub(super) fn keys<'a>(&'a self, at: Place, count: usize, decoded: &'a mut Vec<f32>) -> &'a [f32] {
        self.layers[at.layer].keys.read(self.row(at), count, self.shape.head_dim, decoded)
    }

    /// One head's values, likewise.
    #[inline(always)]
    pub(super) fn values<'a>(&'a self, at: Place, count: usize, decoded: &'a mut Vec<f32>) -> &'a [f32] {
        self.layers[at.layer].values.read(self.row(at), count, self.shape.head_dim, decoded)
    }

    #[inline(always)]
    fn row(&self, at: Place) -> usize {
        (at.page * self.shape.num_kv_heads + at.head) * self.shape.block_size + at.slot
    }

    /// Where a position of a sequence lies.
    #[inline(always)]
    pub(super) fn place(&self, layer: usize, head: usize, table: &Table, position: usize) -> Place {
        let block = (position / self.shape.block_size)
            .checked_sub(table.first as usize)
            .expect("the table holds the window");
        let page = table.pages[block] as usize;
        Place { layer, page, head, slot: position % self.shape.block_size }
    }
}

impl Rows {
    fn new(dtype: KvDtype, rows: usize, head_dim: usize) -> Result<Self, CpuError> {
        let len = rows.saturating_mul(head_dim);
        Ok(match dtype {
            KvDtype::F32 => Self::F32(super::zeros(len)?),
            KvDtype::Bf16 => Self::Bf16(super::zeros(len)?),
            KvDtype::Fp8 => Self::Fp8 { codes: super::zeros(len)?, exponents: super::zeros(rows)? },
        })
    }

    fn write(&mut self, row: usize, values: &[f32]) {
        let len = values.len();
        match self {
            Self::F32(rows) => rows[row * len..][..len].copy_from_slice(values),
            Self::Bf16(rows) => {
                for (bits, &value) in rows[row * len..][..len].iter_mut().zip(values) {
                    *bits = to_bf16(value);
                }
            }
            Self::Fp8 { codes, exponents } => {
                exponents[row] = encode_fp8_row(values, &mut codes[row * len..][..len]);
            }
        }
    }

    #[inline(always)]
    fn read<'a>(&'a self, row: usize, count: usize, len: usize, decoded: &'a mut Vec<f32>) -> &'a [f32] {
        let range = row * len..(row + count) * len;
        match self {
            Self::F32(rows) => return &rows[range],
            Self::Bf16(rows) => {
                decoded.clear();
                decoded.extend(rows[range].iter().map(|bits| f32::from_bits(u32::from(*bits) << 16)));
            }
            Self::Fp8 { codes, exponents } => {
                decoded.resize(count * len, 0.0);
                let rows = codes[range].chunks_exact(len).zip(&exponents[row..]);
                for (decoded, (codes, &exponent)) in decoded.chunks_exact_mut(len).zip(rows) {
                    decode_fp8_row(codes, exponent, decoded);
                }
            }
        }
        decoded
    }
}

/// Rounds to the nearest bf16, ties to even. What is not a number stays so.
fn to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// One head's place for one position.
#[derive(Clone, Copy)]
pub(super) struct Place {
    layer: usize,
    page: usize,
    head: usize,
    slot: usize,
}
