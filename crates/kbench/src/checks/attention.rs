//! QKV with its KV write, and attention over pages: windows, sinks, any split
//! of sequences into slices, any company, pages in any order.

mod case;
mod fp8;

use crate::demands::Demands;
use crate::failure::{Outcome, Tolerance, close, same};
use crate::reference::{self, Random};
use case::{Case, Shape, Work};
use chorale_device::Device;
pub(super) use fp8::{fp8_cases, fp8_rows};
use std::ops::Range;

/// Scores of rounded queries and keys, and weights that are rounded once more
/// before they meet the values.
fn tolerance(demands: &Demands) -> Tolerance {
    Tolerance { of_each: demands.rounding(), of_largest: demands.share(2e-5, 4e-3) }
}

/// Slices of one sequence, each a step of its own.
fn one_by_one(slices: &[Range<usize>]) -> Vec<Vec<Work>> {
    slices.iter().map(|slice| vec![Work { sequence: 0, slice: slice.clone() }]).collect()
}

fn random_slices(random: &mut Random, length: usize, longest: usize) -> Vec<Range<usize>> {
    let mut slices = Vec::new();
    let mut start = 0;
    while start < length {
        let end = length.min(start + 1 + random.below(longest));
        slices.push(start..end);
        start = end;
    }
    slices
}

/// Queries of rows at positions far into a long sequence, of which the window
/// keeps the last pages.
pub(super) fn queries<D: Device>(device: &mut D, demands: &Demands) -> Outcome {
    let random = &mut Random(demands.seed + 11);
    for (first, length) in [(0, 3), (4095, 2), (70_000, 9), (131_000, 70)] {
        let shape = Shape { window: Some(128), ..Shape::random(random, demands) };
        let case = Case::random(random, demands, shape, &[length]);
        let found = case.queries(device, demands, first)?;
        let expected: Vec<f64> =
            (0..length).flat_map(|row| case.query(demands, 0, row, (first + row) as u32)).collect();
        // Angles may be of f32 sines and cosines, which is all they are good for.
        let tolerance = Tolerance { of_each: demands.rounding(), of_largest: demands.share(2e-6, 4e-6) };
        close(&found, &expected, tolerance, || format!("from position {first}, {:?}", case.shape))?;
    }
    Ok(())
}

/// A window of one key and sinks that weigh nothing: the value itself comes
/// through, rounded as pages keep it.
pub(super) fn single_keys<D: Device>(device: &mut D, demands: &Demands) -> Outcome {
    let random = &mut Random(demands.seed + 12);
    for length in [1, 40] {
        let shape = Shape { window: Some(1), ..Shape::random(random, demands) };
        let mut case = Case::random(random, demands, shape, &[length]);
        case.sinks.fill(-1000.0);
        let whole = [vec![Work { sequence: 0, slice: 0..length }]];
        let found = case.run(device, demands, &whole, 1)?.concat();
        let tolerance =
            Tolerance { of_each: 2.0 * demands.rounding(), of_largest: demands.share(2e-6, 4e-6) };
        close(&found, &case.expected(demands, 0), tolerance, || format!("{length} rows, {:?}", case.shape))?;
    }
    Ok(())
}

pub(super) fn whole_sequences<D: Device>(device: &mut D, demands: &Demands) -> Outcome {
    for index in 0..demands.num_cases {
        let random = &mut Random(demands.seed + index as u64);
        let length = 1 + (index * 7) % 45;
        let shape = Shape::random(random, demands);
        let case = Case::random(random, demands, shape, &[length]);
        let whole = [vec![Work { sequence: 0, slice: 0..length }]];
        let found = case.run(device, demands, &whole, index as u64)?.concat();
        close(&found, &case.expected(demands, 0), tolerance(demands), || {
            format!("case {index}: {length} rows, {:?}", case.shape)
        })?;
    }
    Ok(())
}

pub(super) fn splits<D: Device>(device: &mut D, demands: &Demands) -> Outcome {
    for index in 0..demands.num_cases {
        let random = &mut Random(demands.seed + 100 + index as u64);
        let length = 20 + (index * 11) % 50;
        let shape = Shape::random(random, demands);
        let case = Case::random(random, demands, shape, &[length]);
        let whole = one_by_one(std::slice::from_ref(&(0..length)));
        let whole = case.run(device, demands, &whole, index as u64)?.concat();
        let slices = random_slices(random, length, 9);
        let what = |which: &str| format!("case {index}, {which}: {slices:?}, {:?}", case.shape);
        let sliced = case.run(device, demands, &one_by_one(&slices), index as u64)?.concat();
        let paged = case.run(device, demands, &one_by_one(&slices), index as u64 + 1)?.concat();
        same(&paged, &sliced, || what("other pages"))?;
        if demands.is_slice_steady {
            same(&sliced, &whole, || what("other slices"))?;
        }
        close(&sliced, &case.expected(demands, 0), tolerance(demands), || what("plain loops"))?;
    }
    Ok(())
}

/// Several sequences, some of which have long slices and some single tokens.
pub(super) fn companies<D: Device>(device: &mut D, demands: &Demands) -> Outcome {
    for index in 0..demands.num_cases / 4 {
        let random = &mut Random(demands.seed + 200 + index as u64);
        let lengths: Vec<usize> = (0..1 + random.below(9)).map(|_| 1 + random.below(60)).collect();
        let shape = Shape::random(random, demands);
        let case = Case::random(random, demands, shape, &lengths);
        let mut pending: Vec<std::vec::IntoIter<Range<usize>>> =
            lengths.iter().map(|&length| random_slices(random, length, 20).into_iter()).collect();
        let mut steps = Vec::new();
        loop {
            let order = random.order(lengths.len());
            let work = order.into_iter().filter_map(|sequence| {
                // Not every sequence is in every step.
                if random.below(3) == 0 {
                    return None;
                }
                pending[sequence].next().map(|slice| Work { sequence, slice })
            });
            let work: Vec<Work> = work.collect();
            if !work.is_empty() {
                steps.push(work);
            } else if pending.iter().all(|slices| slices.len() == 0) {
                break;
            }
        }
        let found = case.run(device, demands, &steps, index as u64)?;
        for (sequence, found) in found.iter().enumerate() {
            close(found, &case.expected(demands, sequence), tolerance(demands), || {
                format!("case {index}: sequence {sequence} of {lengths:?}, {:?}", case.shape)
            })?;
        }
    }
    Ok(())
}

/// Long enough for a device to cut one sequence's keys among its processors,
/// with the head counts of gpt-oss's ranks.
pub(super) fn long_sequences<D: Device>(device: &mut D, demands: &Demands) -> Outcome {
    let length = if demands.is_full_size { 1500 } else { 500 };
    let random = &mut Random(demands.seed + 300);
    let block_size = *demands.block_sizes.iter().min_by_key(|size| size.abs_diff(64)).unwrap_or(&64);
    let head_dim = *demands.head_dims.last().unwrap_or(&64);
    for window in [None, Some(128)] {
        for (num_heads, num_kv_heads) in [(8, 1), (16, 2)] {
            let shape = Shape { num_heads, num_kv_heads, head_dim, window, block_size, kv: None };
            let case = Case::random(random, demands, shape, &[length, 30]);
            let work = |sequence, slice| Work { sequence, slice };
            let mut steps = vec![
                vec![work(0, 0..300)],
                vec![work(1, 0..29), work(0, 300..length - 3)],
                vec![work(0, length - 3..length - 2), work(1, 29..30)],
            ];
            steps.extend((length - 2..length).map(|at| vec![work(0, at..at + 1)]));
            let found = case.run(device, demands, &steps, 5)?;
            for (sequence, found) in found.iter().enumerate() {
                close(found, &case.expected(demands, sequence), tolerance(demands), || {
                    format!("sequence {sequence}, {:?}", case.shape)
                })?;
            }
        }
    }
    Ok(())
}

/// A source of q, k and v, three runs of rows as checkpoints have them.
fn source(case: &Case) -> chorale_device::DenseSource {
    let (first, second) = (case.shape.query_rows(), case.shape.query_rows() + case.shape.kv_rows());
    let run = |range: Range<usize>| (&case.weights[range.clone()], Some(&case.bias[range]));
    reference::dense(&[run(0..first), run(first..second), run(second..case.bias.len())])
}
