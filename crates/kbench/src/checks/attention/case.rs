//! One random layer of attention with its sequences, what it must give, and
//! how a device is taken through it.

use super::source;
use crate::checks::limits;
use crate::demands::Demands;
use crate::failure::Failure;
use crate::reference::{self, Random, Rows, to_bf16, to_f32};
use chorale_device::Precision::Half;
use chorale_device::{Columns, DenseDtype, Device, KvDtype, KvShape, SliceColumns, Table};
use std::ops::Range;

/// How an attention layer is built.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) num_heads: usize,
    pub(super) num_kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) window: Option<u32>,
    pub(super) block_size: usize,
    /// What keys and values are kept in, or the device's first choice.
    pub(super) kv: Option<KvDtype>,
}

/// A layer and the rows of some sequences before it.
pub(super) struct Case {
    pub(super) shape: Shape,
    pub(super) weights: Rows,
    pub(super) bias: Vec<f64>,
    pub(super) sinks: Vec<f64>,
    sequences: Vec<Sequence>,
}

struct Sequence {
    rows: Rows,
    /// Before rotation: queries, keys and values.
    projected: Rows,
}

/// A slice of a sequence within a step.
#[derive(Clone, Debug)]
pub(super) struct Work {
    pub(super) sequence: usize,
    pub(super) slice: Range<usize>,
}

impl Shape {
    pub(super) fn random(random: &mut Random, demands: &Demands) -> Self {
        let num_kv_heads = 1 + random.below(3);
        Self {
            num_heads: num_kv_heads * random.pick(&[1, 2, 3, 4, 5, 8, 16]),
            num_kv_heads,
            head_dim: random.pick(demands.head_dims),
            window: random.pick(&[None, None, Some(1), Some(5), Some(16), Some(1000)]),
            block_size: random.pick(demands.block_sizes),
            kv: None,
        }
    }

    pub(super) fn query_rows(&self) -> usize {
        self.num_heads * self.head_dim
    }

    pub(super) fn kv_rows(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    fn kv_shape<D: Device>(&self, num_blocks: usize) -> KvShape {
        KvShape {
            windows: vec![self.window],
            num_query_heads: self.num_heads,
            num_kv_heads: self.num_kv_heads,
            head_dim: self.head_dim,
            dtype: self.kv.unwrap_or(D::KV_DTYPES[0]),
            block_size: self.block_size,
            num_full_blocks: num_blocks,
            num_sliding_blocks: num_blocks,
        }
    }

    /// The oldest position that a query at `position` sees.
    fn oldest(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window as usize))
    }

    fn slice(&self, rows: Range<u32>, held: &Table) -> SliceColumns {
        let (full, sliding) = match self.window {
            None => (held.clone(), Table::default()),
            Some(_) => (Table::default(), held.clone()),
        };
        SliceColumns { rows, full, sliding }
    }
}

/// The nearest sixteenth.
fn sixteenths(value: f64) -> f64 {
    (value * 16.0).round() / 16.0
}

impl Case {
    pub(super) fn random(random: &mut Random, demands: &Demands, shape: Shape, lengths: &[usize]) -> Self {
        let hidden = demands.cols(24);
        let outputs = shape.query_rows() + 2 * shape.kv_rows();
        // FP8 is so coarse that a sum's last bit may decide between two numbers far
        // apart: then sums are exact in any order.
        let coarse = |rows: Rows| match shape.kv {
            Some(KvDtype::Fp8) => {
                rows.into_iter().map(|row| row.into_iter().map(sixteenths).collect()).collect()
            }
            _ => rows,
        };
        let weights = coarse(random.rows(outputs, hidden, 0.6));
        let bias = coarse(vec![random.row(outputs, 0.5)]).concat();
        let sinks = random.row(shape.num_heads, 2.0);
        let sequences = lengths.iter().map(|&length| {
            let rows = coarse(random.rows(length, hidden, 1.0));
            Sequence { projected: reference::project(&rows, &weights, &bias), rows }
        });
        let sequences = sequences.collect();
        Self { shape, weights, bias, sinks, sequences }
    }

    /// One sequence whose values are given for each row, all heads' the same, and
    /// whose queries and keys are 0.
    pub(super) fn of_values(
        random: &mut Random,
        demands: &Demands,
        shape: Shape,
        length: usize,
        mut values: impl FnMut(&mut Random, usize) -> Vec<f64>,
    ) -> Self {
        let hidden = demands.cols(shape.head_dim);
        let first = shape.query_rows() + shape.kv_rows();
        let outputs = first + shape.kv_rows();
        let weight = |output: usize, col: usize| {
            f64::from(u8::from(output >= first && (output - first) % shape.head_dim == col))
        };
        let weights: Rows =
            (0..outputs).map(|output| (0..hidden).map(|col| weight(output, col)).collect()).collect();
        let mut row = |index| {
            let mut row = values(random, index);
            row.resize(hidden, 0.0);
            row
        };
        let rows: Rows = (0..length).map(&mut row).collect();
        let bias = vec![0.0; outputs];
        let sinks = vec![-1000.0; shape.num_heads];
        let projected = reference::project(&rows, &weights, &bias);
        Self { shape, weights, bias, sinks, sequences: vec![Sequence { projected, rows }] }
    }

    /// One row's rotated queries.
    pub(super) fn query(&self, demands: &Demands, sequence: usize, row: usize, position: u32) -> Vec<f64> {
        let rope = demands.rope(self.shape.head_dim);
        let heads = self.sequences[sequence].projected[row].chunks(self.shape.head_dim);
        let heads = heads.take(self.shape.num_heads);
        heads.flat_map(|head| reference::rotate(head, position, &rope)).collect()
    }

    /// The contexts of all rows of a sequence. What pages keep is rounded, and
    /// so are queries.
    pub(super) fn expected(&self, demands: &Demands, sequence: usize) -> Vec<f64> {
        let Shape { num_heads, num_kv_heads, head_dim, .. } = self.shape;
        let rope = demands.rope(head_dim);
        let projected = &self.sequences[sequence].projected;
        let head = |position: usize, index: usize| &projected[position][index * head_dim..][..head_dim];
        let round = |values: Vec<f64>| -> Vec<f64> { values.into_iter().map(|v| demands.round(v)).collect() };
        let keep = |values: Vec<f64>| match self.shape.kv {
            Some(KvDtype::Fp8) => reference::kept_fp8(&values),
            _ => round(values),
        };
        let rotated = |index: usize| -> Rows {
            let rotate = |position| reference::rotate(head(position, index), position as u32, &rope);
            (0..projected.len()).map(rotate).collect()
        };
        let mut context = vec![0.0; projected.len() * num_heads * head_dim];
        for kv_head in 0..num_kv_heads {
            let keys: Rows = rotated(num_heads + kv_head).into_iter().map(keep).collect();
            let value = |position| keep(head(position, num_heads + num_kv_heads + kv_head).to_vec());
            let values: Rows = (0..projected.len()).map(value).collect();
            let heads_each = num_heads / num_kv_heads;
            for query_head in kv_head * heads_each..(kv_head + 1) * heads_each {
                for (position, query) in rotated(query_head).into_iter().map(round).enumerate() {
                    let visible = self.shape.oldest(position)..position + 1;
                    let keys: Vec<&[f64]> = keys[visible.clone()].iter().map(Vec::as_slice).collect();
                    let values: Vec<&[f64]> = values[visible].iter().map(Vec::as_slice).collect();
                    let out = reference::attend(&query, &keys, &values, self.sinks[query_head]);
                    context[(position * num_heads + query_head) * head_dim..][..head_dim]
                        .copy_from_slice(&out);
                }
            }
        }
        context
    }

    /// The queries of the first sequence's rows, as if they stood at `first` and after.
    pub(super) fn queries<D: Device>(
        &self,
        device: &mut D,
        demands: &Demands,
        first: usize,
    ) -> Result<Vec<f32>, Failure> {
        let shape = self.shape;
        let rows = &self.sequences[0].rows;
        let pages = shape.oldest(first) / shape.block_size..(first + rows.len()).div_ceil(shape.block_size);
        let kv = shape.kv_shape::<D>(pages.len());
        let mut cache = device.kv_cache(&kv)?;
        let weights = device.linear(source(self), DenseDtype::Bf16)?;
        let samples = device.samples(1)?;
        let mut batch = device.batch(limits(rows.len()), &demands.rope(shape.head_dim), &kv)?;
        let mut input = device.matrix(rows.len(), rows[0].len(), Half)?;
        let mut queries = device.matrix(rows.len(), shape.query_rows(), Half)?;
        let held = Table { first: pages.start as u32, pages: (0..pages.len() as u32).rev().collect() };
        let columns = Columns {
            tokens: vec![0; rows.len()],
            positions: (first as u32..).take(rows.len()).collect(),
            slices: vec![shape.slice(0..rows.len() as u32, &held)],
            ..Columns::default()
        };
        device.begin(&columns, &samples, &mut batch)?;
        device.write(&to_f32(rows), &mut input)?;
        device.qkv(&input, &weights, &batch, &mut cache, 0, &mut queries)?;
        Ok(device.read(&queries)?)
    }

    /// Each sequence's contexts, computed step by step; pages are taken from the
    /// pool in a shuffled order, and those behind the window are given back and
    /// used again.
    pub(super) fn run<D: Device>(
        &self,
        device: &mut D,
        demands: &Demands,
        steps: &[Vec<Work>],
        seed: u64,
    ) -> Result<Vec<Vec<f32>>, Failure> {
        let shape = self.shape;
        let width = shape.query_rows();
        let pages_of = |sequence: &Sequence| sequence.rows.len().div_ceil(shape.block_size) + 2;
        let num_blocks = self.sequences.iter().map(pages_of).sum();
        let num_rows = |step: &Vec<Work>| step.iter().map(|work| work.slice.len()).sum();
        let max_rows: usize = steps.iter().map(num_rows).max().unwrap_or(0);
        let kv = shape.kv_shape::<D>(num_blocks);
        let mut cache = device.kv_cache(&kv)?;
        let weights = device.linear(source(self), DenseDtype::Bf16)?;
        let sinks = device.sinks(to_bf16(&self.sinks))?;
        let samples = device.samples(1)?;
        let mut batch = device.batch(limits(max_rows), &demands.rope(shape.head_dim), &kv)?;
        let mut input = device.matrix(max_rows, self.weights[0].len(), Half)?;
        let (mut queries, mut context) =
            (device.matrix(max_rows, width, Half)?, device.matrix(max_rows, width, Half)?);

        let random = &mut Random(seed);
        let mut free: Vec<u32> = (0..num_blocks as u32).collect();
        let mut tables = vec![Table::default(); self.sequences.len()];
        let mut out = vec![Vec::new(); self.sequences.len()];
        for step in steps {
            let mut columns = Columns::default();
            let mut rows = Vec::new();
            for Work { sequence, slice } in step {
                let held = &mut tables[*sequence];
                let oldest_page = shape.oldest(slice.start) / shape.block_size;
                while (held.first as usize) < oldest_page && !held.pages.is_empty() {
                    free.push(held.pages.remove(0));
                    held.first += 1;
                }
                while held.first as usize + held.pages.len() < slice.end.div_ceil(shape.block_size) {
                    held.pages.push(free.swap_remove(random.below(free.len())));
                }
                let first = columns.tokens.len() as u32;
                columns.tokens.extend(slice.clone().map(|_| 0));
                columns.positions.extend(slice.start as u32..slice.end as u32);
                columns.slices.push(shape.slice(first..columns.tokens.len() as u32, held));
                rows.extend_from_slice(&self.sequences[*sequence].rows[slice.clone()]);
            }
            device.begin(&columns, &samples, &mut batch)?;
            device.write(&to_f32(&rows), &mut input)?;
            device.qkv(&input, &weights, &batch, &mut cache, 0, &mut queries)?;
            device.attention(&queries, &sinks, &batch, &cache, 0, &mut context)?;
            let found = device.read(&context)?;
            let mut next = 0;
            for Work { sequence, slice } in step {
                let end = (next + slice.len() * width).min(found.len());
                out[*sequence].extend_from_slice(&found[next.min(end)..end]);
                next = end;
            }
        }
        Ok(out)
    }
}
