//! QKV with its KV write, and attention over pages: windows, sinks, any split
//! of a sequence into slices, pages in any order.

use crate::reference::{self, Random, Rows};
use crate::{ROPE, assert_close, cpu, limits};
use chorale_device::{Columns, Device, KvShape, SliceColumns, Table};
use std::ops::Range;

const HEAD_DIM: usize = 8;
const HIDDEN: usize = 24;

/// One attention layer and one sequence through it.
struct Case {
    num_heads: usize,
    num_kv_heads: usize,
    window: Option<u32>,
    block_size: usize,
    rows: Rows,
    weights: Rows,
    bias: Vec<f64>,
    sinks: Vec<f64>,
}

impl Case {
    fn random(seed: u64, length: usize) -> Self {
        let random = &mut Random(seed);
        let num_kv_heads = 1 + random.below(3);
        let num_heads = num_kv_heads * (1 + random.below(4));
        let window = [None, Some(1), Some(5), Some(16), Some(1000)][random.below(5)];
        let outputs = (num_heads + 2 * num_kv_heads) * HEAD_DIM;
        Self {
            num_heads,
            num_kv_heads,
            window,
            block_size: [1, 3, 8, 64][random.below(4)],
            rows: random.rows(length, HIDDEN, 1.0),
            weights: random.rows(outputs, HIDDEN, 0.7),
            bias: random.row(outputs, 0.5),
            sinks: random.row(num_heads, 2.0),
        }
    }

    fn expected(&self) -> Rows {
        let projected = reference::project(&self.rows, &self.weights, &self.bias);
        let head = |row: &[f64], index: usize| row[index * HEAD_DIM..][..HEAD_DIM].to_vec();
        let rotated = |position: usize, index: usize| {
            reference::rotate(&head(&projected[position], index), position as u32, ROPE.theta)
        };
        let context = |position: usize, query_head: usize| {
            let kv_head = query_head / (self.num_heads / self.num_kv_heads);
            let oldest = self.window.map_or(0, |window| (position + 1).saturating_sub(window as usize));
            let visible = oldest..position + 1;
            let keys: Rows = visible.clone().map(|p| rotated(p, self.num_heads + kv_head)).collect();
            let value = |p: usize| head(&projected[p], self.num_heads + self.num_kv_heads + kv_head);
            let values: Rows = visible.map(value).collect();
            let (keys, values): (Vec<&[f64]>, Vec<&[f64]>) =
                (keys.iter().map(Vec::as_slice).collect(), values.iter().map(Vec::as_slice).collect());
            reference::attend(&rotated(position, query_head), &keys, &values, self.sinks[query_head])
        };
        let row = |position| (0..self.num_heads).flat_map(|head| context(position, head)).collect();
        (0..self.rows.len()).map(row).collect()
    }

    /// Runs the sequence in slices; pages are taken from the pool in a shuffled
    /// order, and pages behind the window are given back and used again.
    fn run<D: Device>(&self, device: &mut D, slices: &[Range<usize>], seed: u64) -> Vec<f32> {
        let length = self.rows.len();
        let num_blocks = length.div_ceil(self.block_size) + 2;
        let shape = KvShape {
            windows: vec![self.window],
            num_kv_heads: self.num_kv_heads,
            head_dim: HEAD_DIM,
            block_size: self.block_size,
            num_full_blocks: num_blocks,
            num_sliding_blocks: num_blocks,
        };
        let mut cache = device.kv_cache(&shape).unwrap();
        let table = device.embedding(reference::dense(&[(&self.rows, None)])).unwrap();
        let weights = device.linear(reference::dense(&[(&self.weights, Some(&self.bias))])).unwrap();
        let sinks = device.sinks(reference::to_bf16(&self.sinks)).unwrap();
        let samples = device.samples(1).unwrap();
        let mut batch = device.batch(limits(length), &ROPE).unwrap();
        let width = self.num_heads * HEAD_DIM;
        let mut input = device.matrix(length, HIDDEN).unwrap();
        let (mut queries, mut context) =
            (device.matrix(length, width).unwrap(), device.matrix(length, width).unwrap());

        let random = &mut Random(seed);
        let mut free: Vec<u32> = (0..num_blocks as u32).collect();
        let mut held = Table::default();
        let mut out = Vec::new();
        for slice in slices {
            let oldest = self.window.map_or(0, |window| (slice.start + 1).saturating_sub(window as usize));
            while (held.first as usize) < oldest / self.block_size && !held.pages.is_empty() {
                free.push(held.pages.remove(0));
                held.first += 1;
            }
            while held.first as usize + held.pages.len() < slice.end.div_ceil(self.block_size) {
                let page = free.swap_remove(random.below(free.len()));
                held.pages.push(page);
            }
            let columns = Columns {
                tokens: (slice.start as u32..slice.end as u32).collect(),
                positions: (slice.start as u32..slice.end as u32).collect(),
                slices: vec![SliceColumns {
                    rows: 0..slice.len() as u32,
                    full: if self.window.is_none() { held.clone() } else { Table::default() },
                    sliding: if self.window.is_some() { held.clone() } else { Table::default() },
                }],
                ..Columns::default()
            };
            device.begin(&columns, &samples, &mut batch).unwrap();
            device.embed(&table, &batch, &mut input).unwrap();
            device.qkv(&input, &weights, &batch, &mut cache, 0, &mut queries).unwrap();
            device.attention(&queries, &sinks, &batch, &cache, 0, &mut context).unwrap();
            out.extend(device.read(&context).unwrap());
        }
        out
    }
}

fn random_slices(random: &mut Random, length: usize) -> Vec<Range<usize>> {
    let mut slices = Vec::new();
    let mut start = 0;
    while start < length {
        let end = length.min(start + 1 + random.below(9));
        slices.push(start..end);
        start = end;
    }
    slices
}

#[test]
fn attention_agrees_with_plain_loops() {
    let device = &mut cpu();
    for seed in 0..60 {
        let length = 1 + (seed as usize * 7) % 45;
        let case = Case::random(seed, length);
        let whole = case.run(device, std::slice::from_ref(&(0..length)), seed);
        assert_close(&whole, &case.expected(), 2e-5, &format!("seed {seed}"));
    }
}

#[test]
fn any_split_into_slices_and_pages_gives_the_same_bits() {
    let device = &mut cpu();
    for seed in 0..60 {
        let length = 20 + (seed as usize * 11) % 50;
        let case = Case::random(seed, length);
        let whole = case.run(device, std::slice::from_ref(&(0..length)), seed);
        let slices = random_slices(&mut Random(seed), length);
        assert_eq!(whole, case.run(device, &slices, seed + 1), "seed {seed}, {slices:?}");
    }
}
