//! Products with dense weights on the emulator: every kernel that a product may
//! be cut for, against loops in f64, and what must not change a row's bits.

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

use chorale_cuda::Cuda;
use chorale_device::Precision::{Full, Half};
use chorale_device::{
    BatchLimits, Columns, Cpu, DenseDtype, DensePart, DenseSource, Device, KvDtype, KvShape, RopeParams,
    SliceColumns, Table,
};
use chorale_emulator::{Emulator, Options};
use chorale_kbench::noise;
use chorale_kbench::reference::{self, Random, Rows, dense, kept, to_bf16, to_f32};
use std::num::NonZeroUsize;

/// Few processors make every kernel worth choosing for some small matrix.
const SMS: [u32; 3] = [1, 4, 132];
const DTYPES: [DenseDtype; 2] = [DenseDtype::Bf16, DenseDtype::Int8];
const GENERIC: (u32, u32) = (8, 0);
const HOPPER: (u32, u32) = (9, 0);

fn cuda(seed: u64, num_sms: u32, capability: (u32, u32)) -> Cuda {
    Cuda::new(Emulator::new(Options { seed, num_sms, capability, ..Options::default() }).unwrap())
}

fn upload<D: Device>(device: &mut D, rows: &Rows) -> D::Matrix {
    let mut matrix = device.matrix(rows.len(), rows[0].len(), Half).unwrap();
    device.write(&to_f32(rows), &mut matrix).unwrap();
    matrix
}

fn project<D: Device>(device: &mut D, rows: &Rows, weights: &D::Linear, outputs: usize) -> Vec<f32> {
    let input = upload(device, rows);
    let mut out = device.matrix(rows.len(), outputs, Half).unwrap();
    device.project(&input, weights, &mut out).unwrap();
    device.read(&out).unwrap()
}

/// Rounded to bf16, after a sum in f32.
fn assert_close(found: &[f32], expected: &[f64], what: &str) {
    assert_within(found, expected, (1.01 / 256.0, 4e-6), what);
}

/// Within a share of each value and a share of the largest.
fn assert_within(found: &[f32], expected: &[f64], (of_each, of_largest): (f64, f64), what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1.0f64, |largest, value| largest.max(value.abs()));
    for (index, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(found) - expected).abs();
        let allowed = expected.abs() * of_each + of_largest * largest;
        assert!(error <= allowed, "{what}: value {index} is {found}, not {expected}");
    }
}

/// Weights in parts that begin at odd rows.
fn in_parts(weights: &Rows, bias: &[f64]) -> DenseSource {
    let (a, b) = (weights.len() / 3, weights.len() * 3 / 4);
    let cut = [0..a, a..b, b..weights.len()];
    // The one in the middle has no bias.
    let runs = cut
        .iter()
        .enumerate()
        .map(|(i, rows)| (&weights[rows.clone()], (i != 1).then(|| &bias[rows.clone()])));
    dense(&runs.collect::<Vec<_>>())
}

/// The bias that such parts have.
fn bias_in_parts(bias: &[f64]) -> Vec<f64> {
    let (a, b) = (bias.len() / 3, bias.len() * 3 / 4);
    bias.iter().enumerate().map(|(i, &value)| if (a..b).contains(&i) { 0.0 } else { value }).collect()
}

fn products_are_right(capability: (u32, u32), dtype: DenseDtype) {
    let random = &mut Random(1);
    for (index, num_sms) in SMS.into_iter().enumerate() {
        for outputs in [5, 16, 37, 128, 200, 777] {
            for num_rows in [1, 3, 8, 9, 16, 31, 33, 64, 65, 70, 130, 200] {
                let cols = random.pick(&[32, 64, 96, 160, 288]);
                let device = &mut cuda(random.word(), num_sms, capability);
                let weights = random.rows(outputs, cols, 1.0);
                let bias = random.row(outputs, 1.0);
                let rows = random.rows(num_rows, cols, 2.0);
                let linear = device.linear(in_parts(&weights, &bias), dtype).unwrap();
                let found = project(device, &rows, &linear, outputs);
                let weights = kept(&weights, dtype);
                let expected = reference::project(&rows, &weights, &bias_in_parts(&bias)).concat();
                let what = format!(
                    "{index}: {num_rows} rows of {cols} to {outputs}, {num_sms} processors, {}",
                    dtype.name()
                );
                assert_close(&found, &expected, &what);
            }
        }
    }
}

#[test]
fn products_agree_with_plain_loops() {
    products_are_right(GENERIC, DenseDtype::Bf16);
}

#[test]
fn products_on_hopper_agree_with_plain_loops() {
    products_are_right(HOPPER, DenseDtype::Bf16);
}

#[test]
fn products_of_integers_agree_with_plain_loops() {
    products_are_right(GENERIC, DenseDtype::Int8);
}

#[test]
fn products_of_integers_on_hopper_agree_with_plain_loops() {
    products_are_right(HOPPER, DenseDtype::Int8);
}

#[test]
fn gpt_oss_shapes_agree_with_plain_loops() {
    use DenseDtype::{Bf16, Int8};
    for (outputs, cols, num_rows, capability, dtype) in [
        (5120, 2880, 1, GENERIC, Bf16),
        (5120, 2880, 1, GENERIC, Int8),
        (2880, 4096, 3, GENERIC, Bf16),
        (2880, 4096, 3, GENERIC, Int8),
        (128, 2880, 20, GENERIC, Bf16),
        (640, 2880, 33, GENERIC, Bf16),
        (640, 2880, 33, GENERIC, Int8),
        (640, 2880, 130, GENERIC, Bf16),
        (640, 2880, 130, HOPPER, Bf16),
        (640, 2880, 130, HOPPER, Int8),
    ] {
        let random = &mut Random(outputs as u64);
        let device = &mut cuda(3, 132, capability);
        let source = noise::dense(random, outputs, cols, true);
        let decode = |bytes: &[u8]| -> Vec<f64> {
            let bits = bytes.as_chunks::<2>().0.iter().map(|bits| u32::from(u16::from_le_bytes(*bits)));
            bits.map(|bits| f64::from(f32::from_bits(bits << 16))).collect()
        };
        let weights: Rows = decode(&source.parts[0].weight).chunks(cols).map(<[f64]>::to_vec).collect();
        let weights = kept(&weights, dtype);
        let bias = decode(source.parts[0].bias.as_ref().unwrap());
        let rows = random.rows(num_rows, cols, 2.0);
        let linear = device.linear(source, dtype).unwrap();
        let found = project(device, &rows, &linear, outputs);
        let expected = reference::project(&rows, &weights, &bias).concat();
        assert_close(&found, &expected, &format!("{num_rows} rows of {cols} to {outputs}, {}", dtype.name()));
    }
}

/// Rows of a single one read the columns of the weights as they were packed.
#[test]
fn packing_loses_nothing() {
    let random = &mut Random(5);
    for (outputs, cols) in [(1, 8), (5, 32), (64, 64), (130, 96), (200, 160), (777, 40)] {
        let bytes: Vec<u8> = (0..outputs * cols)
            // Any finite bf16 that is not a negative zero, which sums lose.
            .flat_map(|_| ((random.word() as u16 & 0xbfff) | 1).to_le_bytes())
            .collect();
        let split = outputs / 2;
        let part = |rows: std::ops::Range<usize>| DensePart {
            rows: rows.len(),
            weight: bytes[rows.start * cols * 2..rows.end * cols * 2].to_vec().into(),
            bias: None,
        };
        let source = || DenseSource { cols, parts: vec![part(0..split), part(split..outputs)] };
        let exact: Vec<u16> = bytes.as_chunks::<2>().0.iter().map(|bits| u16::from_le_bytes(*bits)).collect();
        for capability in [GENERIC, HOPPER] {
            let device = &mut cuda(random.word(), 4, capability);
            let linear = device.linear(source(), DenseDtype::Bf16).unwrap();
            for first in (0..cols).step_by(7) {
                let ones: Rows = (0..cols)
                    .map(|row| {
                        (0..cols).map(|col| f64::from(u8::from((first + row) % cols == col))).collect()
                    })
                    .collect();
                // Some kernel for few rows, and one for many.
                let count = if first % 2 == 0 { cols } else { 1 + first % cols };
                let found = project(device, &ones[..count].to_vec(), &linear, outputs);
                for (row, found) in found.chunks(outputs).enumerate() {
                    let col = (first + row) % cols;
                    let same = found.iter().enumerate().all(|(output, value)| {
                        value.to_bits() == u32::from(exact[output * cols + col]) << 16
                    });
                    assert!(same, "{outputs} x {cols}, column {col} of {count} rows");
                }
            }
        }
    }
}

/// Among few rows a row's bits depend on nothing else, and so among many.
#[test]
fn neighbours_do_not_change_a_row() {
    DTYPES.into_iter().for_each(neighbours_do_not_matter);
}

fn neighbours_do_not_matter(dtype: DenseDtype) {
    for (seed, num_sms) in [(1, 1), (2, 4), (3, 132)] {
        for capability in [GENERIC, HOPPER] {
            let random = &mut Random(seed);
            let (outputs, cols) = (random.pick(&[70, 320]), 352);
            let device = &mut cuda(seed, num_sms, capability);
            let weights = random.rows(outputs, cols, 1.0);
            let linear = device.linear(dense(&[(&weights, None)]), dtype).unwrap();
            for counts in [&[1, 2, 8, 11, 27, 40, 64][..], &[513, 600, 650][..]] {
                let rows = random.rows(counts[counts.len() - 1], cols, 2.0);
                let all = project(device, &rows, &linear, outputs);
                for &count in counts {
                    // Other rows before it, and other ones after.
                    let shift = random.below(rows.len() - count + 1);
                    let some = project(device, &rows[shift..shift + count].to_vec(), &linear, outputs);
                    let same = some
                        .iter()
                        .zip(&all[shift * outputs..])
                        .all(|(some, all)| some.to_bits() == all.to_bits());
                    let what = format!("{count} of {} rows, {num_sms} processors", rows.len());
                    assert!(same, "{what}, {}", dtype.name());
                }
            }
        }
    }
}

#[test]
fn no_rows_are_no_work() {
    let device = &mut cuda(1, 4, GENERIC);
    let linear = device.linear(dense(&[(&vec![vec![1.0; 32]; 3], None)]), DenseDtype::Bf16).unwrap();
    let input = device.matrix(4, 32, Half).unwrap();
    let mut out = device.matrix(4, 3, Half).unwrap();
    device.project(&input, &linear, &mut out).unwrap();
    assert!(device.read(&out).unwrap().is_empty());
}

const ROPE: RopeParams = RopeParams { head_dim: 64, theta: 10_000.0, yarn: None };

fn limits(rows: usize) -> BatchLimits {
    BatchLimits { max_rows: rows, max_slices: rows, max_logit_rows: rows }
}

/// Logits of some rows, in any order and more than once.
#[test]
fn the_head_picks_its_rows() {
    for capability in [GENERIC, HOPPER] {
        let random = &mut Random(11);
        let counts = [(1, 1), (3, 5), (20, 8), (70, 33), (90, 64), (130, 130), (9, 0)];
        for ((num_rows, num_picked), dtype) in
            counts.into_iter().flat_map(|counts| DTYPES.map(|dtype| (counts, dtype)))
        {
            let (outputs, cols) = (random.pick(&[777, 130, 640]), random.pick(&[96, 160]));
            let device = &mut cuda(random.word(), random.pick(&SMS), capability);
            let weights = random.rows(outputs, cols, 1.0);
            let rows = random.rows(num_rows, cols, 2.0);
            let linear = device.linear(dense(&[(&weights, None)]), dtype).unwrap();
            let kv = KvShape {
                windows: Vec::new(),
                num_query_heads: 1,
                num_kv_heads: 1,
                head_dim: 64,
                dtype: KvDtype::Bf16,
                block_size: 16,
                num_full_blocks: 0,
                num_sliding_blocks: 0,
            };
            let mut batch = device.batch(limits(130), &ROPE, &kv).unwrap();
            let columns = Columns {
                tokens: vec![0; num_rows],
                positions: (0..num_rows as u32).collect(),
                slices: vec![SliceColumns {
                    rows: 0..num_rows as u32,
                    full: Table::default(),
                    sliding: Table::default(),
                }],
                logit_rows: (0..num_picked).map(|_| random.below(num_rows) as u32).collect(),
                ..Columns::default()
            };
            let samples = device.samples(1).unwrap();
            device.begin(&columns, &samples, &mut batch).unwrap();
            let input = upload(device, &rows);
            let mut logits = device.matrix(130, outputs, Full).unwrap();
            device.lm_head(&input, &linear, &batch, &mut logits).unwrap();
            let picked: Rows = columns.logit_rows.iter().map(|&row| rows[row as usize].clone()).collect();
            let weights = kept(&weights, dtype);
            let expected = reference::project(&picked, &weights, &vec![0.0; outputs]).concat();
            let what = format!("{num_picked} of {num_rows} rows of {cols} to {outputs}, {}", dtype.name());
            assert_within(&device.read(&logits).unwrap(), &expected, (0.0, 2e-6), &what);
        }
    }
}

/// A layer's projection, and the sequences of one step: the first position of
/// each and its rows.
struct Layer {
    kv: KvShape,
    dtype: DenseDtype,
    weights: Rows,
    bias: Vec<f64>,
    sequences: Vec<(usize, Rows)>,
    tables: Vec<Table>,
}

impl Layer {
    fn random(random: &mut Random, dtype: DenseDtype, sliding: bool, longest: usize) -> Self {
        let num_kv_heads = 1 + random.below(3);
        let num_query_heads = num_kv_heads * random.pick(&[1, 2, 3, 8]);
        let block_size = random.pick(&[4, 16, 64]);
        let cols = random.pick(&[32, 64, 96, 160]);
        let outputs = (num_query_heads + 2 * num_kv_heads) * 64;
        let mut order = random.order(2000);
        let mut sequence = |_| {
            // With a window of one key all that is seen is in the step.
            let first = if sliding { random.below(500) } else { 0 };
            let length = 1 + random.below(longest);
            let rows = random.rows(length, cols, 1.0);
            let first_page = (first / block_size).saturating_sub(random.below(3));
            let count = (first + rows.len()).div_ceil(block_size) - first_page;
            let pages = order.split_off(order.len() - count).into_iter().map(|page| page as u32);
            ((first, rows), Table { first: first_page as u32, pages: pages.collect() })
        };
        let (sequences, tables): (Vec<_>, Vec<_>) = (0..4).map(&mut sequence).unzip();
        Self {
            kv: KvShape {
                windows: vec![sliding.then_some(1)],
                num_query_heads,
                num_kv_heads,
                head_dim: 64,
                dtype: KvDtype::Bf16,
                block_size,
                num_full_blocks: 2000,
                num_sliding_blocks: 2000,
            },
            dtype,
            weights: random.rows(outputs, cols, 0.5),
            bias: random.row(outputs, 0.5),
            sequences,
            tables,
        }
    }

    /// Queries and contexts of some of the sequences.
    fn run<D: Device>(&self, device: &mut D, chosen: &[usize], sliding: bool) -> (Vec<f32>, Vec<f32>) {
        let rows: Rows = chosen.iter().flat_map(|&index| self.sequences[index].1.clone()).collect();
        let mut columns = Columns { tokens: vec![0; rows.len()], ..Columns::default() };
        for &index in chosen {
            let (first, own) = &self.sequences[index];
            let start = columns.positions.len() as u32;
            columns.positions.extend((*first as u32..).take(own.len()));
            let (held, none) = (self.tables[index].clone(), Table::default());
            let (full, sliding) = if sliding { (none, held) } else { (held, none) };
            columns.slices.push(SliceColumns { rows: start..start + own.len() as u32, full, sliding });
        }
        let width = self.kv.num_query_heads * 64;
        let mut cache = device.kv_cache(&self.kv).unwrap();
        let weights = device.linear(dense(&[(&self.weights, Some(&self.bias))]), self.dtype).unwrap();
        let sinks = device.sinks(to_bf16(&vec![-1.0; self.kv.num_query_heads])).unwrap();
        let mut batch = device.batch(limits(rows.len()), &ROPE, &self.kv).unwrap();
        let samples = device.samples(1).unwrap();
        let mut matrix = || device.matrix(rows.len(), width, Half).unwrap();
        let (mut queries, mut context) = (matrix(), matrix());
        device.begin(&columns, &samples, &mut batch).unwrap();
        let input = upload(device, &rows);
        device.qkv(&input, &weights, &batch, &mut cache, 0, &mut queries).unwrap();
        device.attention(&queries, &sinks, &batch, &cache, 0, &mut context).unwrap();
        (device.read(&queries).unwrap(), device.read(&context).unwrap())
    }
}

fn projections_agree_with_the_portable_device(capability: (u32, u32)) {
    for (seed, dtype) in (0..12).flat_map(|seed| DTYPES.map(|dtype| (seed, dtype))) {
        let random = &mut Random(seed);
        let sliding = seed % 2 == 1;
        let longest = [3, 12, 50, 150][seed as usize % 4];
        let layer = Layer::random(random, dtype, sliding, longest);
        let device = &mut cuda(seed, SMS[seed as usize % 3], capability);
        let (queries, context) = layer.run(device, &[0, 1, 2, 3], sliding);
        let cpu = &mut Cpu::new(NonZeroUsize::new(2)).unwrap();
        let (expected_queries, expected_context) = layer.run(cpu, &[0, 1, 2, 3], sliding);
        let exact = |values: Vec<f32>| -> Vec<f64> { values.into_iter().map(f64::from).collect() };
        let what =
            format!("seed {seed}: {:?}, {} columns, {}", layer.kv, layer.weights[0].len(), dtype.name());
        assert_close(&queries, &exact(expected_queries), &format!("queries, {what}"));
        assert_within(&context, &exact(expected_context), (0.01, 0.01), &format!("context, {what}"));
    }
}

#[test]
fn queries_keys_and_values_agree_with_the_portable_device() {
    projections_agree_with_the_portable_device(GENERIC);
}

#[test]
fn on_hopper_too() {
    projections_agree_with_the_portable_device(HOPPER);
}

/// A step of few rows, whichever sequences it has, and so one of many.
#[test]
fn queries_are_the_same_in_any_company() {
    let kinds = [(1, GENERIC), (2, HOPPER)];
    for ((seed, capability), dtype) in kinds.into_iter().flat_map(|kind| DTYPES.map(|dtype| (kind, dtype))) {
        let layer = Layer::random(&mut Random(seed), dtype, true, 15);
        let device = &mut cuda(seed, 4, capability);
        let width = layer.kv.num_query_heads * 64;
        let (all, _) = layer.run(device, &[3, 0, 1, 2], true);
        let before = layer.sequences[3].1.len() + layer.sequences[0].1.len();
        let (alone, _) = layer.run(device, &[1], true);
        let same = alone.iter().zip(&all[before * width..]).all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(same, "seed {seed}");
    }
}
