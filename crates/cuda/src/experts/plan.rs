//! Which kernel multiplies a layer's matrices, and how it is launched.

use super::packed::PackedMatrix;
use crate::gpu::Facts;
use crate::groups::Grouped;
use crate::launch::Kernel;
use crate::options::CudaOptions;
use crate::stream::Stream;
use bytemuck::{Pod, Zeroable};

/// Static shared memory that a kernel may have beside the dynamic, in bytes.
const STATIC_SHARED: usize = 1024;
/// Warps of a block, and tiles of a warp's ring, of the kernels for few rows.
const FEW_WARPS: usize = 8;
const FEW_RING: usize = 9;
const FEW_TOKENS: usize = 8;
/// Row tiles of a block of the kernels for more rows.
const BLOCK_TILES: u32 = 8;
const TILE_CODES: usize = 512;
const TILE_SCALES: usize = 32;
const EDGES_BYTES: usize = 128;
const COLS: usize = 64;

/// Row tiles times splits are at most so many: enough to keep a GPU busy with
/// the four experts of one row.
const SPREAD_TILES: u32 = 720;
const MAX_SPLITS_LOG: u32 = 2;
/// A split has at least so many chunks.
const SPLIT_CHUNKS: u32 = 4;

/// Word for word `ExpertsArgs`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct ExpertsArgs {
    experts: u64,
    input: u64,
    output: u64,
    choices: u64,
    choice_rows: u64,
    local: u64,
    tiles: u64,
    sorted: u64,
    num_tiles: u64,
    weights: PackedMatrix,
    num_known: u32,
    num_slots: u32,
    top_k: u32,
    input_stride: u32,
    output_stride: u32,
    splits_log: u32,
    split_chunks: u32,
    limit: f32,
}

/// One of the two products of a layer.
pub(super) struct Product<'a> {
    /// The table of the experts' addresses.
    pub(super) experts: u64,
    pub(super) weights: &'a PackedMatrix,
    /// Address and stride in elements.
    pub(super) input: (u64, usize),
    pub(super) output: (u64, usize),
    /// For gate and up the limit of the SwiGLU; none for down.
    pub(super) limit: Option<f32>,
}

/// A kernel in both directions.
#[derive(Clone, Copy)]
struct Pair {
    up: &'static str,
    down: &'static str,
}

/// A kernel of experts_tiled.cu or of experts_sm90.cu: slots of its tiles, and
/// stages of its ring.
struct Tiled {
    pair: Pair,
    tokens: usize,
    stages: usize,
}

const SPREAD: Pair = Pair { up: "experts_few_up_spread", down: "experts_few_down_spread" };
const FEW: Pair = Pair { up: "experts_few_up", down: "experts_few_down" };
const TILED: [Tiled; 4] = [
    Tiled { pair: Pair { up: "experts_tiled_up_16", down: "experts_tiled_down_16" }, tokens: 16, stages: 6 },
    Tiled { pair: Pair { up: "experts_tiled_up_32", down: "experts_tiled_down_32" }, tokens: 32, stages: 6 },
    Tiled { pair: Pair { up: "experts_tiled_up_64", down: "experts_tiled_down_64" }, tokens: 64, stages: 5 },
    Tiled {
        pair: Pair { up: "experts_tiled_up_128", down: "experts_tiled_down_128" },
        tokens: 128,
        stages: 4,
    },
];

const HOPPER: [Tiled; 2] = [
    Tiled {
        pair: Pair { up: "experts_hopper_up_64", down: "experts_hopper_down_64" },
        tokens: 64,
        stages: 12,
    },
    Tiled {
        pair: Pair { up: "experts_hopper_up_128", down: "experts_hopper_down_128" },
        tokens: 128,
        stages: 9,
    },
];

/// A kernel's launch without its arguments.
struct Shape {
    pair: Pair,
    threads: u32,
    grid: [u32; 3],
    shared_bytes: usize,
}

impl Tiled {
    fn ring_bytes(&self) -> usize {
        self.stages * (self.tokens * COLS * 2 + BLOCK_TILES as usize * (TILE_CODES + TILE_SCALES))
    }
}

impl Product<'_> {
    pub(super) fn launch(&self, stream: &mut Stream, grouped: &Grouped) {
        let splits_log = splits_log(self.weights);
        let shape = self.shape((stream.facts(), stream.options()), grouped, splits_log);
        let args = ExpertsArgs {
            experts: self.experts,
            input: self.input.0,
            output: self.output.0,
            choices: grouped.choices,
            choice_rows: grouped.choice_rows,
            local: grouped.local,
            tiles: grouped.tiles,
            sorted: grouped.sorted,
            num_tiles: grouped.num_tiles,
            weights: *self.weights,
            num_known: grouped.num_known,
            num_slots: grouped.num_slots as u32,
            top_k: grouped.top_k as u32,
            input_stride: self.input.1 as u32,
            output_stride: self.output.1 as u32,
            splits_log,
            split_chunks: self.weights.chunks.div_ceil(1 << splits_log),
            limit: self.limit.unwrap_or(0.0),
        };
        let name = if self.limit.is_some() { shape.pair.up } else { shape.pair.down };
        let kernel = Kernel { name, threads: shape.threads };
        stream.launch(kernel, shape.grid, shape.shared_bytes as u32, &args);
    }

    /// All kernels add in the same order, but whether wgmma rounds as mma does is
    /// nowhere said: a batch-invariant layer, which may have one row for an expert
    /// or thousands, does without wgmma. That costs time where there are many.
    fn shape(&self, (facts, options): (&Facts, CudaOptions), grouped: &Grouped, splits_log: u32) -> Shape {
        let max_tiles = grouped.max_tiles as u32;
        let is_spread = grouped.tiles == 0;
        let few_bytes = self.few_shared_bytes(grouped, if is_spread { splits_log } else { 0 });
        let fits = few_bytes + STATIC_SHARED <= facts.shared_bytes_max as usize;
        if grouped.tile_slots <= FEW_TOKENS && fits {
            let (pair, block_tiles) =
                if is_spread { (SPREAD, BLOCK_TILES >> splits_log) } else { (FEW, BLOCK_TILES) };
            let grid = [self.weights.row_tiles.div_ceil(block_tiles), max_tiles, 1];
            return Shape { pair, threads: FEW_WARPS as u32 * 32, grid, shared_bytes: few_bytes };
        }
        let row_blocks = self.weights.row_tiles.div_ceil(BLOCK_TILES);
        let hopper = HOPPER.iter().find(|tiled| grouped.tile_slots == tiled.tokens);
        if let Some(tiled) = hopper.filter(|_| facts.is_hopper() && !options.batch_invariant) {
            // Blocks stay, one on each multiprocessor.
            let grid = [facts.num_sms.min(row_blocks * max_tiles), 1, 1];
            let features = if self.limit.is_some() { COLS } else { 2 * COLS };
            // Two warpgroups bring half of the features each, in rows that are 8 longer.
            let staged = tiled.tokens * (features + 2 * 8) * size_of::<u16>();
            return Shape { pair: tiled.pair, threads: 384, grid, shared_bytes: tiled.ring_bytes() + staged };
        }
        let tiled = TILED.iter().find(|tiled| grouped.tile_slots <= tiled.tokens);
        let tiled = tiled.unwrap_or(&TILED[TILED.len() - 1]);
        let grid = [row_blocks, max_tiles, 1];
        Shape { pair: tiled.pair, threads: 256, grid, shared_bytes: tiled.ring_bytes() }
    }

    /// As `few_shared` of experts_few.cu counts.
    fn few_shared_bytes(&self, grouped: &Grouped, splits_log: u32) -> usize {
        let chunks = self.weights.chunks as usize;
        let longest = chunks.div_ceil(1 << splits_log);
        let each_warp = FEW_RING * TILE_CODES + longest * TILE_SCALES + EDGES_BYTES;
        let rows = grouped.most_together.min(FEW_TOKENS);
        FEW_WARPS * each_warp + rows * (chunks * COLS * 2 + 16)
    }
}

/// Into how many runs the sum over columns is cut. It depends on the shape of
/// the matrix alone, so that all kernels add in the same order.
fn splits_log(weights: &PackedMatrix) -> u32 {
    let fits = |log: &u32| weights.row_tiles << log <= SPREAD_TILES && weights.chunks >> log >= SPLIT_CHUNKS;
    (1..=MAX_SPLITS_LOG).take_while(fits).last().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experts::packed::Layout;
    use chorale_device::{ExpertsSource, Mxfp4Source};

    #[test]
    fn a_120b_layer_is_spread_and_fits_every_gpu() {
        let (hidden, intermediate) = (2880, 2880);
        let source = |rows, cols| Mxfp4Source { rows, cols, experts: Vec::new() };
        let layout = Layout::new(&ExpertsSource {
            gate_up: source(2 * intermediate, hidden),
            down: source(hidden, intermediate),
            swiglu_limit: 7.0,
        });
        assert_eq!((splits_log(&layout.gate_up), splits_log(&layout.down)), (1, 2));
        let grouped = Grouped { most_together: 8, ..Grouped::default() };
        for weights in [&layout.gate_up, &layout.down] {
            let product = Product { experts: 0, weights, input: (0, 0), output: (0, 0), limit: None };
            for log in [0, splits_log(weights)] {
                assert!(product.few_shared_bytes(&grouped, log) + STATIC_SHARED <= 99 * 1024);
            }
        }
        assert!(TILED.iter().all(|tiled| tiled.ring_bytes() + STATIC_SHARED <= 99 * 1024));
    }

    #[test]
    fn no_split_is_empty() {
        for chunks in 1..500u32 {
            for row_tiles in [2, 180, 360, 720] {
                let mut weights = PackedMatrix::zeroed();
                (weights.row_tiles, weights.chunks) = (row_tiles, chunks);
                let splits = 1 << splits_log(&weights);
                assert!((splits - 1) * chunks.div_ceil(splits) < chunks, "{chunks} in {splits}");
            }
        }
    }
}
