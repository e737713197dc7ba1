//! Arithmetic over slices, compiled for several instruction sets from one source.
//!
//! Every sum runs in [`LANES`] fixed partial sums and one fixed tree, and
//! multiplications and additions are never contracted, so the result is the
//! same bits whatever the instruction set, the tile or the batch.

use super::weights::Rows;
use std::ops::Range;

/// Partial sums of a dot product.
const LANES: usize = 16;
/// Rows of weights that are decoded at a time and multiplied together.
const TILE: usize = 4;
/// Input rows that stay in the cache while weights stream past them.
const CACHED_INPUTS: usize = 128;

/// Rows of activations, perhaps picked from a larger matrix.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a> {
    /// Row-major values.
    pub(super) values: &'a [f32],
    /// Values of a row.
    pub(super) cols: usize,
    /// Which rows; `None` takes all in order.
    pub(super) picked: Option<&'a [u32]>,
}

impl<'a> Inputs<'a> {
    pub(super) fn len(&self) -> usize {
        self.picked.map_or(self.values.len() / self.cols, <[u32]>::len)
    }

    #[inline(always)]
    fn row(&self, index: usize) -> &'a [f32] {
        let row = self.picked.map_or(index, |picked| picked[index] as usize);
        &self.values[row * self.cols..][..self.cols]
    }
}

/// `out[i * inputs + j] = weights[rows[i]] · inputs[j] + bias[rows[i]]`.
///
/// `decoded` is room for [`decoded_len`] values.
#[multiversion::multiversion(targets(
    "x86_64+avx+avx2+bmi1+bmi2+avx512f+avx512bw+avx512cd+avx512dq+avx512vl",
    "x86_64+avx+avx2+bmi1+bmi2",
))]
pub(super) fn multiply(
    weights: &Rows<'_>,
    rows: Range<usize>,
    inputs: &Inputs<'_>,
    decoded: &mut [f32],
    out: &mut [f32],
) {
    let (num_inputs, cols) = (inputs.len(), inputs.cols);
    let mut first = 0;
    while first < num_inputs {
        let last = num_inputs.min(first + CACHED_INPUTS);
        let mut row = rows.start;
        while row + TILE <= rows.end {
            weights.decode::<TILE>(row, cols, decoded);
            let tile: [&[f32]; TILE] = std::array::from_fn(|i| &decoded[i * cols..][..cols]);
            let bias = std::array::from_fn(|i| weights.bias(row + i));
            let out = &mut out[(row - rows.start) * num_inputs..][..TILE * num_inputs];
            multiply_tile(tile, bias, inputs, first..last, out);
            row += TILE;
        }
        while row < rows.end {
            weights.decode::<1>(row, cols, decoded);
            let out = &mut out[(row - rows.start) * num_inputs..][..num_inputs];
            multiply_tile([&decoded[..cols]], [weights.bias(row)], inputs, first..last, out);
            row += 1;
        }
        first = last;
    }
}

/// Values that [`multiply`] needs to decode rows of `cols` weights into.
pub(super) fn decoded_len(cols: usize) -> usize {
    TILE * cols
}

#[inline(always)]
fn multiply_tile<const W: usize>(
    tile: [&[f32]; W],
    bias: [f32; W],
    inputs: &Inputs<'_>,
    range: Range<usize>,
    out: &mut [f32],
) {
    let num_inputs = inputs.len();
    let mut j = range.start;
    while j + 2 <= range.end {
        let sums = dot_tile(tile, [inputs.row(j), inputs.row(j + 1)]);
        for i in 0..W {
            out[i * num_inputs + j] = sums[i][0] + bias[i];
            out[i * num_inputs + j + 1] = sums[i][1] + bias[i];
        }
        j += 2;
    }
    if j < range.end {
        let sums = dot_tile(tile, [inputs.row(j)]);
        for i in 0..W {
            out[i * num_inputs + j] = sums[i][0] + bias[i];
        }
    }
}

/// The dot products of each of `w` with each of `x`.
#[inline(always)]
fn dot_tile<const W: usize, const X: usize>(w: [&[f32]; W], x: [&[f32]; X]) -> [[f32; X]; W] {
    let len = w[0].len();
    let w = w.map(|row| row[..len].as_chunks::<LANES>());
    let x = x.map(|row| row[..len].as_chunks::<LANES>());
    let mut sums = [[[0.0f32; LANES]; X]; W];
    for chunk in 0..len / LANES {
        for i in 0..W {
            for j in 0..X {
                add_products(&mut sums[i][j], &w[i].0[chunk], &x[j].0[chunk]);
            }
        }
    }
    for i in 0..W {
        for j in 0..X {
            add_products(&mut sums[i][j], w[i].1, x[j].1);
        }
    }
    sums.map(|row| row.map(add_lanes))
}

#[inline(always)]
fn add_products(sums: &mut [f32; LANES], a: &[f32], b: &[f32]) {
    for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
        *sum += a * b;
    }
}

#[inline(always)]
fn add_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// The dot product of two rows of equal length.
#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    dot_tile([a], [b])[0][0]
}

/// `out = values * gain / rms(values)`.
#[inline(always)]
pub(super) fn rms_norm(values: &[f32], gain: &[f32], eps: f32, out: &mut [f32]) {
    let mean = dot(values, values) / values.len() as f32;
    let scale = 1.0 / (mean + eps).sqrt();
    for ((out, value), gain) in out.iter_mut().zip(values).zip(gain) {
        *out = value * scale * gain;
    }
}

/// `sum += factor * values`.
#[inline(always)]
pub(super) fn add_scaled(sum: &mut [f32], factor: f32, values: &[f32]) {
    for (sum, value) in sum.iter_mut().zip(values) {
        *sum += factor * value;
    }
}
