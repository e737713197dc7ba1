//! Operations of larger shapes, against the portable device.

use crate::demands::Demands;
use crate::failure::{Failure, Outcome, Tolerance, close, ensure};
use crate::noise;
use crate::reference::Random;
use chorale_device::Precision::{Full, Half};
use chorale_device::{Cpu, DenseDtype, DenseSource, Device, ExpertsSource, Routed};

/// A layer's matrices and rows that meet them.
struct Case {
    hidden: usize,
    outputs: usize,
    num_experts: usize,
    top_k: usize,
    num_rows: usize,
    values: Vec<f32>,
    residual: Vec<f32>,
    weights: DenseSource,
    router: DenseSource,
    experts: ExpertsSource,
}

/// What a device makes of it.
struct Found {
    /// By weights in either kind of numbers.
    projected: [Vec<f32>; 2],
    routes: Vec<Vec<Routed>>,
    outputs: Vec<f32>,
    combined: Vec<f32>,
    normed: Vec<f32>,
}

impl Case {
    fn new(
        random: &mut Random,
        (hidden, intermediate, outputs): (usize, usize, usize),
        (num_experts, top_k, num_rows): (usize, usize, usize),
    ) -> Self {
        Self {
            hidden,
            outputs,
            num_experts,
            top_k,
            num_rows,
            values: noise::activations(random, num_rows * hidden),
            residual: noise::activations(random, num_rows * hidden),
            weights: noise::dense(random, outputs, hidden, true),
            router: noise::dense(random, num_experts, hidden, true),
            experts: noise::experts(random, num_experts, hidden, intermediate),
        }
    }

    fn run<D: Device>(&self, device: &mut D) -> Result<Found, D::Error> {
        let Self { hidden, num_rows, top_k, .. } = *self;
        let mut rows = device.matrix(num_rows, hidden, Half)?;
        device.write(&self.values, &mut rows)?;
        let mut project = |dtype| {
            let weights = device.linear(self.weights.clone(), dtype)?;
            let mut projected = device.matrix(num_rows, self.outputs, Half)?;
            device.project(&rows, &weights, &mut projected)?;
            device.read(&projected)
        };
        let projected = [project(DenseDtype::Bf16)?, project(DenseDtype::Int8)?];
        let router = device.linear(self.router.clone(), DenseDtype::Bf16)?;
        let mut routing = device.routing(num_rows, top_k)?;
        device.route(&rows, &router, &mut routing)?;
        let experts = device.experts(self.experts.clone())?;
        let mut groups = device.groups(&(0..self.num_experts as u32).collect::<Vec<u32>>())?;
        device.group(&routing, &mut groups)?;
        let mut outputs = device.matrix(num_rows * top_k, hidden, Half)?;
        device.run_experts(&rows, &groups, &experts, &mut outputs)?;
        let gain = noise::bf16(&mut Random(1), hidden);
        let norm = device.norm(gain, 1e-5)?;
        let mut residual = device.matrix(num_rows, hidden, Full)?;
        device.write(&self.residual, &mut residual)?;
        let mut normed = device.matrix(num_rows, hidden, Half)?;
        device.combine_rms_norm(&outputs, &routing, &norm, &mut residual, &mut normed)?;
        Ok(Found {
            projected,
            routes: device.read_routing(&routing)?,
            outputs: device.read(&outputs)?,
            combined: device.read(&residual)?,
            normed: device.read(&normed)?,
        })
    }

    fn check<D: Device>(&self, device: &mut D, demands: &Demands) -> Outcome {
        let mut cpu = Cpu::new(None)?;
        let (found, expected) = (self.run(device)?, self.run(&mut cpu)?);
        let what = |which: &str| {
            format!(
                "{which} of {} rows, {} to {}, {} of {} experts",
                self.num_rows, self.hidden, self.outputs, self.top_k, self.num_experts
            )
        };
        let rounded = Tolerance { of_each: demands.rounding(), of_largest: demands.share(1e-6, 1e-5) };
        for (found, expected) in found.projected.iter().zip(&expected.projected) {
            close(found, &widen(expected), rounded, || what("products"))?;
        }
        let rows = alike(&found.routes, &expected.routes)
            .map_err(|failure| Failure(format!("{}: {failure}", what("routes"))))?;
        // Only rows that chose alike, in the same order, can be compared.
        let twice = Tolerance { of_each: 2.0 * demands.rounding(), of_largest: demands.share(2e-6, 4e-3) };
        for (which, found, expected, width) in [
            ("outputs", &found.outputs, &expected.outputs, self.top_k * self.hidden),
            ("combinations", &found.combined, &expected.combined, self.hidden),
            ("norms", &found.normed, &expected.normed, self.hidden),
        ] {
            let pick = |values: &[f32]| -> Vec<f32> {
                rows.iter().flat_map(|row| values[row * width..][..width].to_vec()).collect()
            };
            ensure(found.len() == expected.len(), || format!("{}: {} values", what(which), found.len()))?;
            close(&pick(found), &widen(&pick(expected)), twice, || what(which))?;
        }
        Ok(())
    }
}

fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

/// Rows that chose the same experts in the same order: nearly all.
pub(super) fn alike(found: &[Vec<Routed>], expected: &[Vec<Routed>]) -> Result<Vec<usize>, Failure> {
    ensure(found.len() == expected.len(), || format!("{} rows, not {}", found.len(), expected.len()))?;
    let experts = |row: &[Routed]| -> Vec<u32> { row.iter().map(|choice| choice.expert).collect() };
    let is_alike = |&row: &usize| experts(&found[row]) == experts(&expected[row]);
    let rows: Vec<usize> = (0..found.len()).filter(is_alike).collect();
    let num_others = found.len() - rows.len();
    ensure(num_others * 10 <= found.len().max(10), || {
        format!("{num_others} of {} rows chose other experts", found.len())
    })?;
    Ok(rows)
}

pub(super) fn operations<D: Device>(device: &mut D, demands: &Demands) -> Outcome {
    for index in 0..demands.num_cases / 4 {
        let random = &mut Random(demands.seed + 400 + index as u64);
        let hidden = 32 * (1 + random.below(12));
        let intermediate = 32 * (1 + random.below(8));
        let outputs = 1 + random.below(700);
        let num_experts = 1 + random.below(40);
        let top_k = 1 + random.below(num_experts.min(8));
        let num_rows = random.pick(&[1, 2, 5, 8, 16, 17, 33, 64, 100, 190]);
        let sizes = (hidden, intermediate, outputs);
        Case::new(random, sizes, (num_experts, top_k, num_rows)).check(device, demands)?;
    }
    Ok(())
}

/// The widths of gpt-oss, or where that would take too long ninths of them.
pub(super) fn gpt_oss<D: Device>(device: &mut D, demands: &Demands) -> Outcome {
    let (part, rows): (usize, &[usize]) =
        if demands.is_full_size { (1, &[1, 8, 40, 300, 1000]) } else { (9, &[1, 8, 130]) };
    let random = &mut Random(demands.seed + 500);
    // Rows as wide as gpt-oss's, a few for each expert of a narrow inside.
    Case::new(random, (2880, 32, 64), (16, 2, 40)).check(device, demands)?;
    for &num_rows in rows {
        let sizes = (2880 / part, 2880 / part, 5120 / part);
        Case::new(random, sizes, (128 / part, 4, num_rows)).check(device, demands)?;
    }
    Ok(())
}
