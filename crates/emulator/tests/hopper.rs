//! What Hopper alone has, emulated, against plain arithmetic.

mod rig;

use bytemuck::{Pod, Zeroable};
use rig::ring::{map, ring};
use rig::{Rig, distance, matrix, pairs, product};

const SEEDS: std::ops::Range<u64> = 1..12;

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

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct WgmmaArgs {
    left: [u64; 16],
    right: [u64; 16],
    left_words: u64,
    output: u64,
    pad: [u64; 6],
}

#[test]
fn boxes_are_swizzled_and_end_where_the_matrix_does() {
    let (rows, cols) = (40, 104);
    let halves: Vec<u16> = (1..=rows * cols).map(|i| i as u16).collect();
    let plain: Vec<u32> = (0..64).collect();
    for (seed, column, row) in [(1, 0, 0), (2, 64, 30), (3, 64, -5), (4, -8, 8), (5, 128, 0), (6, 0, 39)] {
        let rig = Rig::hopper(seed);
        let output = rig.room(16 * 32 + 64);
        let args = BoxArgs {
            map: rig.map(&map(rig.put(&halves), rows, cols, 16)),
            plain: rig.put(&plain),
            output,
            column,
            row,
            plain_bytes: 256,
            pad: [0; 9],
        };
        rig.launch("selftest_boxes", 64, [1, 1, 1], 16 * 128 + 256, &args);
        let out: Vec<u16> = rig.get(output, 16 * 64);
        for r in 0..16 {
            for c in 0..64 {
                let place = (c / 8) ^ (r % 8);
                let (from_row, from_column) = (row + r as i32, column + c as i32);
                let inside = (0..rows as i32).contains(&from_row) && (0..cols as i32).contains(&from_column);
                let expected =
                    if inside { halves[from_row as usize * cols + from_column as usize] } else { 0 };
                assert_eq!(
                    out[r * 64 + place * 8 + c % 8],
                    expected,
                    "row {r}, column {c} of {args_at:?}",
                    args_at = (column, row)
                );
            }
        }
        assert_eq!(rig.get::<u32>(output + 16 * 128, 64), plain);
    }
}

#[test]
fn wgmma_of_every_width() {
    let names = [
        (8, "selftest_wgmma_8", "selftest_wgmma_transposed_8"),
        (16, "selftest_wgmma_16", "selftest_wgmma_transposed_16"),
        (32, "selftest_wgmma_32", "selftest_wgmma_transposed_32"),
        (64, "selftest_wgmma_64", "selftest_wgmma_transposed_64"),
        (128, "selftest_wgmma_128", "selftest_wgmma_transposed_128"),
        (256, "selftest_wgmma_256", "selftest_wgmma_transposed_256"),
    ];
    for (columns, plain, transposed) in names {
        let (left, right) = (matrix(1, 64, 64), matrix(2, columns, 64));
        // Once from shared memory, once from registers.
        let expected: Vec<f32> = product(&left, &right, 64).iter().map(|sum| sum * 2.0).collect();
        let on_its_side: Vec<u16> =
            (0..64 * columns).map(|i| right[i % columns * 64 + i / columns]).collect();
        for (name, right, rows, cols, boxes) in [
            (plain, &right, columns, 64, columns),
            (transposed, &on_its_side, 64, columns, columns.div_ceil(64) * 64),
        ] {
            let rig = Rig::hopper(columns as u64);
            let (left_address, output) = (rig.put(&pairs(&left)), rig.room(64 * columns));
            let args = WgmmaArgs {
                left: rig.map(&map(left_address, 64, 64, 64)),
                right: rig.map(&map(rig.put(right), rows, cols, rows as u32)),
                left_words: left_address,
                output,
                pad: [0; 6],
            };
            rig.launch(name, 128, [1, 1, 1], 64 * 128 + boxes as u32 * 128, &args);
            assert!(distance(&rig.get(output, 64 * columns), &expected) < 1e-3, "{name}");
        }
    }
}

#[test]
fn a_ring_of_boxes() {
    for seed in SEEDS {
        let (results, expected) = ring(seed, 0);
        assert!(distance(&results, &expected) < 1e-3, "seed {seed}");
    }
}
