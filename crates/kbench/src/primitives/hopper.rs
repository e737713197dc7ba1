//! What Hopper alone has: the bulk tensor copy engine and warpgroups.

use super::{Bench, matrix, noise, pairs, product};
use crate::failure::{Failure, Outcome, ensure};
use bytemuck::{Pod, Zeroable};
use chorale_cuda::{Kernel, TensorMap};

/// Arguments of `selftest_boxes`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct BoxArgs {
    map: [u64; 16],
    plain: u64,
    output: u64,
    column: i32,
    row: i32,
    plain_bytes: u32,
    pad: [u32; 9],
}

/// Arguments of `selftest_wgmma_*`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct WgmmaArgs {
    left: [u64; 16],
    right: [u64; 16],
    left_words: u64,
    output: u64,
    pad: [u64; 6],
}

/// Arguments of `selftest_ring`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct RingArgs {
    left: [u64; 16],
    right: [u64; 16],
    output: u64,
    rows: u32,
    cols: u32,
    steps: u32,
    bug: u32,
    pad: [u64; 5],
}

const WIDTHS: [(usize, &str, &str); 6] = [
    (8, "selftest_wgmma_8", "selftest_wgmma_transposed_8"),
    (16, "selftest_wgmma_16", "selftest_wgmma_transposed_16"),
    (32, "selftest_wgmma_32", "selftest_wgmma_transposed_32"),
    (64, "selftest_wgmma_64", "selftest_wgmma_transposed_64"),
    (128, "selftest_wgmma_128", "selftest_wgmma_transposed_128"),
    (256, "selftest_wgmma_256", "selftest_wgmma_transposed_256"),
];

/// Columns of the matrices in the ring.
const DEPTH: usize = 600;

impl Bench<'_> {
    fn map(&self, halves: &[u16], cols: usize, box_rows: usize) -> Result<[u64; 16], Failure> {
        let (rows, address) = ((halves.len() / cols) as u64, self.put(halves)?);
        let cols = cols as u64;
        let map =
            TensorMap { address, rows, cols, row_bytes: cols * 2, box_rows: box_rows as u32, box_cols: 64 };
        Ok(self.gpu.tensor_map(&map)?)
    }

    /// What `selftest_wgmma_*` makes of 64 rows and so many columns, each 64 deep;
    /// `right` has boxes of `cols` by `box_rows`, which take `shared_rows`.
    fn multiply(
        &self,
        name: &'static str,
        left: &[u16],
        right: &[u16],
        (cols, box_rows, shared_rows, columns): (usize, usize, usize, usize),
    ) -> Result<Vec<f32>, Failure> {
        let output = self.room(64 * columns)?;
        let args = WgmmaArgs {
            left: self.map(left, 64, 64)?,
            right: self.map(right, cols, box_rows)?,
            left_words: self.put(&pairs(left))?,
            output,
            pad: [0; 6],
        };
        self.launch(Kernel { name, threads: 128 }, [1, 1, 1], 64 * 128 + shared_rows * 128, &args)?;
        self.get(output, 64 * columns)
    }
}

pub(super) fn boxes(bench: &Bench<'_>) -> Outcome {
    let (rows, cols) = (40, 104);
    let halves: Vec<u16> = (1..=rows * cols).map(|i| i as u16).collect();
    let plain: Vec<u32> = (0..64).collect();
    for (column, row) in [(0, 0), (64, 30), (64, -5), (-8, 8), (128, 0), (0, 39)] {
        let output = bench.room(16 * 32 + 64)?;
        let args = BoxArgs {
            map: bench.map(&halves, cols, 16)?,
            plain: bench.put(&plain)?,
            output,
            column,
            row,
            plain_bytes: 256,
            pad: [0; 9],
        };
        let kernel = Kernel { name: "selftest_boxes", threads: 64 };
        bench.launch(kernel, [1, 1, 1], 16 * 128 + 256, &args)?;
        let out: Vec<u16> = bench.get(output, 16 * 64)?;
        for (r, c) in (0..16).flat_map(|r| (0..64).map(move |c| (r, c))) {
            let place = (c / 8) ^ (r % 8);
            let (from_row, from_column) = (row + r as i32, column + c as i32);
            let is_inside = (0..rows as i32).contains(&from_row) && (0..cols as i32).contains(&from_column);
            let expected =
                if is_inside { halves[from_row as usize * cols + from_column as usize] } else { 0 };
            let found = out[r * 64 + place * 8 + c % 8];
            ensure(found == expected, || {
                format!("row {r}, column {c} of the box at {row}, {column} is {found}, not {expected}")
            })?;
        }
        let found: Vec<u32> = bench.get(output + 16 * 128, 64)?;
        ensure(found == plain, || format!("plain bytes after the box at {row}, {column}: {found:?}"))?;
    }
    Ok(())
}

pub(super) fn wgmma(bench: &Bench<'_>) -> Outcome {
    let left = matrix(1, 64, 64);
    for (columns, plain, transposed) in WIDTHS {
        let right = matrix(2, columns, 64);
        // Once from shared memory, once from registers.
        let expected: Vec<f32> = product(&left, &right, 64).iter().map(|sum| sum * 2.0).collect();
        let on_its_side: Vec<u16> =
            (0..64 * columns).map(|i| right[i % columns * 64 + i / columns]).collect();
        for (name, right, cols, box_rows, shared_rows) in [
            (plain, &right, 64, columns, columns),
            (transposed, &on_its_side, columns, 64, columns.div_ceil(64) * 64),
        ] {
            let found = bench.multiply(name, &left, right, (cols, box_rows, shared_rows, columns))?;
            bench.near(&found, &expected, name)?;
        }
    }
    Ok(())
}

/// The same factors give the same bits, whatever else is multiplied with them:
/// batch-invariant products rely on it.
pub(super) fn widths(bench: &Bench<'_>) -> Outcome {
    let (left, right) = (uneven(1, 64 * 64), uneven(2, 256 * 64));
    let mut first: Option<Vec<u32>> = None;
    for (columns, name, _) in WIDTHS {
        let found = bench.multiply(name, &left, &right[..columns * 64], (64, columns, columns, columns))?;
        let found: Vec<u32> =
            found.chunks_exact(columns).flat_map(|row| row[..8].iter().map(|sum| sum.to_bits())).collect();
        match &first {
            None => first = Some(found),
            Some(first) => {
                let differing = first.iter().zip(&found).filter(|(a, b)| a != b).count();
                ensure(differing == 0, || {
                    format!("{columns} columns at a time give other bits than 8 do, {differing} of 512")
                })?;
            }
        }
    }
    Ok(())
}

/// Numbers of all sizes, whose sums have to be rounded.
fn uneven(seed: u32, count: usize) -> Vec<u16> {
    let mut next = noise(seed);
    // Exponents from -8 to 7, seven bits of mantissa.
    (0..count).map(|_| (next() & 0x807F) as u16 | ((119 + next() % 16) << 7) as u16).collect()
}

pub(super) fn ring(bench: &Bench<'_>) -> Outcome {
    let (rows, cols) = (130, 150);
    let (left, right) = (matrix(1, rows, DEPTH), matrix(2, cols, DEPTH));
    let output = bench.room(rows * cols)?;
    let args = RingArgs {
        left: bench.map(&left, DEPTH, 128)?,
        right: bench.map(&right, DEPTH, 128)?,
        output,
        rows: rows as u32,
        cols: cols as u32,
        steps: DEPTH.div_ceil(64) as u32,
        bug: 0,
        pad: [0; 5],
    };
    let kernel = Kernel { name: "selftest_ring", threads: 384 };
    bench.launch(kernel, [2, 2, 1], 3 * 2 * 128 * 128, &args)?;
    bench.near(&bench.get::<f32>(output, rows * cols)?, &product(&left, &right, DEPTH), "the product")
}
