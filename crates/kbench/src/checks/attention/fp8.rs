//! Keys and values in FP8: rows as they come out of the cache, and attention
//! over them with every kind of pages, windows and slices.

use super::case::{Case, Shape, Work};
use super::{one_by_one, random_slices};
use crate::demands::Demands;
use crate::failure::{Outcome, Tolerance, close, ensure};
use crate::reference::Random;
use chorale_device::{Device, KvDtype};

/// Rows of a step, by which kernels are chosen.
const ROWS: [usize; 9] = [1, 7, 12, 30, 33, 50, 70, 130, 260];
/// Powers of two that rows are multiplied with: within what exponents allow and
/// at its ends, where rows saturate or vanish.
const POWERS: [i32; 11] = [0, 1, -3, 40, -40, 92, 100, 108, -93, -100, -112];

/// Values by themselves, of one key and with no sink to speak of: exactly what
/// encoding gives, wherever the row's largest lies among the powers of two.
pub(in crate::checks) fn fp8_rows<D: Device>(device: &mut D, demands: &Demands) -> Outcome {
    if !D::KV_DTYPES.contains(&KvDtype::Fp8) {
        return Ok(());
    }
    let head_dim = *demands.head_dims.last().unwrap_or(&64);
    for (index, &num_rows) in ROWS.iter().enumerate() {
        let random = &mut Random(demands.seed + 800 + index as u64);
        let num_kv_heads = 1 + index % 3;
        let shape = Shape {
            num_heads: num_kv_heads * random.pick(&[1, 2, 3]),
            num_kv_heads,
            head_dim,
            window: Some(1),
            block_size: random.pick(demands.block_sizes),
            kv: Some(KvDtype::Fp8),
        };
        let case = Case::of_values(random, demands, shape, num_rows, |random, row| {
            let scale = 2f64.powi(POWERS[row % POWERS.len()]);
            let values = random.row(head_dim, 1.0).into_iter().map(|value| scale * value);
            let mut values: Vec<f64> = values.collect();
            // The largest of a power of two's codes, the next number, zeros alone.
            match row % 5 {
                0 => values[row % head_dim] = -1.75 * scale,
                1 => values[row % head_dim] = 1.7578125 * scale,
                2 if row % 3 == 0 => values.fill(0.0),
                _ => {}
            }
            values
        });
        let expected = case.expected(demands, 0);
        let found = case
            .run(device, demands, &one_by_one(std::slice::from_ref(&(0..num_rows))), index as u64)?
            .concat();
        ensure(found.len() == expected.len(), || format!("{} values", found.len()))?;
        for (at, (&found, &expected)) in found.iter().zip(&expected).enumerate() {
            ensure(f64::from(found) == expected, || {
                format!("{num_rows} rows, {shape:?}: value {at} is {found:e}, not {expected:e}")
            })?;
        }
    }
    Ok(())
}

/// Keys are rotated before they are encoded, so that a last bit may make a
/// code another: a score then changes by as much as a percent of a percent of
/// the products that it is the sum of.
pub(in crate::checks) fn fp8_cases<D: Device>(device: &mut D, demands: &Demands) -> Outcome {
    if !D::KV_DTYPES.contains(&KvDtype::Fp8) {
        return Ok(());
    }
    let tolerance = Tolerance { of_each: demands.rounding(), of_largest: 3e-2 };
    for index in 0..demands.num_cases {
        let random = &mut Random(demands.seed + 700 + index as u64);
        let length = 20 + (index * 11) % 50 + if index % 4 == 0 { 200 } else { 0 };
        let shape = Shape { kv: Some(KvDtype::Fp8), ..Shape::random(random, demands) };
        let case = Case::random(random, demands, shape, &[length, 30]);
        let mut steps = one_by_one(&random_slices(random, length, if index % 2 == 0 { 9 } else { 150 }));
        let alone = |slice| vec![Work { sequence: 1, slice }];
        steps.extend([alone(0..29), alone(29..30)]);
        let found = case.run(device, demands, &steps, index as u64)?;
        for (sequence, found) in found.iter().enumerate() {
            close(found, &case.expected(demands, sequence), tolerance, || {
                format!("case {index}: sequence {sequence} of {length} rows, {:?}", case.shape)
            })?;
        }
    }
    Ok(())
}
