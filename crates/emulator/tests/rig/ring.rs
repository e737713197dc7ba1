//! A product by a ring of boxes, with a bug or without.

use super::{Rig, matrix, product};
use bytemuck::{Pod, Zeroable};
use chorale_cuda::TensorMap;

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

fn map(address: u64, rows: usize, cols: usize, box_rows: u32) -> TensorMap {
    let (rows, cols) = (rows as u64, cols as u64);
    TensorMap { address, rows, cols, row_bytes: cols * 2, box_rows, box_cols: 64 }
}

const DEPTH: usize = 600;

/// What the ring, with a bug or none, makes of matrices that fill no box.
pub(crate) fn ring(seed: u64, bug: u32) -> (Vec<f32>, Vec<f32>) {
    let (rows, cols) = (130, 150);
    let (left, right) = (matrix(1, rows, DEPTH), matrix(2, cols, DEPTH));
    let rig = Rig::hopper(seed);
    let output = rig.room(rows * cols);
    let args = RingArgs {
        left: rig.map(&map(rig.put(&left), rows, DEPTH, 128)),
        right: rig.map(&map(rig.put(&right), cols, DEPTH, 128)),
        output,
        rows: rows as u32,
        cols: cols as u32,
        steps: DEPTH.div_ceil(64) as u32,
        bug,
        pad: [0; 5],
    };
    rig.launch("selftest_ring", 384, [2, 2, 1], 3 * 2 * 128 * 128, &args);
    (rig.get(output, rows * cols), product(&left, &right, DEPTH))
}
