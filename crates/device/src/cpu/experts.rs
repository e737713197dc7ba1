//! The experts: each expert's weights are decoded once a step and multiplied
//! with all the rows that were routed to it.

use super::lanes::{self, Inputs};
use super::matmul::TASK_ROWS;
use super::route::Groups;
use super::weights::{Experts, Mxfp4};
use rayon::prelude::*;

/// The sigmoid's slope in gpt-oss's SwiGLU.
const SWIGLU_ALPHA: f32 = 1.702;

/// Buffers that keep their capacity between calls.
#[derive(Default)]
pub(super) struct Scratch {
    by_feature: Vec<f32>,
    activations: Vec<f32>,
}

/// `outputs[slot]` for each row in `groups`, `[slots, hidden]`.
pub(super) fn run(
    rows: &Inputs<'_>,
    groups: &Groups,
    experts: &Experts,
    scratch: &mut Scratch,
    outputs: &mut [f32],
) {
    let (intermediate, hidden) = (experts.down.cols, experts.down.num_rows);
    let num_grouped = groups.rows.len();
    let Scratch { by_feature, activations } = scratch;

    by_feature.resize(num_grouped * intermediate, 0.0);
    let up = |group: usize| Inputs { picked: Some(groups.rows_of(group)), ..*rows };
    for_each_task(&experts.gate_up, 2, groups, by_feature, |task, decoded, products, out| {
        let inputs = up(task.group);
        let weights = experts.gate_up.expert(task.group);
        products.resize(2 * out.len(), 0.0);
        lanes::multiply(&weights, 2 * task.first..2 * task.last, &inputs, decoded, products);
        swiglu(products, inputs.len(), experts.swiglu_limit, out);
    });
    activations.resize(num_grouped * intermediate, 0.0);
    to_rows(by_feature, groups, intermediate, activations);

    by_feature.resize(num_grouped * hidden, 0.0);
    for_each_task(&experts.down, 1, groups, by_feature, |task, decoded, _, out| {
        let range = groups.range(task.group);
        let values = &activations[range.start * intermediate..range.end * intermediate];
        let inputs = Inputs { values, cols: intermediate, picked: None };
        lanes::multiply(&experts.down.expert(task.group), task.first..task.last, &inputs, decoded, out);
    });
    to_slots(by_feature, groups, hidden, outputs);
}

/// Gate rows and up rows alternate: `[2 * features, inputs]` to `[features, inputs]`.
fn swiglu(products: &[f32], num_inputs: usize, limit: f32, out: &mut [f32]) {
    let pairs = products.chunks_exact(2 * num_inputs).map(|pair| pair.split_at(num_inputs));
    for (out, (gates, ups)) in out.chunks_exact_mut(num_inputs).zip(pairs) {
        for ((out, gate), up) in out.iter_mut().zip(gates).zip(ups) {
            let gate = gate.min(limit);
            let up = up.clamp(-limit, limit);
            *out = gate / (1.0 + (-SWIGLU_ALPHA * gate).exp()) * (up + 1.0);
        }
    }
}

/// Features `first..last` of the expert of one group.
struct Task {
    group: usize,
    first: usize,
    last: usize,
}

/// Runs tasks over all groups at once, so that threads stay busy when experts
/// have few rows. A feature takes `rows_each` rows of the weights. `out` has a
/// region `[features, rows]` for each group.
fn for_each_task(
    weights: &Mxfp4,
    rows_each: usize,
    groups: &Groups,
    out: &mut [f32],
    run: impl Fn(&Task, &mut Vec<f32>, &mut Vec<f32>, &mut [f32]) + Sync,
) {
    let num_features = weights.num_rows / rows_each;
    let step = TASK_ROWS / rows_each;
    let mut tasks = Vec::new();
    let mut rest = out;
    for group in 0..groups.len() {
        let num_rows = groups.rows_of(group).len();
        if num_rows == 0 {
            continue;
        }
        for first in (0..num_features).step_by(step) {
            let last = num_features.min(first + step);
            let (out, after) = rest.split_at_mut((last - first) * num_rows);
            rest = after;
            tasks.push((Task { group, first, last }, out));
        }
    }
    let buffers = || (vec![0.0; lanes::decoded_len(weights.cols)], Vec::new());
    tasks.into_par_iter().for_each_init(buffers, |(decoded, products), (task, out)| {
        run(&task, decoded, products, out);
    });
}

/// From a region `[features, rows]` for each group to rows, in grouped order.
fn to_rows(by_feature: &[f32], groups: &Groups, width: usize, rows: &mut [f32]) {
    rows.par_chunks_mut(width).enumerate().for_each(|(index, row)| {
        copy_row(by_feature, groups, index, row);
    });
}

/// From a region `[features, rows]` for each group to the slots of the rows.
/// Slots of rows that went elsewhere keep what they hold.
fn to_slots(by_feature: &[f32], groups: &Groups, width: usize, outputs: &mut [f32]) {
    outputs.par_chunks_mut(width).enumerate().for_each(|(slot, row)| {
        if let Some(index) = groups.index_of_slot(slot) {
            copy_row(by_feature, groups, index, row);
        }
    });
}

fn copy_row(by_feature: &[f32], groups: &Groups, index: usize, row: &mut [f32]) {
    let range = groups.range(groups.group_of(index));
    let region = &by_feature[range.start * row.len()..range.end * row.len()];
    for (feature, value) in row.iter_mut().enumerate() {
        *value = region[feature * range.len() + (index - range.start)];
    }
}
