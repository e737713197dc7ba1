//! Weights in eight bits as they are packed on the GPU: bit by bit what
//! `quantize_row` makes of their rows.

mod rig;

use bytemuck::{Pod, Zeroable};
use chorale_device::quantize_row;
use rig::{Rig, from_bf16, noise};

/// Arguments of `pack_linear_int8`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct PackArgs {
    source: u64,
    fragments: u64,
    rows: u32,
    cols: u32,
    first_row: u32,
    num_rows: u32,
    scales: u64,
}

const NAN: u16 = 0x7fc1;
const INFINITY: u16 = 0x7f80;
/// What kernels multiply a scale with: see kernels/int8.cuh.
const UNIT: f32 = 64.0;

/// A row of a kind that quantization treats in its own way, or of plain numbers.
fn row(kind: usize, cols: usize, next: &mut impl FnMut() -> u32) -> Vec<u16> {
    let mut plain = |exponents: u32| -> Vec<u16> {
        (0..cols).map(|_| (next() & 0x807f | (120 + next() % exponents) << 7) as u16).collect()
    };
    let mut row = match kind {
        0..=5 => plain(8),
        // From one to the other end of what there is.
        6 => (0..cols)
            .map(|_| (next() & 0xffff) as u16)
            .map(|bits| if bits & INFINITY == INFINITY { 0 } else { bits })
            .collect(),
        7 => vec![0; cols],
        8 => vec![0x8000; cols],
        // Too small for an inverse, and just large enough.
        9 => (0..cols).map(|_| (next() & 0x8003) as u16).collect(),
        10 => (0..cols).map(|_| (next() & 0x807f | 8 << 7) as u16).collect(),
        _ => plain(4),
    };
    match kind {
        11 => row[cols / 2] = NAN,
        12 => row.fill(NAN | 0x8000),
        13 => row[cols - 1] = INFINITY,
        14 => (row[0], row[1]) = (INFINITY | 0x8000, NAN),
        // Ties: halves of steps of 1/127.
        15 => {
            row = (0..cols as u16)
                .map(|col| if col == 0 { 0x42fe } else { 0x3f00 + (col % 200) * 16 })
                .collect()
        }
        _ => (),
    }
    row
}

/// The rows that a tile holds in its two halves, as kernels/fragments.cuh says.
fn tile_rows(tile: usize, rows: usize) -> (usize, usize) {
    if tile < rows / 64 * 4 { (tile / 4 * 64 + tile % 4 * 8, 32) } else { (tile * 16, 8) }
}

/// All integers of a packed matrix, padding included: `[padded rows][padded cols]`.
fn unpack(words: &[u32], rows: usize, cols: usize) -> Vec<Vec<i32>> {
    let steps = cols.div_ceil(64) * 4;
    let mut integers = vec![vec![i32::MAX; steps * 16]; rows.div_ceil(16) * 16];
    let signed = |negative: u32, size: u32| if negative == 0 { size as i32 } else { -(size as i32) };
    for (place, &word) in words.iter().enumerate() {
        let (load, lane, part) = (place / 128, place / 4 % 32, place % 4);
        let (tile, step) = (load / (steps / 2), load % (steps / 2) * 2 + part / 2);
        let (first, gap) = tile_rows(tile, rows);
        let row = &mut integers[first + lane / 4 + part % 2 * gap];
        for half in 0..2 {
            let bits = word >> (16 * half) & 0xffff;
            let col = step * 16 + lane % 4 * 2 + half;
            row[col] = signed(bits & 0x8000, bits & 0x7f);
            row[col + 8] = signed(bits & 0x80, bits >> 8 & 0x7f);
        }
    }
    integers
}

#[test]
fn integers_and_scales_are_those_of_quantize_row() {
    for (seed, (rows, cols)) in
        [(1, 8), (16, 64), (37, 40), (64, 96), (130, 160), (200, 72)].into_iter().enumerate()
    {
        let mut next = noise(seed as u32 + 1);
        let source: Vec<Vec<u16>> = (0..rows).map(|index| row(index % 16, cols, &mut next)).collect();
        let rig = Rig::new(seed as u64);
        let (num_rows, num_words) = (rows.div_ceil(16) * 16, rows.div_ceil(16) * cols.div_ceil(64) * 256);
        let (fragments, scales) = (rig.room(num_words), rig.room(num_rows));
        // Whole rows at a time, as they are uploaded.
        for first in (0..rows).step_by(64) {
            let piece = &source[first..rows.min(first + 64)];
            let args = PackArgs {
                source: rig.put(&piece.concat()),
                fragments,
                rows: rows as u32,
                cols: cols as u32,
                first_row: first as u32,
                num_rows: piece.len() as u32,
                scales,
            };
            rig.launch("pack_linear_int8", 256, [piece.len().div_ceil(16) as u32, 1, 1], 0, &args);
        }
        let found = unpack(&rig.get(fragments, num_words), rows, cols);
        let scales: Vec<f32> = rig.get(scales, num_rows);
        for (index, bits) in source.iter().enumerate() {
            let weights: Vec<f32> = bits.iter().map(|&bits| from_bf16(bits)).collect();
            let mut integers = vec![0i8; cols];
            let scale = quantize_row(&weights, &mut integers);
            let what = format!("row {index} of {rows} x {cols}");
            assert_eq!(scales[index].to_bits(), (scale * UNIT).to_bits(), "{what}: {}", scales[index]);
            assert!(
                integers.iter().map(|&integer| i32::from(integer)).eq(found[index][..cols].iter().copied()),
                "{what}"
            );
        }
        // What is beyond the matrix adds nothing.
        assert!(scales[rows..].iter().all(|&scale| scale == 0.0));
        assert!(found[rows..].iter().flatten().all(|&integer| integer == 0));
        assert!(found.iter().flat_map(|row| &row[cols..]).all(|&integer| integer == 0));
    }
}
