//! The experts: grouping, the fused SwiGLU, and the combine.

use crate::reference::{self, Random, Rows};
use crate::{assert_close, cpu, upload};
use chorale_device::{Device, ExpertsSource, Mxfp4Source};

/// A layer of experts, and what it computes.
pub(crate) struct Layer {
    pub(crate) source: ExpertsSource,
    gate_up: Vec<(Rows, Vec<f64>)>,
    down: Vec<(Rows, Vec<f64>)>,
}

impl Layer {
    pub(crate) fn random(random: &mut Random, local: &[u32], hidden: usize, intermediate: usize) -> Self {
        let mut matrices = |rows: usize, cols: usize| {
            let (mut parts, mut values) = (Vec::new(), Vec::new());
            for _ in local {
                let (part, weights, bias) = random.mxfp4(rows, cols);
                parts.push(part);
                values.push((weights, bias));
            }
            (Mxfp4Source { rows, cols, experts: parts }, values)
        };
        let (gate_up_source, gate_up) = matrices(2 * intermediate, hidden);
        let (down_source, down) = matrices(hidden, intermediate);
        let source = ExpertsSource { gate_up: gate_up_source, down: down_source, swiglu_limit: 1.5 };
        Self { source, gate_up, down }
    }

    fn output(&self, local: usize, row: &[f64]) -> Vec<f64> {
        let pair = |(weights, bias): &(Rows, Vec<f64>)| (weights.clone(), bias.clone());
        let (gate_up, down) = (pair(&self.gate_up[local]), pair(&self.down[local]));
        reference::expert(row, (&gate_up.0, &gate_up.1), (&down.0, &down.1), 1.5)
    }
}

#[test]
fn experts_and_combine_agree_with_plain_loops() {
    let device = &mut cpu();
    let shapes = [(1, 32, 32, 1, 1), (1, 64, 96, 8, 4), (7, 96, 160, 5, 2), (70, 32, 64, 6, 3)];
    for (num_rows, hidden, intermediate, num_experts, top_k) in shapes {
        let random = &mut Random(hidden as u64);
        let all: Vec<u32> = (0..num_experts).collect();
        let layer = Layer::random(random, &all, hidden, intermediate);
        let rows = random.rows(num_rows, hidden, 1.0);
        let experts = device.experts(layer.source.clone()).unwrap();
        let input = upload(device, &rows);
        let routing = route(device, random, &input, (num_rows, hidden), (num_experts, top_k));
        let choices = device.read_routing(&routing).unwrap();

        let mut groups = device.groups(&all).unwrap();
        device.group(&routing, &mut groups).unwrap();
        let mut outputs = device.matrix(num_rows * top_k, hidden).unwrap();
        device.run_experts(&input, &groups, &experts, &mut outputs).unwrap();
        let slots = rows.iter().zip(&choices).flat_map(|(row, choices)| {
            choices.iter().map(|choice| layer.output(choice.expert as usize, row))
        });
        let slots: Rows = slots.collect();
        assert_close(&device.read(&outputs).unwrap(), &slots, 2e-6, "expert outputs");

        let norm = device.norm(reference::to_bf16(&vec![1.0; hidden]), 1e-5).unwrap();
        let (mut residual, mut normed) = (upload(device, &rows), device.matrix(num_rows, hidden).unwrap());
        device.combine_rms_norm(&outputs, &routing, &norm, &mut residual, &mut normed).unwrap();
        let mut expected = rows.clone();
        for (slot, output) in slots.iter().enumerate() {
            let weight = f64::from(choices[slot / top_k][slot % top_k].weight);
            expected[slot / top_k].iter_mut().zip(output).for_each(|(sum, value)| *sum += weight * value);
        }
        assert_close(&device.read(&residual).unwrap(), &expected, 2e-6, "combined");
        let normed_rows = reference::rms_norm(&expected, &vec![1.0; hidden], 1e-5);
        assert_close(&device.read(&normed).unwrap(), &normed_rows, 1e-5, "normed");
    }
}

#[test]
fn experts_spread_over_two_devices_give_the_same_bits() {
    let device = &mut cpu();
    let random = &mut Random(77);
    let (num_rows, hidden, top_k) = (23, 64, 3);
    let all: Vec<u32> = (0..7).collect();
    let layer = Layer::random(random, &all, hidden, 96);
    let input = upload(device, &random.rows(num_rows, hidden, 1.0));
    let routing = route(device, random, &input, (num_rows, hidden), (7, top_k));
    let choices = device.read_routing(&routing).unwrap();
    let mut run = |local: &[u32]| {
        let pick = |source: &Mxfp4Source| Mxfp4Source {
            experts: local.iter().map(|&expert| source.experts[expert as usize].clone()).collect(),
            ..source.clone()
        };
        let source = ExpertsSource {
            gate_up: pick(&layer.source.gate_up),
            down: pick(&layer.source.down),
            swiglu_limit: layer.source.swiglu_limit,
        };
        let experts = device.experts(source).unwrap();
        let mut groups = device.groups(local).unwrap();
        device.group(&routing, &mut groups).unwrap();
        let mut outputs = device.matrix(num_rows * top_k, hidden).unwrap();
        device.run_experts(&input, &groups, &experts, &mut outputs).unwrap();
        device.read(&outputs).unwrap()
    };
    let (whole, left, right) = (run(&all), run(&[6, 0, 3]), run(&[1, 2, 5, 4]));
    for (slot, choice) in choices.concat().iter().enumerate() {
        let part = if [6, 0, 3].contains(&choice.expert) { &left } else { &right };
        assert_eq!(whole[slot * hidden..][..hidden], part[slot * hidden..][..hidden], "slot {slot}");
    }
}

pub(crate) fn route<D: Device>(
    device: &mut D,
    random: &mut Random,
    input: &D::Matrix,
    (num_rows, hidden): (usize, usize),
    (num_experts, top_k): (u32, usize),
) -> D::Routing {
    let weights = random.rows(num_experts as usize, hidden, 1.0);
    let router = device.linear(reference::dense(&[(&weights, None)])).unwrap();
    let mut routing = device.routing(num_rows, top_k).unwrap();
    device.route(input, &router, &mut routing).unwrap();
    routing
}
