//! The experts: grouping, the fused SwiGLU, and the combine.

use super::host::alike;
use super::upload;
use crate::demands::Demands;
use crate::failure::{Outcome, Tolerance, close, ensure};
use crate::reference::{self, Experts, Random, Rows};
use chorale_device::Precision::{Full, Half};
use chorale_device::{DenseDtype, Device, Routed};

/// Rows, hidden, intermediate, experts, choices of each row.
const SHAPES: [(usize, usize, usize, usize, usize); 10] = [
    (1, 32, 32, 1, 1),
    (1, 64, 96, 8, 4),
    (2, 96, 96, 256, 8),
    (7, 96, 160, 5, 2),
    (16, 320, 160, 32, 4),
    (70, 32, 64, 6, 3),
    (130, 64, 96, 4, 2),
    (150, 192, 128, 16, 4),
    (300, 64, 64, 2, 1),
    (1100, 32, 32, 9, 4),
];

/// A second matrix multiplies what was rounded after the first; sums that lie
/// near the middle of two bf16 may have gone the other way.
fn outputs_tolerance(demands: &Demands) -> Tolerance {
    Tolerance { of_each: demands.rounding(), of_largest: demands.share(2e-6, 1e-3) }
}

pub(super) fn layers<D: Device>(device: &mut D, demands: &Demands) -> Outcome {
    for (num_rows, hidden, intermediate, num_experts, top_k) in SHAPES {
        let what = |which: &str| {
            format!("{which} of {num_rows} rows, {top_k} of {num_experts} experts, {hidden} × {intermediate}")
        };
        let random = &mut Random(demands.seed + hidden as u64);
        let layer = Experts::random(random, num_experts, hidden, intermediate);
        let rows = random.rows(num_rows, hidden, 1.0);
        let experts = device.experts(layer.source.clone())?;
        let input = upload(device, &rows, Half)?;
        let routing = route(device, random, &input, (num_rows, hidden), (num_experts, top_k))?;
        let choices = device.read_routing(&routing)?;

        let all: Vec<u32> = (0..num_experts as u32).collect();
        let mut groups = device.groups(&all)?;
        device.group(&routing, &mut groups)?;
        let mut outputs = device.matrix(num_rows * top_k, hidden, Half)?;
        device.run_experts(&input, &groups, &experts, &mut outputs)?;
        let found = device.read(&outputs)?;
        let output = |choice: &Routed, row| layer.output(choice.expert as usize, row, |v| demands.round(v));
        let slots = rows.iter().zip(&choices);
        let slots = slots.flat_map(|(row, choices)| choices.iter().flat_map(|choice| output(choice, row)));
        close(&found, &slots.collect::<Vec<f64>>(), outputs_tolerance(demands), || what("outputs"))?;

        let norm = device.norm(reference::to_bf16(&vec![1.0; hidden]), 1e-5)?;
        let mut residual = upload(device, &rows, Full)?;
        let mut normed = device.matrix(num_rows, hidden, Half)?;
        device.combine_rms_norm(&outputs, &routing, &norm, &mut residual, &mut normed)?;
        let mut expected: Rows = rows.clone();
        for (slot, output) in found.chunks(hidden).enumerate() {
            let weight = f64::from(choices[slot / top_k][slot % top_k].weight);
            let sums = expected[slot / top_k].iter_mut().zip(output);
            sums.for_each(|(sum, &value)| *sum += weight * f64::from(value));
        }
        let in_f32 = Tolerance { of_each: 0.0, of_largest: 2e-6 };
        close(&device.read(&residual)?, &expected.concat(), in_f32, || what("combination"))?;
        let normed_rows = reference::rms_norm(&expected, &vec![1.0; hidden], 1e-5).concat();
        let tolerance = Tolerance { of_each: demands.rounding(), of_largest: 1e-5 };
        close(&device.read(&normed)?, &normed_rows, tolerance, || what("norm of the combination"))?;
    }
    Ok(())
}

pub(super) fn spread<D: Device>(device: &mut D, demands: &Demands) -> Outcome {
    let random = &mut Random(demands.seed + 77);
    for (num_rows, hidden) in [(2, 32), (23, 64), (140, 96)] {
        let top_k = 3;
        let layer = Experts::random(random, 7, hidden, 96);
        let rows = random.rows(num_rows, hidden, 1.0);
        let input = upload(device, &rows, Half)?;
        let routing = route(device, random, &input, (num_rows, hidden), (7, top_k))?;
        let choices = device.read_routing(&routing)?;
        let mut run = |local: &[usize]| -> Result<Vec<f32>, D::Error> {
            let experts = device.experts(layer.pick(local))?;
            let numbers: Vec<u32> = local.iter().map(|&expert| expert as u32).collect();
            let mut groups = device.groups(&numbers)?;
            device.group(&routing, &mut groups)?;
            let mut outputs = device.matrix(num_rows * top_k, hidden, Half)?;
            device.run_experts(&input, &groups, &experts, &mut outputs)?;
            device.read(&outputs)
        };
        let whole = run(&[0, 1, 2, 3, 4, 5, 6])?;
        let (left, right) = (run(&[6, 0, 3])?, run(&[1, 2, 5, 4])?);
        for (slot, choice) in choices.concat().iter().enumerate() {
            let part = if [6, 0, 3].contains(&choice.expert) { &left } else { &right };
            alike(demands, &part[slot * hidden..][..hidden], &whole[slot * hidden..][..hidden], || {
                format!("slot {slot} of {num_rows} rows")
            })?;
        }
    }
    Ok(())
}

/// Rows that all choose alike: one expert gets everything.
pub(super) fn crowds<D: Device>(device: &mut D, demands: &Demands) -> Outcome {
    let random = &mut Random(demands.seed + 78);
    let (hidden, num_experts) = (64, 9);
    let layer = Experts::random(random, num_experts, hidden, 96);
    let experts = device.experts(layer.source.clone())?;
    let all: Vec<u32> = (0..num_experts as u32).collect();
    for num_rows in [1, 8, 9, 64, 65, 129, 200] {
        let rows = random.rows(num_rows, hidden, 1.0);
        let input = upload(device, &rows, Half)?;
        // Weights of zero: the biases choose, 7 before 2.
        let mut bias = vec![0.0; num_experts];
        (bias[7], bias[2]) = (4.0, 3.0);
        let router = vec![vec![0.0; hidden]; num_experts];
        let router = device.linear(reference::dense(&[(&router, Some(&bias))]), DenseDtype::Bf16)?;
        let mut routing = device.routing(num_rows, 2)?;
        device.route(&input, &router, &mut routing)?;
        let choices = device.read_routing(&routing)?;
        let as_told = choices.iter().all(|row| row.iter().map(|choice| choice.expert).eq([7, 2]));
        ensure(as_told, || format!("{num_rows} rows chose {:?}", choices.first()))?;
        let mut groups = device.groups(&all)?;
        device.group(&routing, &mut groups)?;
        let mut outputs = device.matrix(num_rows * 2, hidden, Half)?;
        device.run_experts(&input, &groups, &experts, &mut outputs)?;
        let round = |value| demands.round(value);
        let slots = rows.iter().flat_map(|row| [layer.output(7, row, round), layer.output(2, row, round)]);
        let slots: Vec<f64> = slots.flatten().collect();
        close(&device.read(&outputs)?, &slots, outputs_tolerance(demands), || format!("{num_rows} rows"))?;
    }
    Ok(())
}

/// Routes rows by a random router.
pub(super) fn route<D: Device>(
    device: &mut D,
    random: &mut Random,
    input: &D::Matrix,
    (num_rows, hidden): (usize, usize),
    (num_experts, top_k): (usize, usize),
) -> Result<D::Routing, D::Error> {
    let weights = random.rows(num_experts, hidden, 1.0);
    let router = device.linear(reference::dense(&[(&weights, None)]), DenseDtype::Bf16)?;
    let mut routing = device.routing(num_rows, top_k)?;
    device.route(input, &router, &mut routing)?;
    Ok(routing)
}
