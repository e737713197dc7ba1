//! A whole layer, composed as the model does it, against the portable device.

use super::limits;
use super::portable::alike;
use crate::demands::Demands;
use crate::failure::{Failure, Outcome, Tolerance, close};
use crate::noise;
use crate::reference::Random;
use chorale_device::Precision::{Full, Half};
use chorale_device::{
    Columns, Cpu, DenseDtype, DenseSource, Device, ExpertsSource, KvDtype, KvShape, Routed, SliceColumns,
    Table,
};
use std::ops::Range;

const HEAD_DIM: usize = 64;
const BLOCK_SIZE: usize = 16;
const TOP_K: usize = 4;
/// Of each sequence, at once in the first step, then one by one.
const PROMPTS: [usize; 3] = [70, 1, 33];
const NUM_STEPS: usize = 3;

struct Layer {
    hidden: usize,
    num_heads: usize,
    num_kv_heads: usize,
    num_experts: usize,
    window: Option<u32>,
    gain: bytes::Bytes,
    sinks: bytes::Bytes,
    qkv: DenseSource,
    output: DenseSource,
    router: DenseSource,
    experts: ExpertsSource,
    /// Of all positions of all sequences.
    rows: Vec<Vec<f32>>,
}

/// What a step leaves.
struct Left {
    attended: Vec<f32>,
    routes: Vec<Vec<Routed>>,
    hidden: Vec<f32>,
    normed: Vec<f32>,
}

impl Layer {
    fn new(random: &mut Random, (hidden, num_heads): (usize, usize), window: Option<u32>) -> Self {
        let num_kv_heads = num_heads.div_ceil(8);
        let (num_experts, intermediate) = (hidden / 20, hidden);
        let width = num_heads * HEAD_DIM;
        let rows = PROMPTS.map(|length| noise::activations(random, (length + NUM_STEPS) * hidden));
        Self {
            hidden,
            num_heads,
            num_kv_heads,
            num_experts,
            window,
            gain: [0x80u8, 0x3f].repeat(hidden).into(),
            sinks: noise::bf16(random, num_heads),
            qkv: noise::dense(random, width + 2 * num_kv_heads * HEAD_DIM, hidden, true),
            output: noise::dense(random, hidden, width, true),
            router: noise::dense(random, num_experts, hidden, true),
            experts: noise::experts(random, num_experts, hidden, intermediate),
            rows: rows.into(),
        }
    }

    /// Positions of each sequence in a step.
    fn positions(step: usize) -> [Range<usize>; 3] {
        PROMPTS.map(|length| if step == 0 { 0..length } else { length + step - 1..length + step })
    }

    fn run<D: Device>(&self, device: &mut D, demands: &Demands) -> Result<Vec<Left>, D::Error> {
        let hidden_size = self.hidden;
        let pages_each = (PROMPTS[0] + NUM_STEPS).div_ceil(BLOCK_SIZE);
        let kv = KvShape {
            windows: vec![self.window],
            num_query_heads: self.num_heads,
            num_kv_heads: self.num_kv_heads,
            head_dim: HEAD_DIM,
            dtype: KvDtype::Bf16,
            block_size: BLOCK_SIZE,
            num_full_blocks: PROMPTS.len() * pages_each,
            num_sliding_blocks: PROMPTS.len() * pages_each,
        };
        let max_rows: usize = PROMPTS.iter().sum();
        let rope = demands.rope(HEAD_DIM);
        let (qkv, output) = (
            device.linear(self.qkv.clone(), DenseDtype::Bf16)?,
            device.linear(self.output.clone(), DenseDtype::Bf16)?,
        );
        let router = device.linear(self.router.clone(), DenseDtype::Bf16)?;
        let experts = device.experts(self.experts.clone())?;
        let norm = device.norm(self.gain.clone(), 1e-5)?;
        let sinks = device.sinks(self.sinks.clone())?;
        let mut cache = device.kv_cache(&kv)?;
        let mut batch = device.batch(limits(max_rows), &rope, &kv)?;
        let samples = device.samples(1)?;
        let mut hidden = device.matrix(max_rows, hidden_size, Full)?;
        let mut half = |rows: usize, cols| device.matrix(rows, cols, Half);
        let (mut normed, mut projected) = (half(max_rows, hidden_size)?, half(max_rows, hidden_size)?);
        let width = self.num_heads * HEAD_DIM;
        let (mut queries, mut context) = (half(max_rows, width)?, half(max_rows, width)?);
        let mut outputs = half(max_rows * TOP_K, hidden_size)?;
        let mut routing = device.routing(max_rows, TOP_K)?;
        let mut groups = device.groups(&(0..self.num_experts as u32).collect::<Vec<u32>>())?;
        let mut left = Vec::new();
        for step in 0..=NUM_STEPS {
            let mut columns = Columns::default();
            let mut values = Vec::new();
            for (sequence, positions) in Self::positions(step).into_iter().enumerate() {
                let first = columns.tokens.len() as u32;
                columns.tokens.extend(positions.clone().map(|_| 0));
                columns.positions.extend(positions.start as u32..positions.end as u32);
                let first_page = (sequence * pages_each) as u32;
                let held = positions.end.div_ceil(BLOCK_SIZE) as u32;
                let table = Table { first: 0, pages: (first_page..first_page + held).collect() };
                columns.slices.push(SliceColumns {
                    rows: first..columns.tokens.len() as u32,
                    full: table.clone(),
                    sliding: table,
                });
                let rows = &self.rows[sequence];
                values.extend_from_slice(&rows[positions.start * hidden_size..positions.end * hidden_size]);
            }
            device.begin(&columns, &samples, &mut batch)?;
            device.write(&values, &mut hidden)?;
            device.rms_norm(&hidden, &norm, &mut normed)?;
            device.qkv(&normed, &qkv, &batch, &mut cache, 0, &mut queries)?;
            device.attention(&queries, &sinks, &batch, &cache, 0, &mut context)?;
            device.project(&context, &output, &mut projected)?;
            device.add_rms_norm(&projected, &norm, &mut hidden, &mut normed)?;
            let attended = device.read(&hidden)?;
            device.route(&normed, &router, &mut routing)?;
            device.group(&routing, &mut groups)?;
            device.run_experts(&normed, &groups, &experts, &mut outputs)?;
            device.combine_rms_norm(&outputs, &routing, &norm, &mut hidden, &mut normed)?;
            left.push(Left {
                attended,
                routes: device.read_routing(&routing)?,
                hidden: device.read(&hidden)?,
                normed: device.read(&normed)?,
            });
        }
        Ok(left)
    }
}

pub(super) fn layers<D: Device>(device: &mut D, demands: &Demands) -> Outcome {
    let sizes: &[(usize, usize)] =
        if demands.is_full_size { &[(320, 8), (2880, 64)] } else { &[(160, 2), (320, 8)] };
    for &size in sizes {
        for window in [None, Some(20)] {
            let random = &mut Random(demands.seed + 600);
            let layer = Layer::new(random, size, window);
            let mut cpu = Cpu::new(None)?;
            let (found, expected) = (layer.run(device, demands)?, layer.run(&mut cpu, demands)?);
            for (step, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let what =
                    |which: &str| format!("{which}, step {step}, hidden and heads {size:?}, {window:?}");
                let tolerance = |of_bf16| Tolerance {
                    of_each: demands.rounding(),
                    of_largest: demands.share(1e-5, of_bf16),
                };
                let widen = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>();
                close(&found.attended, &widen(&expected.attended), tolerance(4e-3), || what("attention"))?;
                let rows = alike(&found.routes, &expected.routes)
                    .map_err(|failure| Failure(format!("{}: {failure}", what("routes"))))?;
                for (which, found, expected) in
                    [("hidden", &found.hidden, &expected.hidden), ("norm", &found.normed, &expected.normed)]
                {
                    let pick = |values: &[f32]| -> Vec<f32> {
                        rows.iter().flat_map(|row| values[row * size.0..][..size.0].to_vec()).collect()
                    };
                    close(&pick(found), &widen(&pick(expected)), tolerance(8e-3), || what(which))?;
                }
            }
        }
    }
    Ok(())
}
