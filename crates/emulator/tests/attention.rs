//! Attention's kernels on the emulator, against loops in f64 and the portable
//! device: every shape of heads, pages, windows and slices, and what must not
//! change a row's bits.
//!
//! Queries, keys and values are put where attention finds them by a projection
//! that changes nothing, and a rotation of numbers that are 0.

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

use chorale_cuda::{Cuda, CudaOptions};
use chorale_device::Precision::Half;
use chorale_device::{
    BatchLimits, Columns, Cpu, DenseDtype, Device, KvDtype, KvShape, RopeParams, SliceColumns, Table,
    decode_fp8_row, encode_fp8_row,
};
use chorale_emulator::{Emulator, Options};
use chorale_kbench::reference::{Random, attend, dense, to_bf16, to_f32};
use std::ops::Range;

const HEAD_DIM: usize = 64;
/// Pairs after the first two are not rotated by as much as a bit.
const ROPE: RopeParams = RopeParams { head_dim: HEAD_DIM, theta: 1e300, yarn: None };
const ROTATED: [usize; 4] = [0, 1, HEAD_DIM / 2, HEAD_DIM / 2 + 1];
const MAX_ROWS: usize = 320;
/// What keys and values are kept in.
const KINDS: [KvDtype; 2] = [KvDtype::Bf16, KvDtype::Fp8];

/// Two layers, the second with a window, and sequences whose rows follow from their positions.
#[derive(Clone, Debug)]
struct Shape {
    group: usize,
    num_kv_heads: usize,
    window: Option<u32>,
    block_size: usize,
    kv: KvDtype,
    /// The longest that each sequence gets.
    lengths: Vec<usize>,
    query_scale: f64,
    key_scale: f64,
    sinks: Vec<f64>,
    seed: u64,
    /// Pages are dealt out by this.
    page_seed: u64,
}

struct World<D: Device> {
    shape: Shape,
    device: D,
    weights: D::Linear,
    sinks: D::Sinks,
    cache: D::KvCache,
    batch: D::Batch,
    samples: D::Samples,
    input: D::Matrix,
    queries: D::Matrix,
    context: D::Matrix,
    /// Each sequence's pages.
    pages: Vec<Vec<u32>>,
}

type Slice = (usize, Range<usize>);

/// Odd seeds are Hopper's: there many rows have a kernel of their own.
fn cuda(num_sms: u32, seed: u64) -> Cuda {
    cuda_with(num_sms, seed, CudaOptions::default())
}

fn cuda_with(num_sms: u32, seed: u64, options: CudaOptions) -> Cuda {
    let capability = if seed % 2 == 1 { (9, 0) } else { (8, 0) };
    Cuda::with(Emulator::new(Options { num_sms, seed, capability, ..Options::default() }).unwrap(), options)
}

impl Shape {
    fn new(group: usize, num_kv_heads: usize, lengths: &[usize]) -> Self {
        Self {
            group,
            num_kv_heads,
            window: Some(128),
            block_size: 64,
            kv: KvDtype::Bf16,
            lengths: lengths.to_vec(),
            query_scale: 2.0,
            key_scale: 1.5,
            sinks: Random(group as u64).row(group * num_kv_heads, 2.0),
            seed: 7,
            page_seed: 1,
        }
    }

    fn num_heads(&self) -> usize {
        self.group * self.num_kv_heads
    }

    fn width(&self) -> usize {
        (self.num_heads() + 2 * self.num_kv_heads) * HEAD_DIM
    }

    fn windows(&self) -> Vec<Option<u32>> {
        std::iter::once(None).chain(self.window.map(Some)).collect()
    }

    /// A row's queries, keys and values.
    fn row(&self, sequence: usize, position: usize) -> Vec<f64> {
        let random = &mut Random(self.seed + ((sequence as u64) << 40) + position as u64 * 1000);
        let mut row = random.row(self.num_heads() * HEAD_DIM, self.query_scale);
        row.extend(random.row(self.num_kv_heads * HEAD_DIM, self.key_scale));
        for head in row.chunks_exact_mut(HEAD_DIM) {
            ROTATED.iter().for_each(|&dim| head[dim] = 0.0);
        }
        row.extend(random.row(self.num_kv_heads * HEAD_DIM, 1.0));
        row
    }

    /// The same with keys and values as pages keep them.
    fn kept_row(&self, sequence: usize, position: usize) -> Vec<f64> {
        let mut row = self.row(sequence, position);
        for head in row[self.num_heads() * HEAD_DIM..].chunks_exact_mut(HEAD_DIM) {
            keep(head, self.kv);
        }
        row
    }

    fn oldest(position: usize, window: Option<u32>) -> usize {
        window.map_or(0, |window| (position + 1).saturating_sub(window as usize))
    }

    /// The context of rows of a sequence.
    fn expected(&self, (sequence, positions): &Slice, window: Option<u32>) -> Vec<f64> {
        let first = Self::oldest(positions.start, window);
        let rows: Vec<Vec<f64>> = (first..positions.end).map(|at| self.kept_row(*sequence, at)).collect();
        let mut context = Vec::new();
        for position in positions.clone() {
            for head in 0..self.num_heads() {
                let visible = &rows[Self::oldest(position, window) - first..=position - first];
                let part = |index: usize| -> Vec<&[f64]> {
                    visible.iter().map(|row| &row[index * HEAD_DIM..][..HEAD_DIM]).collect()
                };
                let kv_head = self.num_heads() + head / self.group;
                let query = &rows[position - first][head * HEAD_DIM..][..HEAD_DIM];
                let (keys, values) = (part(kv_head), part(kv_head + self.num_kv_heads));
                context.extend(attend(query, &keys, &values, self.sinks[head]));
            }
        }
        context
    }
}

impl<D: Device> World<D> {
    fn new(shape: &Shape, mut device: D) -> Self {
        let pages_of = |length: &usize| length.div_ceil(shape.block_size);
        let num_blocks = shape.lengths.iter().map(pages_of).sum::<usize>() + 3;
        let kv = KvShape {
            windows: shape.windows(),
            num_query_heads: shape.num_heads(),
            num_kv_heads: shape.num_kv_heads,
            head_dim: HEAD_DIM,
            dtype: shape.kv,
            block_size: shape.block_size,
            num_full_blocks: num_blocks,
            num_sliding_blocks: num_blocks,
        };
        let mut order = Random(shape.page_seed).order(num_blocks).into_iter().map(|page| page as u32);
        let pages =
            shape.lengths.iter().map(|length| order.by_ref().take(pages_of(length)).collect()).collect();
        let width = shape.width();
        let unit = |one: usize| (0..width).map(|at| f64::from(u8::from(at == one))).collect();
        let identity: Vec<Vec<f64>> = (0..width).map(unit).collect();
        let limits = BatchLimits { max_rows: MAX_ROWS, max_slices: 64, max_logit_rows: 1 };
        let query_width = shape.num_heads() * HEAD_DIM;
        Self {
            weights: device.linear(dense(&[(&identity, None)]), DenseDtype::Bf16).unwrap(),
            sinks: device.sinks(to_bf16(&shape.sinks)).unwrap(),
            cache: device.kv_cache(&kv).unwrap(),
            batch: device.batch(limits, &ROPE, &kv).unwrap(),
            samples: device.samples(1).unwrap(),
            input: device.matrix(MAX_ROWS, width, Half).unwrap(),
            queries: device.matrix(MAX_ROWS, query_width, Half).unwrap(),
            context: device.matrix(MAX_ROWS, query_width, Half).unwrap(),
            shape: shape.clone(),
            device,
            pages,
        }
    }

    fn table(&self, (sequence, positions): &Slice, window: Option<u32>) -> Table {
        let first = Shape::oldest(positions.start, window) / self.shape.block_size;
        let end = positions.end.div_ceil(self.shape.block_size);
        Table { first: first as u32, pages: self.pages[*sequence][first..end].to_vec() }
    }

    fn begin(&mut self, slices: &[Slice]) {
        let mut columns = Columns::default();
        let mut rows = Vec::new();
        for slice in slices {
            let first = columns.tokens.len() as u32;
            columns.tokens.extend(slice.1.clone().map(|_| 0));
            columns.positions.extend(slice.1.clone().map(|position| position as u32));
            columns.slices.push(SliceColumns {
                rows: first..columns.tokens.len() as u32,
                full: self.table(slice, None),
                sliding: self.shape.window.map_or(Table::default(), |window| self.table(slice, Some(window))),
            });
            rows.extend(slice.1.clone().map(|position| self.shape.row(slice.0, position)));
        }
        self.device.begin(&columns, &self.samples, &mut self.batch).unwrap();
        self.device.write(&to_f32(&rows), &mut self.input).unwrap();
    }

    fn qkv(&mut self, layer: usize) {
        let Self { device, input, weights, batch, cache, queries, .. } = self;
        device.qkv(input, weights, batch, cache, layer, queries).unwrap();
    }

    /// Puts a sequence's first keys and values into its pages.
    fn fill(&mut self, sequence: usize, end: usize) {
        for start in (0..end).step_by(MAX_ROWS) {
            self.begin(&[(sequence, start..end.min(start + MAX_ROWS))]);
            (0..self.shape.windows().len()).for_each(|layer| self.qkv(layer));
        }
    }

    /// One step: of each layer, each slice's context.
    fn step(&mut self, slices: &[Slice]) -> Vec<Vec<Vec<f32>>> {
        self.begin(slices);
        let layers = 0..self.shape.windows().len();
        let contexts = layers.map(|layer| {
            self.qkv(layer);
            let Self { device, sinks, batch, cache, queries, context, .. } = self;
            device.attention(queries, sinks, batch, cache, layer, context).unwrap();
            let context = device.read(context).unwrap();
            let mut rest = context.as_slice();
            let split = slices.iter().map(|(_, positions)| {
                let (slice, after) = rest.split_at(positions.len() * self.shape.num_heads() * HEAD_DIM);
                rest = after;
                slice.to_vec()
            });
            split.collect()
        });
        contexts.collect()
    }

    /// One step, compared with loops.
    fn check(&mut self, slices: &[Slice]) {
        let contexts = self.step(slices);
        for (window, contexts) in self.shape.windows().into_iter().zip(contexts) {
            for (slice, context) in slices.iter().zip(contexts) {
                let what = format!("{slice:?} of {slices:?}, window {window:?}, {:?}", self.shape);
                assert_close(&context, &self.shape.expected(slice, window), &what);
            }
        }
    }
}

/// The smaller keys are, the larger queries: scores stay.
#[test]
fn exponents_of_keys_reach_scores() {
    for (index, power) in [-99, -60, 9, 15, 60, 90].into_iter().enumerate() {
        let scale = 2f64.powi(power);
        let (query_scale, key_scale) = (2.0 / scale, 1.5 * scale);
        let shape = Shape { query_scale, key_scale, kv: KvDtype::Fp8, ..Shape::new(4, 2, &[400, 70]) };
        let mut world = World::new(&shape, cuda(2, 30 + index as u64));
        world.fill(0, 330);
        world.check(&[(0, 330..400), (1, 0..70)]);
        world.check(&[(0, 399..400), (1, 68..70)]);
    }
}

/// A head's key or value, exact in bf16, as pages keep it.
fn keep(head: &mut [f64], kv: KvDtype) {
    if kv != KvDtype::Fp8 {
        return;
    }
    let values: Vec<f32> = head.iter().map(|&value| value as f32).collect();
    let (mut codes, mut decoded) = ([0; HEAD_DIM], [0.0; HEAD_DIM]);
    let exponent = encode_fp8_row(&values, &mut codes);
    decode_fp8_row(&codes, exponent, &mut decoded);
    head.iter_mut().zip(decoded).for_each(|(value, kept)| *value = f64::from(kept));
}

/// Weights are rounded to bf16 before they meet the values, of at most 1, and so is the sum.
fn assert_close(found: &[f32], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (index, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(found) - expected).abs();
        assert!(error < 4e-3, "{what}: value {index} is {found}, not {expected}");
    }
}

#[test]
fn any_heads_windows_pages_and_slices() {
    let random = &mut Random(1);
    for (group, num_kv_heads) in [(1, 2), (2, 1), (3, 2), (8, 1), (16, 1), (5, 1)] {
        for (window, kv) in
            [None, Some(1), Some(5), Some(128)].into_iter().flat_map(|window| KINDS.map(|kv| (window, kv)))
        {
            let count = 1 + random.below(4);
            let starts: Vec<usize> =
                (0..count).map(|_| random.pick(&[0, 1, 63, 64, 127, 128, 200])).collect();
            let rows: Vec<usize> =
                (0..count).map(|_| random.pick(&[1, 1, 2, 3, 15, 16, 17, 64, 65])).collect();
            let lengths: Vec<usize> = starts.iter().zip(&rows).map(|(start, rows)| start + rows).collect();
            let block_size = random.pick(&[1, 4, 16, 64, 256]);
            let seed = random.word();
            let base = Shape::new(group, num_kv_heads, &lengths);
            let shape = Shape { window, block_size, kv, seed, page_seed: seed, ..base };
            let mut world = World::new(&shape, cuda(1 + random.below(3) as u32, seed));
            (0..count).for_each(|sequence| world.fill(sequence, starts[sequence]));
            let slices: Vec<Slice> = (0..count).map(|i| (i, starts[i]..lengths[i])).collect();
            world.check(&slices);
        }
    }
}

#[test]
fn one_token_at_each_length() {
    KINDS.into_iter().for_each(one_token_at_each_length_of);
}

fn one_token_at_each_length_of(kv: KvDtype) {
    let shape = Shape { block_size: 16, kv, ..Shape::new(8, 1, &[300; 4]) };
    let mut world = World::new(&shape, cuda(2, 3));
    // Beyond what is written there is nothing that is a number.
    for length in 1..=75 {
        let slices: Vec<Slice> = (0..4).map(|sequence| (sequence, length - 1..length)).collect();
        if length % 5 == 0 || length % 16 < 2 {
            world.check(&slices);
        } else {
            world.begin(&slices);
            (0..2).for_each(|layer| world.qkv(layer));
        }
    }
    world.fill(0, 300);
    for length in [127, 128, 129, 130, 191, 192, 193, 255, 256, 257, 258, 300] {
        world.check(&[(0, length - 1..length)]);
    }
}

#[test]
fn long_contexts_are_split_among_blocks() {
    for (seed, kv) in [(3, KvDtype::Bf16), (4, KvDtype::Bf16), (5, KvDtype::Fp8), (6, KvDtype::Fp8)] {
        let shape = Shape { window: Some(600), kv, ..Shape::new(8, 1, &[4700, 2700]) };
        let mut world = World::new(&shape, cuda(3, seed));
        world.fill(0, 4700);
        world.fill(1, 2600);
        world.check(&[(0, 4699..4700), (1, 2598..2600), (0, 256..257), (0, 255..256)]);
        world.check(&[(1, 511..513), (0, 4095..4096), (0, 1023..1024), (0, 4096..4097), (1, 1500..1501)]);
        // A few rows too many for one kernel, and too few to keep the other busy.
        world.check(&[(0, 4680..4683), (1, 2600..2617)]);
        world.check(&[(1, 2617..2618), (0, 3000..3001)]);
    }
}

#[test]
fn rows_do_not_depend_on_company_pages_or_processors() {
    KINDS.into_iter().for_each(rows_do_not_depend_on_company);
}

fn rows_do_not_depend_on_company(kv: KvDtype) {
    let shape = Shape { kv, ..Shape::new(8, 1, &[2200, 700, 90]) };
    let slices: [Slice; 5] = [(0, 2150..2151), (1, 600..660), (2, 20..90), (0, 2151..2171), (1, 660..662)];
    let fill = |world: &mut World<Cuda>| {
        world.fill(0, 2171);
        world.fill(1, 662);
        world.fill(2, 90);
    };
    for generation in [0, 1] {
        let mut first = World::new(&shape, cuda(3, 20 + generation));
        fill(&mut first);
        let alone: Vec<Vec<Vec<f32>>> = slices
            .iter()
            .map(|slice| {
                first.step(std::slice::from_ref(slice)).into_iter().map(|mut of| of.remove(0)).collect()
            })
            .collect();
        for (num_sms, seed, block_size) in [(2, 30, 64), (40, 32, 1), (1, 34, 256), (5, 36, 16)] {
            let seed = seed + generation;
            let shape = Shape { page_seed: seed, block_size, ..shape.clone() };
            let mut world = World::new(&shape, cuda(num_sms, seed));
            fill(&mut world);
            let random = &mut Random(seed);
            let order = random.order(slices.len());
            let together: Vec<Slice> = order.iter().map(|&index| slices[index].clone()).collect();
            for (layer, contexts) in world.step(&together).into_iter().enumerate() {
                for (&index, context) in order.iter().zip(contexts) {
                    assert!(context == alone[index][layer], "{:?} among {together:?}", slices[index]);
                }
            }
        }
    }
}

#[test]
fn pieces_are_close_to_the_whole() {
    KINDS.into_iter().for_each(pieces_are_close);
}

fn pieces_are_close(kv: KvDtype) {
    let shape = Shape { kv, ..Shape::new(8, 1, &[230]) };
    let mut world = World::new(&shape, cuda(2, 6));
    let whole = world.step(&[(0, 0..230)]);
    for (seed, pieces) in [(7, vec![0, 1, 3, 20, 147, 230]), (8, vec![0, 128, 129, 229, 230])] {
        let mut world = World::new(&shape, cuda(2, seed));
        let mut contexts = vec![Vec::new(); 2];
        for piece in pieces.windows(2) {
            for (all, mut context) in contexts.iter_mut().zip(world.step(&[(0, piece[0]..piece[1])])) {
                all.append(&mut context[0]);
            }
        }
        for (contexts, whole) in contexts.iter().zip(&whole) {
            let whole: Vec<f64> = whole[0].iter().map(|&value| f64::from(value)).collect();
            assert_close(contexts, &whole, "in pieces");
        }
    }
}

#[test]
fn scores_and_sinks_of_any_size() {
    for (query_scale, sinks) in [
        (0.0, vec![0.0; 8]),
        (0.0, vec![-1e30, -100.0, -10.0, 0.0, 10.0, 100.0, 1000.0, 1e30]),
        (500.0, vec![-1e30, -1000.0, 0.0, 10.0, 1000.0, 2000.0, 2000.0, 1e30]),
        (1e6, vec![0.0; 8]),
    ] {
        for (seed, kv) in [(9, KvDtype::Bf16), (10, KvDtype::Bf16), (11, KvDtype::Fp8), (12, KvDtype::Fp8)] {
            let sinks = sinks.clone();
            let shape = Shape { query_scale, sinks, kv, ..Shape::new(8, 1, &[700, 150]) };
            let mut world = World::new(&shape, cuda(2, seed));
            world.fill(0, 699);
            world.check(&[(0, 699..700), (1, 0..150), (0, 3..4)]);
        }
    }
}

#[test]
fn the_portable_device_agrees() {
    KINDS.into_iter().for_each(portable_agrees);
}

fn portable_agrees(kv: KvDtype) {
    let shape = Shape { block_size: 16, kv, ..Shape::new(4, 2, &[180, 70]) };
    let mut cpu = World::new(&shape, Cpu::new(std::num::NonZeroUsize::new(2)).unwrap());
    let mut cuda = World::new(&shape, cuda(2, 9));
    for slices in [vec![(0, 0..150)], vec![(1, 0..69), (0, 150..170)], vec![(0, 170..171), (1, 69..70)]] {
        let expected = cpu.step(&slices);
        for (found, expected) in cuda.step(&slices).concat().iter().zip(expected.concat()) {
            let expected: Vec<f64> = expected.iter().map(|&value| f64::from(value)).collect();
            assert_close(found, &expected, &format!("{slices:?}"));
        }
    }
}

/// Across the ends of tiles, of windows, and of the first two splits.
#[test]
fn invariant_rows_do_not_depend_on_slices() {
    for (seed, kv) in [(40, KvDtype::Bf16), (41, KvDtype::Bf16), (42, KvDtype::Fp8), (43, KvDtype::Fp8)] {
        let options = CudaOptions { batch_invariant: true, ..CudaOptions::default() };
        let shape = Shape { kv, block_size: 16, ..Shape::new(8, 1, &[1050]) };
        let mut world = World::new(&shape, cuda_with(2, seed, options));
        world.fill(0, 1000);
        for pieces in [[490, 491, 509, 513, 514, 560], [1000, 1023, 1024, 1026, 1042, 1050]] {
            let whole = world.step(&[(0, pieces[0]..pieces[5])]);
            world.check(&[(0, pieces[2]..pieces[3])]);
            let mut found = vec![vec![Vec::new()]; 2];
            for piece in pieces.windows(2) {
                for (found, mut context) in found.iter_mut().zip(world.step(&[(0, piece[0]..piece[1])])) {
                    found[0].append(&mut context[0]);
                }
            }
            assert!(found == whole, "{pieces:?} of {kv:?}, seed {seed}");
        }
    }
}

/// With little room for partial results: each of the tiles that have any has a round of its own.
#[test]
fn rounds_give_what_one_launch_gives() {
    let slices: [Slice; 5] = [(0, 699..700), (1, 560..600), (2, 1298..1300), (0, 300..301), (1, 5..6)];
    for (seed, batch_invariant) in [(50, false), (51, false), (50, true), (51, true)] {
        let shape = Shape::new(8, 1, &[700, 600, 1300]);
        let contexts = [1 << 19, 20].map(|partial_rows_max| {
            let options = CudaOptions { batch_invariant, partial_rows_max, ..CudaOptions::default() };
            let mut world = World::new(&shape, cuda_with(2, seed, options));
            [700, 600, 1300].into_iter().enumerate().for_each(|(sequence, end)| world.fill(sequence, end));
            world.check(&slices);
            world.step(&slices)
        });
        assert!(contexts[0] == contexts[1], "seed {seed}, batch-invariant: {batch_invariant}");
    }
}
