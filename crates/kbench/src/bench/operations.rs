//! Each operation alone, with gpt-oss-120b's shapes. Weights and pages rotate,
//! so that none of them waits in a cache for its next use.

mod attention;
mod experts;

use super::geometry::{Extent, Geometry};
use super::limits::{Limits, Work};
use super::machine::Machine;
use super::meter::Meter;
use crate::failure::Failure;
use crate::noise;
use crate::reference::Random;
use crate::report::Report;
use chorale_cuda::{Cuda, GpuError};
use chorale_device::Precision::{Full, Half};
use chorale_device::{
    BatchLimits, Columns, DenseDtype, Device, Draw, KvDtype, RopeParams, SliceColumns, Table,
};

type Matrix = <Cuda as Device>::Matrix;

/// What operations are measured with.
struct Bench<'a> {
    meter: Meter<'a>,
    geometry: &'a Geometry,
    extent: &'a Extent,
    rope: RopeParams,
    limits: Limits,
    report: &'a mut Report,
}

/// Operations that are measured together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    Experts,
    Linears(DenseDtype),
    Attention,
    Norms,
    Head,
}

impl Group {
    /// What takes most of a step first.
    pub(crate) const ALL: [Self; 6] = [
        Self::Experts,
        Self::Linears(DenseDtype::Bf16),
        Self::Attention,
        Self::Norms,
        Self::Head,
        Self::Linears(DenseDtype::Int8),
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Experts => "operations: router and experts",
            Self::Linears(DenseDtype::Bf16) => "operations: products",
            Self::Linears(DenseDtype::Int8) => "operations: products, int8",
            Self::Attention => "operations: attention",
            Self::Norms => "operations: norms",
            Self::Head => "operations: head and draws",
        }
    }

    /// What is measured in it; each may be asked for by itself.
    pub(crate) fn covers(self) -> &'static [&'static str] {
        match self {
            Self::Experts => &["experts", "router", "grouping by expert"],
            Self::Linears(DenseDtype::Bf16) => &["qkv product", "output product"],
            Self::Linears(DenseDtype::Int8) => &["qkv product, int8", "output product, int8"],
            Self::Attention => &["attention", "qkv with pages"],
            Self::Norms => &["sum and norm", "combine and norm"],
            Self::Head => &["head", "draw"],
        }
    }
}

pub(crate) fn run(
    machine: &Machine,
    (geometry, extent): (&Geometry, &Extent),
    (limits, group): (Limits, Group),
    report: &mut Report,
) -> Result<(), Failure> {
    let (meter, rope) = (Meter::new(machine, extent.rounds), geometry.rope()?);
    let mut bench = Bench { meter, geometry, extent, rope, limits, report };
    let rows: Vec<usize> = extent.decodes.iter().chain(&extent.operation_prefills).copied().collect();
    match group {
        Group::Experts => bench.experts(&rows)?,
        Group::Linears(dtype) => bench.linears(&rows, dtype)?,
        Group::Attention => bench.attention()?,
        Group::Norms => bench.norms(&rows)?,
        Group::Head => bench.head_and_draws()?,
    }
    Ok(())
}

impl Bench<'_> {
    /// Adds what took `seconds` for `count` times the work.
    fn add(&mut self, what: &str, of: String, seconds: f64, count: usize, work: Work) {
        let measurement = self.limits.measurement(what, of, seconds / count as f64, work);
        self.report.measured(measurement);
    }

    /// Rows of random activations, of one precision.
    fn rows(&mut self, rows: usize, cols: usize) -> Result<Matrix, GpuError> {
        let device = &mut self.meter.device;
        let mut matrix = device.matrix(rows, cols, Half)?;
        device.write(&noise::activations(&mut Random(rows as u64), rows * cols), &mut matrix)?;
        Ok(matrix)
    }

    /// The projection to queries, keys and values without the pages, and the one after attention.
    fn linears(&mut self, rows: &[usize], dtype: DenseDtype) -> Result<(), GpuError> {
        let (hidden, queries) = (self.geometry.hidden, self.geometry.queries());
        for (what, cols, outputs) in
            [("qkv product", hidden, self.geometry.qkv()), ("output product", queries, hidden)]
        {
            let what = &named(what, dtype);
            if !self.extent.wants(what) {
                continue;
            }
            let weight_bytes = outputs * dtype.row_bytes(cols);
            let count = self.extent.rotated_bytes.div_ceil(weight_bytes);
            let source = noise::dense(&mut Random(1), outputs, cols, true);
            let mut weights = Vec::with_capacity(count);
            for _ in 0..count {
                weights.push(self.meter.device.linear(source.clone(), dtype)?);
            }
            for &rows in rows {
                let input = self.rows(rows, cols)?;
                let mut out = self.meter.device.matrix(rows, outputs, Half)?;
                let weights = if rows > 1000 { &weights[..2] } else { &weights[..] };
                let seconds = self.meter.time(|device| {
                    weights.iter().try_for_each(|weights| device.project(&input, weights, &mut out))
                })?;
                let work = Work {
                    bytes: weight_bytes + 2 * rows * (cols + outputs),
                    flop: 2 * rows * cols * outputs,
                };
                self.add(what, format!("{rows} rows"), seconds, weights.len(), work);
            }
        }
        Ok(())
    }

    /// Sums and norms: of a delta, and of what experts answered.
    fn norms(&mut self, rows: &[usize]) -> Result<(), GpuError> {
        const COUNT: usize = 16;
        let Geometry { hidden: width, experts, top_k, .. } = *self.geometry;
        let gain = noise::bf16(&mut Random(1), width);
        let norm = self.meter.device.norm(gain, 1e-5)?;
        let router =
            self.meter.device.linear(noise::dense(&mut Random(2), experts, width, true), DenseDtype::Bf16)?;
        for &rows in rows {
            let delta = self.rows(rows, width)?;
            let outputs = self.rows(rows * top_k, width)?;
            let device = &mut self.meter.device;
            let (mut hidden, mut normed) =
                (device.matrix(rows, width, Full)?, device.matrix(rows, width, Half)?);
            device.write(&vec![1.0; rows * width], &mut hidden)?;
            let mut routing = device.routing(rows, top_k)?;
            device.route(&delta, &router, &mut routing)?;
            let seconds = self.meter.time(|device| {
                (0..COUNT).try_for_each(|_| device.add_rms_norm(&delta, &norm, &mut hidden, &mut normed))
            })?;
            // The residual both ways in 32 bits, the delta and the norm in 16.
            let work = Work { bytes: rows * width * (4 + 4 + 2 + 2), flop: 0 };
            self.add("sum and norm", format!("{rows} rows"), seconds, COUNT, work);
            let seconds = self.meter.time(|device| {
                (0..COUNT).try_for_each(|_| {
                    device.combine_rms_norm(&outputs, &routing, &norm, &mut hidden, &mut normed)
                })
            })?;
            let work = Work { bytes: rows * width * (4 + 4 + 2 * top_k + 2), flop: 0 };
            self.add("combine and norm", format!("{rows} rows"), seconds, COUNT, work);
        }
        Ok(())
    }

    fn head_and_draws(&mut self) -> Result<(), GpuError> {
        const COUNT: usize = 4;
        let Geometry { hidden, vocab, .. } = *self.geometry;
        let source = noise::dense(&mut Random(1), vocab, hidden, false);
        let weights = self.meter.device.linear(source.clone(), DenseDtype::Bf16)?;
        let int8 = self.meter.device.linear(source, DenseDtype::Int8)?;
        for &rows in &self.extent.decodes {
            let input = self.rows(rows, hidden)?;
            let device = &mut self.meter.device;
            let mut batch = device.batch(
                limits(rows),
                &self.rope,
                &self.geometry.kv_shape(KvDtype::Bf16, Vec::new(), 0),
            )?;
            let mut samples = device.samples(rows)?;
            let mut logits = device.matrix(rows, vocab, Full)?;
            let step = |draw: Draw| Columns {
                tokens: vec![0; rows],
                positions: (0..rows as u32).collect(),
                slices: (0..rows as u32).map(|row| no_pages(row..row + 1)).collect(),
                logit_rows: (0..rows as u32).collect(),
                draws: vec![draw; rows],
                ..Columns::default()
            };
            device.begin(&step(draw(0.0, 1.0)), &samples, &mut batch)?;
            for (dtype, weights) in [(DenseDtype::Int8, &int8), (DenseDtype::Bf16, &weights)] {
                let seconds = self.meter.time(|device| {
                    (0..COUNT).try_for_each(|_| device.lm_head(&input, weights, &batch, &mut logits))
                })?;
                let work = Work {
                    bytes: vocab * dtype.row_bytes(hidden) + 4 * rows * vocab + 2 * rows * hidden,
                    flop: 2 * rows * vocab * hidden,
                };
                self.add(&named("head", dtype), format!("{rows} rows"), seconds, COUNT, work);
            }
            for (what, draw) in [
                ("greedy draw", draw(0.0, 1.0)),
                ("plain draw", draw(1.0, 1.0)),
                ("top-p draw", draw(1.0, 0.9)),
            ] {
                self.meter.device.begin(&step(draw), &samples, &mut batch)?;
                let seconds = self.meter.time(|device| {
                    (0..COUNT).try_for_each(|_| device.sample(&logits, &batch, &mut samples))
                })?;
                self.add(
                    what,
                    format!("{rows} rows"),
                    seconds,
                    COUNT,
                    Work { bytes: 4 * rows * vocab, flop: 0 },
                );
            }
        }
        Ok(())
    }
}

/// An operation's name, with what its weights are kept in unless it is bf16.
fn named(what: &str, dtype: DenseDtype) -> String {
    match dtype {
        DenseDtype::Bf16 => what.to_owned(),
        DenseDtype::Int8 => format!("{what}, int8"),
    }
}

fn draw(temperature: f32, top_p: f32) -> Draw {
    Draw {
        temperature,
        top_k: 0,
        top_p,
        min_p: 0.0,
        allowed: None,
        bias: Vec::new(),
        penalties: None,
        seed: 1,
        position: 0,
        num_logprobs: None,
    }
}

fn limits(rows: usize) -> BatchLimits {
    BatchLimits { max_rows: rows, max_slices: rows, max_logit_rows: rows }
}

fn no_pages(rows: std::ops::Range<u32>) -> SliceColumns {
    SliceColumns { rows, full: Table::default(), sliding: Table::default() }
}
