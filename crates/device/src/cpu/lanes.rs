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
        let cached = first..num_inputs.min(first + CACHED_INPUTS);
        let mut row = rows.start;
        while row < rows.end {
            let tile = TILE.min(rows.end - row);
            for (i, decoded) in decoded.chunks_exact_mut(cols).take(tile).enumerate() {
                weights.decode(row + i, decoded);
            }
            let out = &mut out[(row - rows.start) * num_inputs..][..tile * num_inputs];
            multiply_tile(decoded, tile, inputs, cached.clone(), out);
            for (i, out) in out.chunks_exact_mut(num_inputs).enumerate() {
                let bias = weights.bias(row + i);
                out[cached.clone()].iter_mut().for_each(|out| *out += bias);
            }
            row += tile;
        }
        first = cached.end;
    }
}

/// Products of `tile` decoded rows with some inputs, four at a time where there
/// are four: two rows with two inputs, else four rows with one.
#[inline(always)]
fn multiply_tile(decoded: &[f32], tile: usize, inputs: &Inputs<'_>, range: Range<usize>, out: &mut [f32]) {
    let (num_inputs, cols) = (inputs.len(), inputs.cols);
    let weight = |i: usize| &decoded[i * cols..][..cols];
    let mut j = range.start;
    if tile == TILE {
        while j + 2 <= range.end {
            let (x0, x1) = (inputs.row(j), inputs.row(j + 1));
            for i in [0, 2] {
                let (w0, w1) = (weight(i), weight(i + 1));
                let sums = dot_four([w0, w0, w1, w1], [x0, x1, x0, x1]);
                out[i * num_inputs + j..][..2].copy_from_slice(&sums[..2]);
                out[(i + 1) * num_inputs + j..][..2].copy_from_slice(&sums[2..]);
            }
            j += 2;
        }
        if j < range.end {
            let x = inputs.row(j);
            let sums = dot_four([weight(0), weight(1), weight(2), weight(3)], [x, x, x, x]);
            for (i, sum) in sums.into_iter().enumerate() {
                out[i * num_inputs + j] = sum;
            }
        }
        return;
    }
    for i in 0..tile {
        for j in range.clone() {
            out[i * num_inputs + j] = dot(weight(i), inputs.row(j));
        }
    }
}

/// Values that [`multiply`] needs to decode rows of `cols` weights into.
pub(super) fn decoded_len(cols: usize) -> usize {
    TILE * cols
}

/// Four dot products side by side: enough independent sums to hide the latency
/// of one. Rows that occur twice are read once.
#[inline(always)]
fn dot_four(a: [&[f32]; 4], b: [&[f32]; 4]) -> [f32; 4] {
    let len = a[0].len();
    let a = a.map(|row| row[..len].as_chunks::<LANES>());
    let b = b.map(|row| row[..len].as_chunks::<LANES>());
    let [mut sum0, mut sum1, mut sum2, mut sum3] = [Lanes::ZERO; 4];
    for chunk in 0..len / LANES {
        sum0 = sum0.add_products(&a[0].0[chunk], &b[0].0[chunk]);
        sum1 = sum1.add_products(&a[1].0[chunk], &b[1].0[chunk]);
        sum2 = sum2.add_products(&a[2].0[chunk], &b[2].0[chunk]);
        sum3 = sum3.add_products(&a[3].0[chunk], &b[3].0[chunk]);
    }
    [
        sum0.finish(a[0].1, b[0].1),
        sum1.finish(a[1].1, b[1].1),
        sum2.finish(a[2].1, b[2].1),
        sum3.finish(a[3].1, b[3].1),
    ]
}

/// The dot product of two rows of equal length; the same bits as in [`dot_four`].
#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let mut sum = Lanes::ZERO;
    for (a, b) in a.iter().zip(b) {
        sum = sum.add_products(a, b);
    }
    sum.finish(a_rest, b_rest)
}

/// The dot product of each row in `rows` with `b`.
#[inline(always)]
pub(super) fn dot_each(rows: &[f32], b: &[f32], mut give: impl FnMut(usize, f32)) {
    let row = |index: usize| &rows[index * b.len()..][..b.len()];
    let num_rows = rows.len() / b.len();
    let mut index = 0;
    while index + 4 <= num_rows {
        let four = [row(index), row(index + 1), row(index + 2), row(index + 3)];
        for (i, product) in dot_four(four, [b; 4]).into_iter().enumerate() {
            give(index + i, product);
        }
        index += 4;
    }
    for index in index..num_rows {
        give(index, dot(row(index), b));
    }
}

/// Partial sums.
#[derive(Clone, Copy)]
struct Lanes([f32; LANES]);

impl Lanes {
    const ZERO: Self = Self([0.0; LANES]);

    #[inline(always)]
    fn add_products(self, a: &[f32; LANES], b: &[f32; LANES]) -> Self {
        let mut sums = self.0;
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
        Self(sums)
    }

    /// Adds what is left of a row, then the lanes in a tree.
    #[inline(always)]
    fn finish(self, a: &[f32], b: &[f32]) -> f32 {
        let mut lanes = self.0;
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += a * b;
        }
        let mut width = LANES / 2;
        while width > 0 {
            for lane in 0..width {
                lanes[lane] += lanes[lane + width];
            }
            width /= 2;
        }
        lanes[0]
    }
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
