//! What Hopper alone has: the bulk tensor copy engine and warpgroups.

use super::origins::{Shape, differences, of_product};
use super::{Bench, matrix, noise, pairs, product, to_bf16};
use crate::failure::{Failure, Outcome, ensure};
use bytemuck::{Pod, Zeroable};
use chorale_cuda::{Kernel, TensorMap};

/// Arguments of `selftest_boxes`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(super) struct BoxArgs {
    pub(super) map: [u64; 16],
    pub(super) plain: u64,
    pub(super) output: u64,
    pub(super) column: i32,
    pub(super) row: i32,
    pub(super) plain_bytes: u32,
    pub(super) pad: [u32; 25],
}

/// Arguments of `selftest_wgmma_*`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct WgmmaArgs {
    left: [u64; 16],
    right: [u64; 16],
    left_words: u64,
    output: u64,
    pad: [u64; 14],
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
    pad: [u64; 13],
}

const WIDTHS: [(usize, &str, &str); 8] = [
    (8, "selftest_wgmma_8", "selftest_wgmma_transposed_8"),
    (16, "selftest_wgmma_16", "selftest_wgmma_transposed_16"),
    (32, "selftest_wgmma_32", "selftest_wgmma_transposed_32"),
    (40, "selftest_wgmma_40", "selftest_wgmma_transposed_40"),
    (64, "selftest_wgmma_64", "selftest_wgmma_transposed_64"),
    (80, "selftest_wgmma_80", "selftest_wgmma_transposed_80"),
    (128, "selftest_wgmma_128", "selftest_wgmma_transposed_128"),
    (256, "selftest_wgmma_256", "selftest_wgmma_transposed_256"),
];

/// Characters of what is told of products that are wrong.
const TOLD_MAX: usize = 12_000;

/// Columns of the matrices in the ring.
const DEPTH: usize = 600;
const RING_ROWS: usize = 130;
const RING_COLS: usize = 150;

impl Bench<'_> {
    fn map(&self, halves: &[u16], cols: usize, box_rows: usize) -> Result<[u64; 16], Failure> {
        let (rows, address) = ((halves.len() / cols) as u64, self.put(halves)?);
        let cols = cols as u64;
        let map =
            TensorMap { address, rows, cols, row_bytes: cols * 2, box_rows: box_rows as u32, box_cols: 64 };
        Ok(self.gpu.tensor_map(&map)?)
    }

    /// What `selftest_wgmma_*` makes of 64 rows and so many columns, each 64 deep, once
    /// with the left one in shared memory, and added to it with one in registers;
    /// `right` has boxes of `cols` by `box_rows`, which take `shared_rows`.
    fn multiply(
        &self,
        name: &'static str,
        [left, in_registers]: [&[u16]; 2],
        right: &[u16],
        (cols, box_rows, shared_rows, columns): (usize, usize, usize, usize),
    ) -> Result<Vec<f32>, Failure> {
        let output = self.room(64 * columns)?;
        let args = WgmmaArgs {
            left: self.map(left, 64, 64)?,
            right: self.map(right, cols, box_rows)?,
            left_words: self.put(&pairs(in_registers))?,
            output,
            pad: [0; 14],
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
            pad: [0; 25],
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
                let from = |&found: &u16| match usize::from(found).checked_sub(1) {
                    None => "-".to_owned(),
                    Some(place) => format!("{}.{}", place / cols, place % cols),
                };
                let line = |line: &[u16]| {
                    let chunks: Vec<String> = line.iter().step_by(8).map(from).collect();
                    format!("\n{}", chunks.join(" "))
                };
                format!(
                    "row {r}, column {c} of the box at {row}, {column} is {found}, not {expected}; row and column \
                     of the first of each 8 elements in shared memory, 64 a line:{}",
                    out.chunks(64).map(line).collect::<String>()
                )
            })?;
        }
        let found: Vec<u32> = bench.get(output + 16 * 128, 64)?;
        ensure(found == plain, || format!("plain bytes after the box at {row}, {column}: {found:?}"))?;
    }
    Ok(())
}

pub(super) fn wgmma(bench: &Bench<'_>) -> Outcome {
    let left = matrix(1, 64, 64);
    let nothing = vec![0; 64 * 64];
    let mut wrong = String::new();
    for (columns, plain, transposed) in WIDTHS {
        let right = matrix(2, columns, 64);
        let expected = product(&left, &right, 64);
        for (name, is_plain) in [(plain, true), (transposed, false)] {
            let multiply = |left: [&[u16]; 2], right: &[u16]| {
                if is_plain {
                    return bench.multiply(name, left, right, (64, columns, columns, columns));
                }
                let on_its_side: Vec<u16> =
                    (0..64 * columns).map(|i| right[i % columns * 64 + i / columns]).collect();
                let shared_rows = columns.div_ceil(64) * 64;
                bench.multiply(name, left, &on_its_side, (columns, 64, shared_rows, columns))
            };
            for (place, is_shared) in [("from shared memory", true), ("from registers", false)] {
                let found = multiply(placed(&left, &nothing, is_shared), &right)?;
                let what = format!("{name}, the left one {place}");
                if let Err(failure) = bench.near(&found, &expected, columns, &what) {
                    wrong.push_str(&format!("{failure}"));
                    // What is alike of all need not be told of all.
                    if wrong.len() < TOLD_MAX {
                        let shape = Shape { rows: 64, cols: columns, depth: 64 };
                        let again =
                            |left: &[u16], right: &[u16]| multiply(placed(left, &nothing, is_shared), right);
                        wrong.push_str(&of_product(shape, &again));
                    }
                    wrong.push('\n');
                }
            }
            let both = multiply([&left, &left], &right)?;
            let expected: Vec<f32> = expected.iter().map(|sum| 2.0 * sum).collect();
            if let Err(failure) =
                bench.near(&both, &expected, columns, &format!("{name}, one after the other"))
            {
                wrong.push_str(&format!("{failure}\n"));
            }
        }
    }
    ensure(wrong.is_empty(), || wrong.trim_end().to_owned())
}

/// A left one in shared memory or in registers, and nothing in the other place.
fn placed<'a>(left: &'a [u16], nothing: &'a [u16], is_shared: bool) -> [&'a [u16]; 2] {
    if is_shared { [left, nothing] } else { [nothing, left] }
}

/// The same factors give the same bits, whatever else is multiplied with them:
/// batch-invariant products rely on it.
pub(super) fn widths(bench: &Bench<'_>) -> Outcome {
    let (left, right) = (uneven(1, 64 * 64), uneven(2, 256 * 64));
    let mut first: Option<Vec<u32>> = None;
    for (columns, name, _) in WIDTHS {
        let found =
            bench.multiply(name, [&left, &left], &right[..columns * 64], (64, columns, columns, columns))?;
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
    let (found, expected) = ring_of(bench, 0)?;
    let near = bench.near(&found, &expected, RING_COLS, "the product");
    near.map_err(|Failure(text)| Failure(text + &steps_that_arrive(bench)))
}

/// What the ring makes of matrices that fill no box, and what it should.
pub(super) fn ring_of(bench: &Bench<'_>, bug: u32) -> Result<(Vec<f32>, Vec<f32>), Failure> {
    let (left, right) = (matrix(1, RING_ROWS, DEPTH), matrix(2, RING_COLS, DEPTH));
    Ok((ring_product(bench, (&left, &right), bug)?, product(&left, &right, DEPTH)))
}

/// What `selftest_ring`, with a bug or none, makes of matrices of [`DEPTH`] columns.
fn ring_product(bench: &Bench<'_>, (left, right): (&[u16], &[u16]), bug: u32) -> Result<Vec<f32>, Failure> {
    let (rows, cols) = (left.len() / DEPTH, right.len() / DEPTH);
    let output = bench.room(rows * cols)?;
    let args = RingArgs {
        left: bench.map(left, DEPTH, 128)?,
        right: bench.map(right, DEPTH, 128)?,
        output,
        rows: rows as u32,
        cols: cols as u32,
        steps: DEPTH.div_ceil(64) as u32,
        bug,
        pad: [0; 13],
    };
    let kernel = Kernel { name: "selftest_ring", threads: 384 };
    let grid = [cols.div_ceil(128) as u32, rows.div_ceil(128) as u32, 1];
    bench.launch(kernel, grid, 3 * 2 * 128 * 128, &args)?;
    bench.get(output, rows * cols)
}

/// How often each step of the ring is in the sums: once, if all is well.
fn steps_that_arrive(bench: &Bench<'_>) -> String {
    let (rows, cols) = (RING_ROWS, RING_COLS);
    let mut text = String::new();
    for step in 0..DEPTH.div_ceil(64) {
        let places = step * 64..((step + 1) * 64).min(DEPTH);
        let one = |place: usize| to_bf16(f32::from(u8::from(places.contains(&(place % DEPTH)))));
        let left: Vec<u16> = (0..rows * DEPTH).map(one).collect();
        let right = vec![to_bf16(1.0); cols * DEPTH];
        let expected = vec![places.len() as f32; rows * cols];
        let found = ring_product(bench, (&left, &right), 0);
        let told = found.map(|found| differences(&found, &expected, cols, 0.0));
        match told {
            Ok(None) => {}
            Ok(Some(differences)) => text.push_str(&format!("\nstep {step} alone: {differences}")),
            Err(failure) => text.push_str(&format!("\nstep {step} alone: {failure}")),
        }
    }
    if text.is_empty() { "\neach step alone arrives everywhere once".to_owned() } else { text }
}
