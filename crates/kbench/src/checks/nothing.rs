//! Steps without rows: a rank takes part in them whenever only others have
//! something to compute, so every operation must take none.

use super::{limits, no_pages};
use crate::demands::Demands;
use crate::failure::{Outcome, ensure};
use crate::reference::{Experts, Random, dense, to_bf16};
use chorale_device::Precision::{Full, Half};
use chorale_device::{Columns, DenseDtype, Device, KvDtype, KvShape};

pub(super) fn no_rows<D: Device>(device: &mut D, demands: &Demands) -> Outcome {
    let random = &mut Random(demands.seed + 1);
    let (hidden_size, num_experts) = (32, 3);
    let head_dim = demands.head_dims[0];
    let (num_heads, num_kv_heads) = (2, 1);
    let weights = random.rows(32, hidden_size, 1.0);
    let qkv = random.rows((num_heads + 2 * num_kv_heads) * head_dim, hidden_size, 1.0);
    let linear = device.linear(dense(&[(&weights, None)]), DenseDtype::Bf16)?;
    let qkv = device.linear(dense(&[(&qkv, None)]), DenseDtype::Bf16)?;
    let router = device.linear(dense(&[(&weights[..num_experts], None)]), DenseDtype::Bf16)?;
    let table = device.embedding(dense(&[(&weights, None)]))?;
    let norm = device.norm(to_bf16(&vec![1.0; hidden_size]), 1e-5)?;
    let sinks = device.sinks(to_bf16(&vec![0.0; num_heads]))?;
    let packed = device.experts(Experts::random(random, num_experts, hidden_size, 32).source)?;
    let shape = KvShape {
        windows: vec![None],
        num_query_heads: num_heads,
        num_kv_heads,
        head_dim,
        dtype: KvDtype::Bf16,
        block_size: 8,
        num_full_blocks: 1,
        num_sliding_blocks: 1,
    };
    let (rope, _) = no_pages(demands);
    let mut cache = device.kv_cache(&shape)?;
    let (mut hidden, mut logits) = (device.matrix(4, hidden_size, Full)?, device.matrix(4, 32, Full)?);
    let mut half = |cols| device.matrix(4, cols, Half);
    let (mut normed, mut out) = (half(hidden_size)?, half(hidden_size)?);
    let (mut queries, mut context) = (half(num_heads * head_dim)?, half(num_heads * head_dim)?);
    let mut outputs = device.matrix(8, hidden_size, Half)?;
    let mut batch = device.batch(limits(4), &rope, &shape)?;
    let mut samples = device.samples(4)?;
    let mut routing = device.routing(4, 2)?;
    let mut groups = device.groups(&[0, 1, 2])?;

    ensure(device.read(&hidden)?.is_empty(), || "a new matrix has rows".to_owned())?;
    ensure(device.read_routing(&routing)?.is_empty(), || "a new routing has rows".to_owned())?;
    device.begin(&Columns::default(), &samples, &mut batch)?;
    device.embed(&table, &batch, &mut hidden)?;
    device.rms_norm(&hidden, &norm, &mut normed)?;
    device.qkv(&normed, &qkv, &batch, &mut cache, 0, &mut queries)?;
    device.attention(&queries, &sinks, &batch, &cache, 0, &mut context)?;
    device.project(&normed, &linear, &mut out)?;
    device.add_rms_norm(&out, &norm, &mut hidden, &mut normed)?;
    device.route(&normed, &router, &mut routing)?;
    device.group(&routing, &mut groups)?;
    device.run_experts(&normed, &groups, &packed, &mut outputs)?;
    device.group_choices(&[], &mut groups)?;
    device.run_experts(&normed, &groups, &packed, &mut outputs)?;
    device.combine_rms_norm(&outputs, &routing, &norm, &mut hidden, &mut normed)?;
    device.lm_head(&normed, &linear, &batch, &mut logits)?;
    device.sample(&logits, &batch, &mut samples)?;
    device.write(&[], &mut out)?;
    for (name, matrix) in [
        ("hidden", &hidden),
        ("normed", &normed),
        ("out", &out),
        ("queries", &queries),
        ("context", &context),
        ("logits", &logits),
        ("outputs", &outputs),
    ] {
        ensure(device.read(matrix)?.is_empty(), || format!("{name} has rows"))?;
    }
    ensure(device.read_routing(&routing)?.is_empty(), || "the routing has rows".to_owned())?;
    ensure(device.fetch_samples(&samples)?.wait()?.is_empty(), || "tokens are drawn".to_owned())
}

/// A rank may hold no expert of a layer.
pub(super) fn no_experts<D: Device>(device: &mut D, demands: &Demands) -> Outcome {
    let layer = Experts::random(&mut Random(demands.seed + 2), 0, 32, 32);
    let packed = device.experts(layer.source)?;
    let mut groups = device.groups(&[])?;
    device.group_choices(&[], &mut groups)?;
    let rows = device.matrix(4, 32, Half)?;
    let mut outputs = device.matrix(4, 32, Half)?;
    device.run_experts(&rows, &groups, &packed, &mut outputs)?;
    ensure(device.read(&outputs)?.is_empty(), || "nobody's outputs have rows".to_owned())
}
