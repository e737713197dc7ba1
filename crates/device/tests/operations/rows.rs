//! Operations on rows alone: norms, projections, the router, the head, and what
//! a row must not notice of its neighbours.

use crate::reference::{self, Random, dense};
use crate::{ROPE, assert_close, columns, cpu, greedy, limits, upload};
use chorale_device::{Columns, Device, Feed};

const SHAPES: [(usize, usize, usize); 8] = [
    (1, 1, 1),
    (1, 7, 5),
    (2, 16, 33),
    (3, 100, 64),
    (5, 17, 130),
    (1, 96, 777),
    (33, 64, 31),
    (130, 48, 40),
];

#[test]
fn projections_agree_with_plain_loops() {
    let device = &mut cpu();
    for (num_rows, cols, outputs) in SHAPES {
        let random = &mut Random(num_rows as u64);
        let rows = random.rows(num_rows, cols, 2.0);
        let weights = random.rows(outputs, cols, 1.0);
        let bias = random.row(outputs, 1.0);
        let split = outputs / 3;
        let source =
            dense(&[(&weights[..split], Some(&bias[..split])), (&weights[split..], Some(&bias[split..]))]);
        let linear = device.linear(source).unwrap();
        let input = upload(device, &rows);
        let mut out = device.matrix(num_rows, outputs).unwrap();
        device.project(&input, &linear, &mut out).unwrap();
        let expected = reference::project(&rows, &weights, &bias);
        assert_close(&device.read(&out).unwrap(), &expected, 1e-6, "project");
    }
}

#[test]
fn a_row_gets_the_same_bits_in_any_company() {
    let device = &mut cpu();
    let random = &mut Random(9);
    for cols in [48, 61, 320] {
        let rows = random.rows(131, cols, 2.0);
        let weights = random.rows(70, cols, 1.0);
        let linear = device.linear(dense(&[(&weights, None)])).unwrap();
        let mut all = device.matrix(131, 70).unwrap();
        let input = upload(device, &rows);
        device.project(&input, &linear, &mut all).unwrap();
        let all = device.read(&all).unwrap();
        for row in [0, 1, 64, 127, 128, 130] {
            let input = upload(device, &vec![rows[row].clone()]);
            let mut alone = device.matrix(1, 70).unwrap();
            device.project(&input, &linear, &mut alone).unwrap();
            assert_eq!(device.read(&alone).unwrap(), all[row * 70..][..70], "row {row} of {cols} columns");
        }
    }
}

#[test]
fn norms_agree_with_plain_loops() {
    let device = &mut cpu();
    for (num_rows, cols, _) in SHAPES {
        let random = &mut Random(cols as u64);
        let (rows, delta) = (random.rows(num_rows, cols, 3.0), random.rows(num_rows, cols, 3.0));
        let gain = random.row(cols, 2.0);
        let norm = device.norm(reference::to_bf16(&gain), 1e-5).unwrap();
        let mut hidden = upload(device, &rows);
        let mut normed = device.matrix(num_rows, cols).unwrap();
        device.rms_norm(&hidden, &norm, &mut normed).unwrap();
        let expected = reference::rms_norm(&rows, &gain, 1e-5);
        assert_close(&device.read(&normed).unwrap(), &expected, 1e-6, "rms_norm");

        let delta_matrix = upload(device, &delta);
        device.add_rms_norm(&delta_matrix, &norm, &mut hidden, &mut normed).unwrap();
        let add = |(a, b): (&Vec<f64>, &Vec<f64>)| a.iter().zip(b).map(|(a, b)| a + b).collect();
        let sum = rows.iter().zip(&delta).map(add).collect();
        assert_close(&device.read(&hidden).unwrap(), &sum, 1e-6, "residual");
        let expected = reference::rms_norm(&sum, &gain, 1e-5);
        assert_close(&device.read(&normed).unwrap(), &expected, 1e-6, "add_rms_norm");
    }
}

#[test]
fn a_row_of_zeros_norms_to_zeros() {
    let device = &mut cpu();
    let norm = device.norm(reference::to_bf16(&[1.0; 4]), 1e-5).unwrap();
    let hidden = upload(device, &vec![vec![0.0; 4]]);
    let mut normed = device.matrix(1, 4).unwrap();
    device.rms_norm(&hidden, &norm, &mut normed).unwrap();
    assert_eq!(device.read(&normed).unwrap(), [0.0; 4]);
}

#[test]
fn the_router_chooses_by_logit_and_weighs_by_softmax() {
    let device = &mut cpu();
    for (num_experts, top_k) in [(1, 1), (5, 2), (5, 5), (32, 4), (128, 4), (7, 1)] {
        let random = &mut Random(num_experts as u64);
        let rows = random.rows(9, 64, 1.0);
        let weights = random.rows(num_experts, 64, 0.5);
        let bias = random.row(num_experts, 0.5);
        let router = device.linear(dense(&[(&weights, Some(&bias))])).unwrap();
        let input = upload(device, &rows);
        let mut routing = device.routing(9, top_k).unwrap();
        device.route(&input, &router, &mut routing).unwrap();
        let logits = reference::project(&rows, &weights, &bias);
        for (found, logits) in device.read_routing(&routing).unwrap().iter().zip(&logits) {
            let mut order: Vec<usize> = (0..num_experts).collect();
            order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
            order.truncate(top_k);
            assert_eq!(found.iter().map(|choice| choice.expert as usize).collect::<Vec<_>>(), order);
            let sum: f64 = order.iter().map(|&expert| logits[expert].exp()).sum();
            for (choice, &expert) in found.iter().zip(&order) {
                assert!((f64::from(choice.weight) - logits[expert].exp() / sum).abs() < 1e-5);
            }
        }
    }
}

#[test]
fn the_head_answers_the_wanted_rows_and_samples_them() {
    let device = &mut cpu();
    let random = &mut Random(3);
    let rows = random.rows(6, 32, 1.0);
    let weights = random.rows(50, 32, 1.0);
    let head = device.linear(dense(&[(&weights, None)])).unwrap();
    let input = upload(device, &rows);
    let mut batch = device.batch(limits(6), &ROPE).unwrap();
    let mut samples = device.samples(6).unwrap();
    let wanted = [5u32, 0, 3];
    let step = Columns { logit_rows: wanted.to_vec(), draws: vec![greedy(); 3], ..columns(6) };
    device.begin(&step, &samples, &mut batch).unwrap();
    let mut logits = device.matrix(6, 50).unwrap();
    device.lm_head(&input, &head, &batch, &mut logits).unwrap();
    let picked = wanted.iter().map(|&row| rows[row as usize].clone()).collect();
    let expected = reference::project(&picked, &weights, &[0.0; 50]);
    assert_close(&device.read(&logits).unwrap(), &expected, 1e-6, "logits");

    device.sample(&logits, &batch, &mut samples).unwrap();
    let drawn = device.read_samples(&samples).unwrap();
    for (drawn, logits) in drawn.iter().zip(&expected) {
        let best = (0..50).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
        assert_eq!(drawn.token as usize, best);
    }

    // A row of the next step may take its token from these samples.
    let table = device.embedding(dense(&[(&weights, None)])).unwrap();
    let next = Columns { feeds: vec![Feed { row: 1, sample: 2 }], ..columns(2) };
    device.begin(&next, &samples, &mut batch).unwrap();
    let mut hidden = device.matrix(2, 32).unwrap();
    device.embed(&table, &batch, &mut hidden).unwrap();
    let expected = vec![weights[0].clone(), weights[drawn[2].token as usize].clone()];
    assert_close(&device.read(&hidden).unwrap(), &expected, 0.0, "fed rows");
}
