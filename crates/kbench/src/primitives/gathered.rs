//! What Hopper's kernels bring into shared memory by other ways than boxes of
//! what lies there since long: rows that threads gather, bulk copies over what
//! threads have read, and results of a kernel that may still run.

use super::hopper::BoxArgs;
use super::{Bench, Words, matrix, product};
use crate::failure::{Outcome, ensure};
use bytemuck::{Pod, Zeroable};
use chorale_cuda::{Kernel, Launches, TensorMap};

/// Arguments of `selftest_gather`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct GatherArgs {
    left: u64,
    right: u64,
    picked: u64,
    output: u64,
    chunks: u32,
    stride: u32,
}

/// A left matrix of 128 rows as wgmma takes it from registers: of 64 columns, of 16
/// rows, of 16 columns what each lane holds.
fn fragments(left: &[u16], depth: usize) -> Vec<u16> {
    let mut halves = Vec::with_capacity(left.len());
    let steps = (0..depth / 64).flat_map(|chunk| {
        (0..8).flat_map(move |tile| (0..4).map(move |step| (tile * 16, chunk * 64 + step * 16)))
    });
    for (first_row, first_column) in steps {
        for lane in 0..32 {
            for (row, column) in [(0, 0), (8, 0), (0, 8), (8, 8)] {
                let start = (first_row + row + lane / 4) * depth + first_column + column + lane % 4 * 2;
                halves.extend(&left[start..start + 2]);
            }
        }
    }
    halves
}

/// Rows that lie apart, brought by threads, times what bulk copies bring.
pub(super) fn rows(bench: &Bench<'_>) -> Outcome {
    const ROWS: usize = 100;
    for chunks in [1, 2, 7, 12] {
        let depth = chunks * 64;
        let (left, right) = (matrix(1, 128, depth), matrix(2, ROWS, depth));
        let picked: Vec<u32> = (0..64).map(|i| (i * 37 + 11) % ROWS as u32).collect();
        let rows: Vec<u16> =
            picked.iter().flat_map(|&row| &right[row as usize * depth..][..depth]).copied().collect();
        let output = bench.room(128 * 64)?;
        let args = GatherArgs {
            left: bench.put(&fragments(&left, depth))?,
            right: bench.put(&right)?,
            picked: bench.put(&picked)?,
            output,
            chunks: chunks as u32,
            stride: (depth / 8) as u32,
        };
        let kernel = Kernel { name: "selftest_gather", threads: 384 };
        bench.launch(kernel, [1, 1, 1], 3 * (64 * 128 + 8 * 4 * 512), &args)?;
        let found = bench.get::<f32>(output, 128 * 64)?;
        bench.near(
            &found,
            &product(&left, &rows, depth),
            64,
            &format!("the product over {depth} columns"),
        )?;
    }
    Ok(())
}

/// Bulk copies of what the kernel before wrote, which may still run when the one
/// that copies begins.
pub(super) fn results(bench: &Bench<'_>) -> Outcome {
    const WORDS: usize = 1 << 15;
    const COLS: usize = 512;
    const ROWS: usize = WORDS * 2 / COLS;
    let input = bench.room(WORDS)?;
    let mut launches = Launches::default();
    let mut outputs = Vec::new();
    let mut before = input;
    for link in 0..4 {
        let address = bench.room(WORDS)?;
        let chain = Words { input: before, output: address, count: WORDS as u32, pad: 0 };
        let kernel = Kernel { name: "selftest_chain", threads: 64 };
        launches.push(kernel, [WORDS.div_ceil(64) as u32, 1, 1], 0, &chain);
        let cols = COLS as u64;
        let map =
            TensorMap { address, rows: ROWS as u64, cols, row_bytes: cols * 2, box_rows: 16, box_cols: 64 };
        // Towards the end, which is written last.
        let (row, column) = (ROWS - 16 * (link % 3 + 1), COLS - 64 * (link + 1));
        let output = bench.room(16 * 32 + 64)?;
        let args = BoxArgs {
            map: bench.gpu.tensor_map(&map)?,
            plain: address + ((WORDS - 64) * 4) as u64,
            output,
            column: column as i32,
            row: row as i32,
            plain_bytes: 256,
            pad: [0; 25],
        };
        launches.push(Kernel { name: "selftest_boxes", threads: 64 }, [1, 1, 1], 16 * 128 + 256, &args);
        outputs.push((output, row, column));
        before = address;
    }
    // Launched one by one, then made a graph, then replayed, with other words each time.
    for round in 0..4_u32 {
        let mut words: Vec<u32> = (0..WORDS as u32).map(|i| i.wrapping_mul(0x9E37_79B9) ^ round).collect();
        bench.replace(input, &words)?;
        bench.run(&launches)?;
        for &(output, row, column) in &outputs {
            words.iter_mut().for_each(|word| *word = word.wrapping_mul(3).wrapping_add(1));
            let found: Vec<u32> = bench.get(output, 16 * 32 + 64)?;
            let mut boxed = (0..16).flat_map(|r| (0..32).map(move |w| (r, w)));
            let is_right = boxed.all(|(r, w)| {
                let expected = words[(row + r) * COLS / 2 + column / 2 + w];
                found[r * 32 + ((w / 4) ^ (r % 8)) * 4 + w % 4] == expected
            });
            ensure(is_right && found[16 * 32..] == words[WORDS - 64..], || {
                format!(
                    "round {round}: the box at {row}, {column}, or the plain bytes, are what was there before"
                )
            })?;
        }
    }
    Ok(())
}
