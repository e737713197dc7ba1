//! Embeddings, norms and the router on the emulator: every width that a kernel
//! treats in its own way, against loops in f64 and the portable device.

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

use chorale_cuda::Cuda;
use chorale_device::Precision::{Full, Half};
use chorale_device::{
    BatchLimits, Columns, Cpu, DenseDtype, Device, KvDtype, KvShape, Precision, RopeParams, Routed,
};
use chorale_device::{SliceColumns, Table};
use chorale_emulator::{Emulator, Options};
use chorale_kbench::reference::{self, Random, Rows, dense, to_bf16, to_f32};
use std::num::NonZeroUsize;

const ROPE: RopeParams = RopeParams { head_dim: 64, theta: 10_000.0, yarn: None };

fn cuda(seed: u64) -> Cuda {
    Cuda::new(Emulator::new(Options { seed, ..Options::default() }).unwrap())
}

fn cpu() -> Cpu {
    Cpu::new(NonZeroUsize::new(2)).unwrap()
}

fn upload<D: Device>(device: &mut D, rows: &Rows, precision: Precision) -> D::Matrix {
    let mut matrix = device.matrix(rows.len(), rows[0].len(), precision).unwrap();
    device.write(&to_f32(rows), &mut matrix).unwrap();
    matrix
}

/// Within a share of each value, and of the largest.
fn assert_close(found: &[f32], expected: &Rows, of_each: f64, of_largest: f64, what: &str) {
    let expected = expected.concat();
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0f64, |largest, value| largest.max(value.abs()));
    for (index, (&found, &expected)) in found.iter().zip(&expected).enumerate() {
        let error = (f64::from(found) - expected).abs();
        let allowed = of_each * expected.abs() + of_largest * largest;
        assert!(error <= allowed, "{what}: value {index} is {found}, not {expected}");
    }
}

/// Half of bf16's last place, which is at most 1/128 of a number.
const ROUNDED: f64 = 1.01 / 256.0;

#[test]
fn tokens_are_looked_up_in_tables_of_any_width() {
    for (seed, (num_rows, cols)) in
        [(1, 8), (3, 61), (5, 96), (130, 100), (4, 2880), (2, 5000)].into_iter().enumerate()
    {
        let device = &mut cuda(seed as u64);
        let random = &mut Random(cols as u64);
        let table_rows = random.rows(50, cols, 3.0);
        let runs = [(&table_rows[..1], None), (&table_rows[1..30], None), (&table_rows[30..], None)];
        let table = device.embedding(dense(&runs)).unwrap();
        let tokens: Vec<u32> = (0..num_rows).map(|_| random.below(50) as u32).collect();
        let rows = 0..num_rows as u32;
        let page = || Table { first: 0, pages: vec![0; 9] };
        let columns = Columns {
            tokens: tokens.clone(),
            positions: rows.clone().collect(),
            slices: vec![SliceColumns { rows, full: page(), sliding: page() }],
            ..Columns::default()
        };
        let limits = BatchLimits { max_rows: num_rows, max_slices: 1, max_logit_rows: 1 };
        let kv = KvShape {
            windows: vec![None],
            num_query_heads: 1,
            num_kv_heads: 1,
            head_dim: 64,
            dtype: KvDtype::Bf16,
            block_size: 16,
            num_full_blocks: 9,
            num_sliding_blocks: 1,
        };
        let mut batch = device.batch(limits, &ROPE, &kv).unwrap();
        let samples = device.samples(1).unwrap();
        device.begin(&columns, &samples, &mut batch).unwrap();
        let mut hidden = device.matrix(num_rows, cols, Full).unwrap();
        device.embed(&table, &batch, &mut hidden).unwrap();
        let expected: Rows = tokens.iter().map(|&token| table_rows[token as usize].clone()).collect();
        assert_close(&device.read(&hidden).unwrap(), &expected, 0.0, 0.0, "embed");
    }
}

const NORMS: [(usize, usize); 12] = [
    (1, 1),
    (2, 8),
    (3, 61),
    (130, 96),
    (1, 2880),
    (5, 2047),
    (2, 4088),
    (2, 4096),
    (3, 4097),
    (1, 6200),
    (2, 9000),
    (1, 12_345),
];

#[test]
fn norms_of_rows_of_any_width() {
    for (seed, (num_rows, cols)) in NORMS.into_iter().enumerate() {
        let device = &mut cuda(seed as u64);
        let random = &mut Random(cols as u64);
        let gain = random.row(cols, 2.0);
        let norm = device.norm(to_bf16(&gain), 1e-5).unwrap();
        let mut normed = device.matrix(num_rows, cols, Half).unwrap();

        let mut rows = random.rows(num_rows, cols, 3.0);
        // One row of zeros, which the epsilon keeps finite.
        rows[num_rows / 2].fill(0.0);
        let mut hidden = upload(device, &rows, Full);
        device.rms_norm(&hidden, &norm, &mut normed).unwrap();
        let expected = reference::rms_norm(&rows, &gain, 1e-5);
        assert_close(&device.read(&normed).unwrap(), &expected, ROUNDED, 1e-6, "rms_norm");
        assert_close(&device.read(&hidden).unwrap(), &rows, 0.0, 0.0, "hidden");

        let delta = random.rows(num_rows, cols, 3.0);
        let delta_matrix = upload(device, &delta, Half);
        device.add_rms_norm(&delta_matrix, &norm, &mut hidden, &mut normed).unwrap();
        for (row, delta) in rows.iter_mut().zip(&delta) {
            row.iter_mut().zip(delta).for_each(|(value, delta)| *value += delta);
        }
        assert_close(&device.read(&hidden).unwrap(), &rows, 0.0, 1e-6, "hidden and delta");
        let expected = reference::rms_norm(&rows, &gain, 1e-5);
        assert_close(&device.read(&normed).unwrap(), &expected, ROUNDED, 1e-6, "add_rms_norm");
    }
}

#[test]
fn a_row_is_normed_to_the_same_bits_in_any_company() {
    let device = &mut cuda(9);
    let random = &mut Random(1);
    for cols in [96, 2880, 5000] {
        let rows = random.rows(33, cols, 3.0);
        let norm = device.norm(to_bf16(&random.row(cols, 2.0)), 1e-5).unwrap();
        let all = upload(device, &rows, Full);
        let mut normed = device.matrix(33, cols, Half).unwrap();
        device.rms_norm(&all, &norm, &mut normed).unwrap();
        let together = device.read(&normed).unwrap();
        for row in [0, 17, 32] {
            let alone = upload(device, &rows[row..=row].to_vec(), Full);
            device.rms_norm(&alone, &norm, &mut normed).unwrap();
            assert_eq!(device.read(&normed).unwrap(), together[row * cols..][..cols], "row {row} of {cols}");
        }
    }
}

/// Routes rows of which each picks its logits by one input that is 1.
fn route<D: Device>(device: &mut D, logits: &[Vec<f32>], top_k: usize) -> Vec<Vec<Routed>> {
    let (num_rows, num_experts) = (logits.len(), logits[0].len());
    let cols = num_rows.next_multiple_of(8);
    let one_hot: Rows =
        (0..num_rows).map(|row| (0..cols).map(|col| if col == row { 1.0 } else { 0.0 }).collect()).collect();
    let weight =
        |expert: usize, col: usize| logits.get(col).map_or(0.0, |row: &Vec<f32>| f64::from(row[expert]));
    let weights: Rows =
        (0..num_experts).map(|expert| (0..cols).map(|col| weight(expert, col)).collect()).collect();
    let router = device.linear(dense(&[(&weights, None)]), DenseDtype::Bf16).unwrap();
    let normed = upload(device, &one_hot, Half);
    let mut routing = device.routing(num_rows, top_k).unwrap();
    device.route(&normed, &router, &mut routing).unwrap();
    device.read_routing(&routing).unwrap()
}

#[test]
fn rows_go_to_the_experts_of_their_largest_logits() {
    for (seed, (num_rows, num_experts, top_k)) in
        [(1, 1, 1), (1, 4, 4), (3, 31, 2), (9, 32, 4), (130, 128, 4), (2, 129, 8), (5, 256, 8)]
            .into_iter()
            .enumerate()
    {
        let random = &mut Random(num_experts as u64);
        // Few values, so that many are equal.
        let logits: Vec<Vec<f32>> = (0..num_rows)
            .map(|_| (0..num_experts).map(|_| (random.below(40) as f32 - 20.0) / 4.0).collect())
            .collect();
        let found = route(&mut cuda(seed as u64), &logits, top_k);
        let expected = route(&mut cpu(), &logits, top_k);
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
            assert_eq!(found.expert, expected.expert, "{num_rows} rows, {num_experts} experts");
            assert!((found.weight - expected.weight).abs() < 1e-6, "{found:?} is not {expected:?}");
        }
    }
}

#[test]
fn logits_that_are_not_numbers_lose() {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let experts = |logits: Vec<f32>| -> Vec<u32> {
        let top_k = logits.len().min(3);
        route(&mut cuda(1), &[logits], top_k)[0].iter().map(|choice| choice.expert).collect()
    };
    assert_eq!(experts(vec![nan, 1.0, nan, 2.0, -inf]), [3, 1, 4]);
    assert_eq!(experts(vec![nan, nan, nan, 0.5]), [3, 0, 1]);
    assert_eq!(experts(vec![nan; 40]), [0, 1, 2]);
    assert_eq!(experts(vec![1.0, inf, 2.0, inf]), [1, 3, 2]);
}
