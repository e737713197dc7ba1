//! Operations on rows alone: norms, projections, the router, the head, and what
//! a row must not notice of its neighbours.

use super::{columns, greedy, limits, no_pages, upload};
use crate::demands::Demands;
use crate::failure::{Outcome, Tolerance, close, ensure, same};
use crate::reference::{self, Random, Rows, dense, kept};
use chorale_device::Precision::{Full, Half};
use chorale_device::{Columns, DenseDtype, Device, Feed};

/// Rows, inputs and outputs.
const SHAPES: [(usize, usize, usize); 13] = [
    (1, 1, 1),
    (1, 7, 5),
    (2, 16, 33),
    (3, 100, 64),
    (5, 17, 130),
    (1, 96, 777),
    (8, 160, 96),
    (9, 192, 48),
    (17, 320, 129),
    (33, 64, 31),
    (64, 128, 200),
    (130, 48, 40),
    (200, 160, 136),
];

const DTYPES: [DenseDtype; 2] = [DenseDtype::Bf16, DenseDtype::Int8];

/// Sums of products in f32, then rounded once.
fn products(demands: &Demands) -> Tolerance {
    Tolerance { of_each: demands.rounding(), of_largest: demands.share(1e-6, 2e-6) }
}

/// What is kept in 32 bits.
const EXACTLY: Tolerance = Tolerance { of_each: 0.0, of_largest: 0.0 };
const IN_F32: Tolerance = Tolerance { of_each: 0.0, of_largest: 2e-6 };

pub(super) fn embeddings<D: Device>(device: &mut D, demands: &Demands) -> Outcome {
    for (num_rows, cols) in [(1, 32), (7, 96), (65, 2880)] {
        let random = &mut Random(demands.seed + cols as u64);
        let table_rows = random.rows(40, cols, 2.0);
        let table = device.embedding(dense(&[(&table_rows[..13], None), (&table_rows[13..], None)]))?;
        let (rope, kv) = no_pages(demands);
        let mut batch = device.batch(limits(num_rows), &rope, &kv)?;
        let samples = device.samples(1)?;
        let tokens: Vec<u32> = (0..num_rows).map(|_| random.below(40) as u32).collect();
        device.begin(&Columns { tokens: tokens.clone(), ..columns(num_rows) }, &samples, &mut batch)?;
        let mut hidden = device.matrix(num_rows, cols, Full)?;
        device.embed(&table, &batch, &mut hidden)?;
        let expected: Vec<f64> =
            tokens.iter().flat_map(|&token| table_rows[token as usize].clone()).collect();
        close(&device.read(&hidden)?, &expected, EXACTLY, || format!("{num_rows} rows of {cols}"))?;
    }
    Ok(())
}

pub(super) fn projections<D: Device>(device: &mut D, demands: &Demands) -> Outcome {
    DTYPES.into_iter().try_for_each(|dtype| project(device, demands, dtype))
}

fn project<D: Device>(device: &mut D, demands: &Demands, dtype: DenseDtype) -> Outcome {
    for (num_rows, cols, outputs) in SHAPES {
        let cols = demands.cols(cols);
        let random = &mut Random(demands.seed + num_rows as u64);
        let rows = random.rows(num_rows, cols, 2.0);
        let weights = random.rows(outputs, cols, 1.0);
        let bias = random.row(outputs, 1.0);
        let split = outputs / 3;
        let source =
            dense(&[(&weights[..split], Some(&bias[..split])), (&weights[split..], Some(&bias[split..]))]);
        let linear = device.linear(source, dtype)?;
        let input = upload(device, &rows, Half)?;
        let mut out = device.matrix(num_rows, outputs, Half)?;
        device.project(&input, &linear, &mut out)?;
        let expected = reference::project(&rows, &kept(&weights, dtype), &bias).concat();
        close(&device.read(&out)?, &expected, products(demands), || {
            format!("{num_rows} rows of {cols} to {outputs}, {}", dtype.name())
        })?;
    }
    Ok(())
}

/// As many rows as decoding and prompts have, for which a device may have
/// kernels of their own: what is kept in half and in full precision.
pub(super) fn crowds<D: Device>(device: &mut D, demands: &Demands) -> Outcome {
    DTYPES.into_iter().try_for_each(|dtype| crowd(device, demands, dtype))
}

fn crowd<D: Device>(device: &mut D, demands: &Demands, dtype: DenseDtype) -> Outcome {
    let random = &mut Random(demands.seed + 21);
    let cols = demands.cols(96);
    let (rope, kv) = no_pages(demands);
    for (outputs, num_experts) in [(16, 16), (200, 33), (1100, 256)] {
        let weights = random.rows(outputs, cols, 1.0);
        let linear = device.linear(dense(&[(&weights, None)]), dtype)?;
        let router = device.linear(dense(&[(&weights[..num_experts.min(outputs)], None)]), dtype)?;
        let weights = kept(&weights, dtype);
        for num_rows in [5, 14, 20, 40, 64, 100, 260, 600] {
            let rows = random.rows(num_rows, cols, 1.0);
            let input = upload(device, &rows, Half)?;
            let what = |which: &str| format!("{which}: {num_rows} rows to {outputs}, {}", dtype.name());
            let expected = reference::project(&rows, &weights, &vec![0.0; outputs]);
            let mut out = device.matrix(num_rows, outputs, Half)?;
            device.project(&input, &linear, &mut out)?;
            close(&device.read(&out)?, &expected.concat(), products(demands), || what("product"))?;

            let mut batch = device.batch(limits(num_rows), &rope, &kv)?;
            let samples = device.samples(1)?;
            // All rows but the first, backwards.
            let wanted: Vec<u32> = (1..num_rows as u32).rev().collect();
            let picked: Vec<f64> = wanted.iter().flat_map(|&row| expected[row as usize].clone()).collect();
            device.begin(&Columns { logit_rows: wanted, ..columns(num_rows) }, &samples, &mut batch)?;
            let mut logits = device.matrix(num_rows, outputs, Full)?;
            device.lm_head(&input, &linear, &batch, &mut logits)?;
            close(&device.read(&logits)?, &picked, IN_F32, || what("logits"))?;

            let mut routing = device.routing(num_rows, 1)?;
            device.route(&input, &router, &mut routing)?;
            for (found, logits) in device.read_routing(&routing)?.iter().zip(&expected) {
                let logits = &logits[..num_experts.min(outputs)];
                let best = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                ensure(best - logits[found[0].expert as usize] < 1e-5, || what("route"))?;
            }
        }
    }
    Ok(())
}

/// In another order among as many; among fewer, if the device is steady.
pub(super) fn company<D: Device>(device: &mut D, demands: &Demands) -> Outcome {
    let random = &mut Random(demands.seed + 9);
    for (cols, dtype) in [48, 61, 320].into_iter().flat_map(|cols| DTYPES.map(|dtype| (cols, dtype))) {
        let cols = demands.cols(cols);
        let weights = random.rows(70, cols, 1.0);
        let linear = device.linear(dense(&[(&weights, None)]), dtype)?;
        for num_rows in [2, 7, 30, 131] {
            let rows = random.rows(num_rows, cols, 2.0);
            let mut project = |rows: &Rows| -> Result<Vec<f32>, D::Error> {
                let input = upload(device, rows, Half)?;
                let mut out = device.matrix(rows.len(), 70, Half)?;
                device.project(&input, &linear, &mut out)?;
                device.read(&out)
            };
            let all = project(&rows)?;
            let order = random.order(num_rows);
            let moved = project(&order.iter().map(|&row| rows[row].clone()).collect())?;
            for (place, &row) in order.iter().enumerate() {
                same(&moved[place * 70..][..70], &all[row * 70..][..70], || {
                    format!("row {row} of {num_rows} at place {place}, {cols} columns")
                })?;
            }
            for row in [0, num_rows / 2, num_rows - 1] {
                let alone = project(&vec![rows[row].clone()])?;
                let what = || format!("row {row} of {num_rows} alone, {cols} columns");
                if demands.is_steady {
                    same(&alone, &all[row * 70..][..70], what)?;
                } else {
                    let expected: Vec<f64> =
                        all[row * 70..][..70].iter().map(|&value| f64::from(value)).collect();
                    // Either may have been rounded the other way.
                    let tolerance = products(demands);
                    close(
                        &alone,
                        &expected,
                        Tolerance { of_each: 2.0 * tolerance.of_each, ..tolerance },
                        what,
                    )?;
                }
            }
        }
    }
    Ok(())
}

pub(super) fn norms<D: Device>(device: &mut D, demands: &Demands) -> Outcome {
    for (num_rows, cols, _) in SHAPES.into_iter().chain([(3, 2880, 0), (70, 2880, 0)]) {
        let cols = demands.cols(cols);
        let random = &mut Random(demands.seed + cols as u64);
        let (rows, delta) = (random.rows(num_rows, cols, 3.0), random.rows(num_rows, cols, 3.0));
        let gain = random.row(cols, 2.0);
        let norm = device.norm(reference::to_bf16(&gain), 1e-5)?;
        let mut hidden = upload(device, &rows, Full)?;
        let mut normed = device.matrix(num_rows, cols, Half)?;
        device.rms_norm(&hidden, &norm, &mut normed)?;
        let what = |which: &str| format!("{which} of {num_rows} rows of {cols}");
        let expected = reference::rms_norm(&rows, &gain, 1e-5).concat();
        close(&device.read(&normed)?, &expected, products(demands), || what("norm"))?;

        let delta_matrix = upload(device, &delta, Half)?;
        device.add_rms_norm(&delta_matrix, &norm, &mut hidden, &mut normed)?;
        let add = |(a, b): (&Vec<f64>, &Vec<f64>)| a.iter().zip(b).map(|(a, b)| a + b).collect();
        let sum: Rows = rows.iter().zip(&delta).map(add).collect();
        close(&device.read(&hidden)?, &sum.concat(), IN_F32, || what("sum"))?;
        let expected = reference::rms_norm(&sum, &gain, 1e-5).concat();
        close(&device.read(&normed)?, &expected, products(demands), || what("norm of the sum"))?;
    }
    Ok(())
}

pub(super) fn norm_of_zeros<D: Device>(device: &mut D, demands: &Demands) -> Outcome {
    let cols = demands.cols(4);
    let norm = device.norm(reference::to_bf16(&vec![1.0; cols]), 1e-5)?;
    let hidden = upload(device, &vec![vec![0.0; cols]], Full)?;
    let mut normed = device.matrix(1, cols, Half)?;
    device.rms_norm(&hidden, &norm, &mut normed)?;
    close(&device.read(&normed)?, &vec![0.0; cols], EXACTLY, || "normed".to_owned())
}

pub(super) fn router<D: Device>(device: &mut D, demands: &Demands) -> Outcome {
    for (num_experts, top_k) in [(1, 1), (5, 2), (5, 5), (32, 4), (128, 4), (7, 1), (256, 8), (40, 7)] {
        for (num_rows, cols) in [(1, 64), (9, 96), (70, 320)] {
            let random = &mut Random(demands.seed + (num_experts + num_rows) as u64);
            let rows = random.rows(num_rows, cols, 1.0);
            let weights = random.rows(num_experts, cols, 0.5);
            let bias = random.row(num_experts, 0.5);
            let router = device.linear(dense(&[(&weights, Some(&bias))]), DenseDtype::Bf16)?;
            let input = upload(device, &rows, Half)?;
            let mut routing = device.routing(num_rows, top_k)?;
            device.route(&input, &router, &mut routing)?;
            let logits = reference::project(&rows, &weights, &bias);
            let found = device.read_routing(&routing)?;
            ensure(found.len() == num_rows, || format!("{} rows are routed, not {num_rows}", found.len()))?;
            for (row, (found, logits)) in found.iter().zip(&logits).enumerate() {
                let what = || format!("row {row} of {num_rows}, {top_k} of {num_experts} experts");
                let mut order: Vec<usize> = (0..num_experts).collect();
                order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
                order.truncate(top_k);
                let chosen: Vec<usize> = found.iter().map(|choice| choice.expert as usize).collect();
                ensure(chosen.len() == top_k, || format!("{}: {chosen:?}", what()))?;
                // Logits that are all but equal may change places.
                let as_good = chosen.iter().zip(&order).all(|(&chosen, &best)| {
                    chosen < num_experts && (logits[chosen] - logits[best]).abs() < 1e-5
                });
                ensure(as_good, || format!("{}: {chosen:?}, not {order:?}", what()))?;
                let sum: f64 = chosen.iter().map(|&expert| logits[expert].exp()).sum();
                for choice in found {
                    let expected = logits[choice.expert as usize].exp() / sum;
                    let error = (f64::from(choice.weight) - expected).abs();
                    ensure(error < 1e-5, || {
                        format!(
                            "{}: weight {} of expert {}, not {expected}",
                            what(),
                            choice.weight,
                            choice.expert
                        )
                    })?;
                }
            }
        }
    }
    Ok(())
}

pub(super) fn router_ties<D: Device>(device: &mut D, demands: &Demands) -> Outcome {
    for (num_experts, top_k) in [(5, 3), (128, 4), (33, 8)] {
        let cols = demands.cols(32);
        let router =
            device.linear(dense(&[(&vec![vec![1.0; cols]; num_experts], None)]), DenseDtype::Bf16)?;
        let input = upload(device, &vec![vec![0.5; cols]; 3], Half)?;
        let mut routing = device.routing(3, top_k)?;
        device.route(&input, &router, &mut routing)?;
        for found in device.read_routing(&routing)? {
            let chosen: Vec<u32> = found.iter().map(|choice| choice.expert).collect();
            ensure(chosen.iter().copied().eq(0..top_k as u32), || {
                format!("{top_k} of {num_experts} equal experts are {chosen:?}")
            })?;
            let is_even = found.iter().all(|choice| (choice.weight * top_k as f32 - 1.0).abs() < 1e-5);
            ensure(is_even, || format!("equal experts weigh {found:?}"))?;
        }
    }
    Ok(())
}

pub(super) fn head<D: Device>(device: &mut D, demands: &Demands) -> Outcome {
    let random = &mut Random(demands.seed + 3);
    let rows = random.rows(6, 32, 1.0);
    let weights = random.rows(777, 32, 1.0);
    let head = device.linear(dense(&[(&weights, None)]), DenseDtype::Bf16)?;
    let input = upload(device, &rows, Half)?;
    let (rope, kv) = no_pages(demands);
    let mut batch = device.batch(limits(6), &rope, &kv)?;
    let mut samples = device.samples(6)?;
    let wanted = [5u32, 0, 3];
    let step = Columns { logit_rows: wanted.to_vec(), draws: vec![greedy(); 3], ..columns(6) };
    device.begin(&step, &samples, &mut batch)?;
    let mut logits = device.matrix(6, 777, Full)?;
    device.lm_head(&input, &head, &batch, &mut logits)?;
    let picked = wanted.iter().map(|&row| rows[row as usize].clone()).collect();
    let expected = reference::project(&picked, &weights, &[0.0; 777]);
    close(&device.read(&logits)?, &expected.concat(), IN_F32, || "logits".to_owned())?;

    device.sample(&logits, &batch, &mut samples)?;
    let drawn = device.fetch_samples(&samples)?.wait()?;
    ensure(drawn.len() == 3, || format!("{} tokens are drawn from 3 rows", drawn.len()))?;
    for (drawn, logits) in drawn.iter().zip(&expected) {
        let best = (0..777).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
        ensure(Some(drawn.token as usize) == best, || {
            format!("token {} is drawn, not {best:?}", drawn.token)
        })?;
    }

    // Rows of the next step may take their tokens from these samples.
    let table = device.embedding(dense(&[(&weights, None)]))?;
    let feeds = vec![Feed { row: 1, sample: 2 }, Feed { row: 3, sample: 0 }];
    let next = Columns { feeds, ..columns(4) };
    device.begin(&next, &samples, &mut batch)?;
    let mut hidden = device.matrix(4, 32, Full)?;
    device.embed(&table, &batch, &mut hidden)?;
    let tokens = [0, drawn[2].token, 2, drawn[0].token];
    let expected: Vec<f64> = tokens.iter().flat_map(|&token| weights[token as usize].clone()).collect();
    close(&device.read(&hidden)?, &expected, EXACTLY, || "rows of fed tokens".to_owned())
}
