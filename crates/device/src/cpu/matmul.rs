//! Dense matrix products, spread over threads by rows of weights, so that
//! each weight is read and decoded once a step.

use super::lanes::{self, Inputs};
use super::weights::Linear;
use rayon::prelude::*;

/// Rows of weights in one task: enough to amortise its start, few enough that
/// threads finish together.
pub(super) const TASK_ROWS: usize = 32;

/// Multiplications below which one thread is faster than several.
const SERIAL_WORK: usize = 1 << 15;

/// `out[j, i] = weights[i] · inputs[j] + bias[i]`, row-major in `j`. `scratch`
/// keeps its capacity between calls.
pub(super) fn matmul(weights: &Linear, inputs: &Inputs<'_>, scratch: &mut Vec<f32>, out: &mut [f32]) {
    assert_eq!(inputs.cols, weights.cols, "inputs as wide as the weights");
    let (num_rows, num_inputs) = (weights.num_rows(), inputs.len());
    assert_eq!(out.len(), num_rows * num_inputs);
    if num_inputs == 0 {
        return;
    }
    if num_inputs == 1 {
        multiply_rows(weights, inputs, out);
        return;
    }
    scratch.resize(num_rows * num_inputs, 0.0);
    multiply_rows(weights, inputs, scratch);
    transpose(scratch, num_inputs, out);
}

/// `out[i, j]`: row-major in the rows of the weights.
fn multiply_rows(weights: &Linear, inputs: &Inputs<'_>, out: &mut [f32]) {
    let num_inputs = inputs.len();
    let serial = weights.num_rows() * weights.cols * num_inputs < SERIAL_WORK;
    let mut rest = out;
    for (_, run) in weights.runs() {
        let (part, after) = rest.split_at_mut(run.num_rows * num_inputs);
        rest = after;
        let task_rows = if serial { run.num_rows.max(1) } else { TASK_ROWS };
        let decoded_len = lanes::decoded_len(weights.cols);
        let task = |decoded: &mut Vec<f32>, (task, out): (usize, &mut [f32])| {
            let first = task * task_rows;
            let rows = first..first + out.len() / num_inputs;
            lanes::multiply(&run, rows, inputs, decoded, out);
        };
        if serial {
            task(&mut vec![0.0; decoded_len], (0, part));
        } else {
            let tasks = part.par_chunks_mut(task_rows * num_inputs).enumerate();
            tasks.for_each_init(|| vec![0.0; decoded_len], task);
        }
    }
}

/// From `[cols, rows]` to `[rows, cols]`.
pub(super) fn transpose(from: &[f32], rows: usize, to: &mut [f32]) {
    let cols = from.len() / rows.max(1);
    to.par_chunks_mut(cols.max(1)).enumerate().for_each(|(row, to)| {
        for (col, value) in to.iter_mut().enumerate() {
            *value = from[col * rows + row];
        }
    });
}
