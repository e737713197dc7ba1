//! Steps without rows: a rank takes part in them whenever only others have
//! something to compute, so every operation must take none.

use crate::experts::Layer;
use crate::reference::{self, Random, dense};
use crate::{ROPE, cpu, limits};
use chorale_device::{Columns, Device, KvShape};

fn check<D: Device>(device: &mut D) {
    let random = &mut Random(1);
    let (hidden, experts) = (32, 3);
    let weights = random.rows(32, hidden, 1.0);
    let linear = device.linear(dense(&[(&weights, None)])).unwrap();
    let router = device.linear(dense(&[(&weights[..experts], None)])).unwrap();
    let table = device.embedding(dense(&[(&weights, None)])).unwrap();
    let norm = device.norm(reference::to_bf16(&vec![1.0; hidden]), 1e-5).unwrap();
    let sinks = device.sinks(reference::to_bf16(&[0.0; 2])).unwrap();
    let layer = Layer::random(random, &[0, 1, 2], hidden, 32);
    let packed = device.experts(layer.source.clone()).unwrap();
    let shape = KvShape {
        windows: vec![None],
        num_kv_heads: 1,
        head_dim: 8,
        block_size: 4,
        num_full_blocks: 1,
        num_sliding_blocks: 1,
    };
    let mut cache = device.kv_cache(&shape).unwrap();
    let mut matrix = |cols| device.matrix(4, cols).unwrap();
    let (mut rows, mut normed, mut out) = (matrix(hidden), matrix(hidden), matrix(hidden));
    let (mut queries, mut context, mut logits) = (matrix(16), matrix(16), matrix(32));
    let mut outputs = device.matrix(8, hidden).unwrap();
    let mut batch = device.batch(limits(4), &ROPE).unwrap();
    let mut samples = device.samples(4).unwrap();
    let mut routing = device.routing(4, 2).unwrap();
    let mut groups = device.groups(&[0, 1, 2]).unwrap();

    assert!(device.read(&rows).unwrap().is_empty(), "a new matrix has no rows");
    assert!(device.read_routing(&routing).unwrap().is_empty(), "nor has a new routing");
    device.begin(&Columns::default(), &samples, &mut batch).unwrap();
    device.embed(&table, &batch, &mut rows).unwrap();
    device.rms_norm(&rows, &norm, &mut normed).unwrap();
    device.qkv(&normed, &linear, &batch, &mut cache, 0, &mut queries).unwrap();
    device.attention(&queries, &sinks, &batch, &cache, 0, &mut context).unwrap();
    device.project(&normed, &linear, &mut out).unwrap();
    device.add_rms_norm(&out, &norm, &mut rows, &mut normed).unwrap();
    device.route(&normed, &router, &mut routing).unwrap();
    device.group(&routing, &mut groups).unwrap();
    device.run_experts(&normed, &groups, &packed, &mut outputs).unwrap();
    device.group_choices(&[], &mut groups).unwrap();
    device.run_experts(&normed, &groups, &packed, &mut outputs).unwrap();
    device.combine_rms_norm(&outputs, &routing, &norm, &mut rows, &mut normed).unwrap();
    device.lm_head(&normed, &linear, &batch, &mut logits).unwrap();
    device.sample(&logits, &batch, &mut samples).unwrap();
    device.write(&[], &mut out).unwrap();
    for matrix in [&rows, &normed, &out, &queries, &context, &logits, &outputs] {
        assert!(device.read(matrix).unwrap().is_empty());
    }
    assert!(device.read_routing(&routing).unwrap().is_empty());
    assert!(device.read_samples(&samples).unwrap().is_empty());
}

#[test]
fn every_operation_takes_no_rows() {
    check(&mut cpu());
}

/// A rank may hold no expert of a layer.
fn check_no_experts<D: Device>(device: &mut D) {
    let layer = Layer::random(&mut Random(2), &[], 32, 32);
    let packed = device.experts(layer.source.clone()).unwrap();
    let mut groups = device.groups(&[]).unwrap();
    device.group_choices(&[], &mut groups).unwrap();
    let rows = device.matrix(4, 32).unwrap();
    let mut outputs = device.matrix(4, 32).unwrap();
    device.run_experts(&rows, &groups, &packed, &mut outputs).unwrap();
    assert!(device.read(&outputs).unwrap().is_empty());
}

#[test]
fn a_layer_without_experts_runs() {
    check_no_experts(&mut cpu());
}
