//! Queries, keys and values: the projection, the rotation, and the pages that
//! keys and values are written to.

use crate::batch::Step;
use crate::gpu::GpuError;
use crate::kv_cache::{HEAD_DIM, KvCache};
use crate::linear::{Input, Linear};
use crate::matrix::Matrix;
use crate::product::{self, Product, Results};
use crate::stream::Stream;
use bytemuck::{Pod, Zeroable};
use chorale_device::KvDtype;

/// One layer's projection.
pub(crate) struct Qkv<'a> {
    pub(crate) weights: &'a Linear,
    pub(crate) step: &'a Step,
    pub(crate) cache: &'a KvCache,
    pub(crate) layer: usize,
}

/// Word for word `QkvArgs` of kernels/qkv.cuh.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct QkvArgs {
    product: Product,
    queries: u64,
    layer: u64,
    exponents: u64,
    step: u64,
    positions: u64,
    row_slices: u64,
    slices: u64,
    rotary: u64,
    query_stride: u32,
    query_outputs: u32,
    num_kv_heads: u32,
    block_size: u32,
    sliding: u32,
    pad: u32,
}

/// For a kernel that takes its input by a tensor map.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct QkvHopperArgs {
    input: [u64; 16],
    qkv: QkvArgs,
    pad: [u64; 15],
}

impl Qkv<'_> {
    pub(crate) fn run(
        &self,
        stream: &mut Stream,
        normed: &Matrix,
        queries: &mut Matrix,
    ) -> Result<(), GpuError> {
        let Self { weights, step, cache, layer } = *self;
        let shape = cache.shape();
        assert_eq!(shape.head_dim, HEAD_DIM, "qkv: width of a head");
        assert_eq!(queries.cols(), shape.num_query_heads * HEAD_DIM, "qkv: columns of queries");
        let outputs = (shape.num_query_heads + 2 * shape.num_kv_heads) * HEAD_DIM;
        assert_eq!(weights.rows(), outputs, "qkv: rows for queries, keys and values");
        if normed.rows() == 0 {
            return Ok(());
        }
        let product = weights.product(&Input::all(normed));
        // The exponent of an FP8 row follows from all of its values.
        let whole_heads = if shape.dtype == KvDtype::Fp8 { 2 * shape.num_kv_heads as u32 } else { 0 };
        let results = Results::Qkv { whole_heads };
        let cut = product::cut(&product, weights.dtype(), results, (stream.facts(), stream.options()));
        let args = QkvArgs {
            product,
            queries: queries.address(),
            layer: cache.layer(layer),
            exponents: cache.exponents(layer),
            step: step.address,
            positions: step.positions,
            row_slices: step.row_slices,
            slices: step.slices,
            rotary: step.rotary,
            query_stride: queries.stride() as u32,
            query_outputs: queries.cols() as u32,
            num_kv_heads: shape.num_kv_heads as u32,
            block_size: shape.block_size as u32,
            sliding: u32::from(shape.windows[layer].is_some()),
            pad: 0,
        };
        if let Some(box_rows) = cut.box_rows {
            let input = stream.gpu().tensor_map(&product.input_map(box_rows))?;
            let args = QkvHopperArgs { input, qkv: args, pad: [0; 15] };
            stream.launch(cut.kernel, cut.grid, cut.shared_bytes, &args);
        } else {
            stream.launch(cut.kernel, cut.grid, cut.shared_bytes, &args);
        }
        Ok(())
    }
}
