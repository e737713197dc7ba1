//! Which experts a row goes to. The kernels are in kernels/route.cu.

use crate::gpu::GpuError;
use crate::launch::Kernel;
use crate::linear::{Input, Linear, Output};
use crate::matrix::Matrix;
use crate::memory::Memory;
use crate::product::{self, Product, Results};
use crate::stream::Stream;
use bytemuck::{Pod, Zeroable};
use chorale_device::{Needs, Precision, Routed};
use std::sync::Arc;

/// What a warp holds of a row's logits.
const MAX_EXPERTS: usize = 256;
/// A choice for each lane of a warp.
const MAX_TOP_K: usize = 32;
const ROWS_PER_BLOCK: usize = 4;

/// Rows that share a counter in `ROUTE_FEW`.
const COUNTED_ROWS: usize = 8;

const ROUTE_TOP: Kernel = Kernel { name: "route_top", threads: 32 * ROWS_PER_BLOCK as u32 };
/// A product and the choice in one launch: where the product's kernel would be `FEW`.
const ROUTE_FEW: Kernel = Kernel { name: "route_few", threads: 256 };
const FEW: &str = "linear_full_8x1";

/// Buffers that keep their capacity between calls.
#[derive(Default)]
pub(crate) struct Scratch {
    logits: Option<Memory>,
    /// 0 between launches.
    counters: Option<Memory>,
}

/// The chosen experts of each row, best first.
pub struct Routing {
    /// u32 `[max_rows, top_k]`; few choices are grouped where they lie, so
    /// groups keep them, too.
    pub(crate) experts: Arc<Memory>,
    /// f32 `[max_rows, top_k]`.
    pub(crate) weights: Memory,
    pub(crate) top_k: usize,
    pub(crate) rows: usize,
    max_rows: usize,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct RouteArgs {
    logits: u64,
    experts: u64,
    weights: u64,
    num_rows: u32,
    num_experts: u32,
    stride: u32,
    top_k: u32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct RouteProductArgs {
    route: RouteArgs,
    product: Product,
    counters: u64,
}

impl Routing {
    pub(crate) fn new(stream: &Stream, max_rows: usize, top_k: usize) -> Result<Self, GpuError> {
        let room = || stream.alloc(max_rows * top_k * size_of::<u32>());
        Ok(Self { experts: Arc::new(room()?), weights: room()?, top_k, rows: 0, max_rows })
    }

    /// Choices that there is room for.
    pub(crate) fn max_choices(&self) -> usize {
        self.max_rows * self.top_k
    }

    /// Chooses each row's experts.
    pub(crate) fn choose(
        &mut self,
        stream: &mut Stream,
        normed: &Matrix,
        router: &Linear,
        scratch: &mut Scratch,
    ) -> Result<(), GpuError> {
        let (num_rows, num_experts) = (normed.rows(), router.rows());
        assert!(num_rows <= self.max_rows, "{num_rows} rows in a routing for {}", self.max_rows);
        assert!((1..=MAX_EXPERTS).contains(&num_experts), "{num_experts} experts, at most {MAX_EXPERTS}");
        assert!((1..=num_experts.min(MAX_TOP_K)).contains(&self.top_k), "{} choices", self.top_k);
        self.rows = num_rows;
        if num_rows == 0 {
            return Ok(());
        }
        // Rows as a matrix has them.
        let stride = num_experts.next_multiple_of(8);
        let logits = stream.grow(&mut scratch.logits, self.max_rows * stride * size_of::<f32>())?;
        let counters = scratch.counters(stream, self.max_rows)?;
        let route = RouteArgs {
            logits,
            experts: self.experts.address(),
            weights: self.weights.address(),
            num_rows: num_rows as u32,
            num_experts: num_experts as u32,
            stride: stride as u32,
            top_k: self.top_k as u32,
        };
        let input = Input::all(normed);
        let product = router.product(&input);
        let cut = product::cut(&product, router.dtype(), Results::Full, (stream.facts(), stream.options()));
        if cut.kernel.name == FEW {
            let args = RouteProductArgs { route, product, counters };
            stream.launch(ROUTE_FEW, cut.grid, cut.shared_bytes, &args);
            return Ok(());
        }
        let output = Output { address: logits, stride, precision: Precision::Full };
        router.multiply(stream, &input, &output)?;
        stream.launch(ROUTE_TOP, [num_rows.div_ceil(ROWS_PER_BLOCK) as u32, 1, 1], 0, &route);
        Ok(())
    }

    pub(crate) fn read(&self, stream: &mut Stream) -> Result<Vec<Vec<Routed>>, GpuError> {
        let len = self.rows * self.top_k;
        let (mut experts, mut weights) = (vec![0u32; len], vec![0f32; len]);
        stream.download(&self.experts, 0, bytemuck::cast_slice_mut(&mut experts))?;
        stream.download(&self.weights, 0, bytemuck::cast_slice_mut(&mut weights))?;
        let rows = experts.chunks_exact(self.top_k.max(1)).zip(weights.chunks_exact(self.top_k.max(1)));
        let row = |(experts, weights): (&[u32], &[f32])| {
            let choices = experts.iter().zip(weights);
            choices.map(|(&expert, &weight)| Routed { expert, weight }).collect()
        };
        Ok(rows.map(row).collect())
    }
}

impl Scratch {
    /// Room for the routes of so many rows.
    pub(crate) fn reserve(&mut self, stream: &mut Stream, needs: &Needs<'_>) -> Result<(), GpuError> {
        let max_rows = needs.limits.max_rows;
        if max_rows > 0 {
            let row_bytes = needs.num_experts.next_multiple_of(8) * size_of::<f32>();
            stream.reserve(&mut self.logits, max_rows * row_bytes)?;
            self.counters(stream, max_rows)?;
        }
        Ok(())
    }

    /// Counters that are new are 0; each launch leaves them so.
    fn counters(&mut self, stream: &mut Stream, max_rows: usize) -> Result<u64, GpuError> {
        let len = max_rows.div_ceil(COUNTED_ROWS) * size_of::<u32>();
        let counters = match self.counters.take().filter(|held| held.len() >= len) {
            Some(held) => held,
            None => {
                let counters = stream.alloc(len)?;
                stream.upload(&vec![0u8; len], &counters, 0)?;
                counters
            }
        };
        Ok(self.counters.insert(counters).address())
    }
}
