//! Queries, keys and values from weights in eight bits, against the portable
//! device: with a window of one key and sinks that weigh nothing, what attention
//! answers are the values that the pages keep.

use super::limits;
use crate::demands::Demands;
use crate::failure::{Outcome, Tolerance, close};
use crate::noise;
use crate::reference::{Random, to_bf16};
use chorale_device::Precision::Half;
use chorale_device::{Columns, Cpu, DenseDtype, DenseSource, Device, KvDtype, KvShape, SliceColumns, Table};

const BLOCK_SIZE: usize = 16;

/// Query heads, and as many heads of keys as of values: outputs by which a device
/// may choose its kernel, together with the number of rows.
const HEADS: [(usize, usize); 3] = [(1, 1), (6, 1), (6, 2)];
const ROWS: [usize; 8] = [1, 7, 12, 30, 50, 70, 130, 260];

struct Layer {
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
    hidden: usize,
    weights: DenseSource,
    rows: Vec<f32>,
}

impl Layer {
    /// Rotated queries, and values.
    fn run<D: Device>(&self, device: &mut D, demands: &Demands) -> Result<[Vec<f32>; 2], D::Error> {
        let num_rows = self.rows.len() / self.hidden;
        let num_pages = num_rows.div_ceil(BLOCK_SIZE);
        let kv = KvShape {
            windows: vec![Some(1)],
            num_query_heads: self.num_heads,
            num_kv_heads: self.num_kv_heads,
            head_dim: self.head_dim,
            dtype: KvDtype::Bf16,
            block_size: BLOCK_SIZE,
            num_full_blocks: 0,
            num_sliding_blocks: num_pages,
        };
        let mut cache = device.kv_cache(&kv)?;
        let weights = device.linear(self.weights.clone(), DenseDtype::Int8)?;
        let sinks = device.sinks(to_bf16(&vec![-1000.0; self.num_heads]))?;
        let samples = device.samples(1)?;
        let mut batch = device.batch(limits(num_rows), &demands.rope(self.head_dim), &kv)?;
        let sliding = Table { first: 0, pages: (0..num_pages as u32).rev().collect() };
        let slice = SliceColumns { rows: 0..num_rows as u32, full: Table::default(), sliding };
        let columns = Columns {
            tokens: vec![0; num_rows],
            positions: (0..num_rows as u32).collect(),
            slices: vec![slice],
            ..Columns::default()
        };
        device.begin(&columns, &samples, &mut batch)?;
        let mut input = device.matrix(num_rows, self.hidden, Half)?;
        device.write(&self.rows, &mut input)?;
        let width = self.num_heads * self.head_dim;
        let mut queries = device.matrix(num_rows, width, Half)?;
        let mut context = device.matrix(num_rows, width, Half)?;
        device.qkv(&input, &weights, &batch, &mut cache, 0, &mut queries)?;
        device.attention(&queries, &sinks, &batch, &cache, 0, &mut context)?;
        Ok([device.read(&queries)?, device.read(&context)?])
    }
}

pub(super) fn layers<D: Device>(device: &mut D, demands: &Demands) -> Outcome {
    let head_dim = *demands.head_dims.last().unwrap_or(&64);
    let random = &mut Random(demands.seed + 700);
    for (num_heads, num_kv_heads) in HEADS {
        for num_rows in ROWS {
            let hidden = demands.cols(random.pick(&[32, 96, 150]));
            let outputs = (num_heads + 2 * num_kv_heads) * head_dim;
            let layer = Layer {
                num_heads,
                num_kv_heads,
                head_dim,
                hidden,
                weights: noise::dense(random, outputs, hidden, true),
                rows: noise::activations(random, num_rows * hidden),
            };
            let mut cpu = Cpu::new(None)?;
            let (found, expected) = (layer.run(device, demands)?, layer.run(&mut cpu, demands)?);
            for (which, (found, expected)) in
                ["queries", "values"].into_iter().zip(found.iter().zip(&expected))
            {
                let expected: Vec<f64> = expected.iter().map(|&value| f64::from(value)).collect();
                // Values are rounded once more where attention answers them.
                let tolerance =
                    Tolerance { of_each: 2.0 * demands.rounding(), of_largest: demands.share(2e-6, 4e-6) };
                close(found, &expected, tolerance, || {
                    format!("{which} of {num_rows} rows of {hidden}, {num_heads} and {num_kv_heads} heads")
                })?;
            }
        }
    }
    Ok(())
}
