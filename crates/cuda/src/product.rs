//! How a product with dense weights is cut for the GPU: which kernel computes
//! it, and with how many blocks. The kernels are kernels/linear_skinny.cuh for
//! few rows of input, and for many kernels/linear_warpgroups.cuh on Hopper and
//! kernels/linear_tiled.cuh elsewhere.

use crate::gpu::{Facts, TensorMap};
use crate::launch::Kernel;
use bytemuck::{Pod, Zeroable};

/// Rows of a tile of the weights.
pub(crate) const TILE_ROWS: usize = 16;
/// Bytes of a tile's 16 columns.
const FRAGMENT_BYTES: u32 = 512;
const THREADS: u32 = 256;
/// Outputs of a block that takes many rows.
const BLOCK_OUTPUTS: u32 = 128;
/// Bytes of 64 columns.
const CHUNK_BYTES: u32 = 128;

/// The operands, word for word `Product` of kernels/linear.cuh.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Product {
    pub(crate) weights: u64,
    pub(crate) bias: u64,
    pub(crate) input: u64,
    /// Which rows of the input; 0 takes the first ones.
    pub(crate) picked: u64,
    /// Rows of the weights.
    pub(crate) outputs: u32,
    pub(crate) cols: u32,
    /// Rows of the input.
    pub(crate) rows: u32,
    /// Of the input, in elements.
    pub(crate) stride: u32,
}

/// What becomes of the results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Results {
    /// A bf16 matrix.
    Half,
    /// An f32 matrix.
    Full,
    /// Queries, keys and values.
    Qkv,
}

/// A kernel with its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    pub(crate) kernel: Kernel,
    pub(crate) grid: [u32; 3],
    pub(crate) shared_bytes: u32,
    /// How many rows of input it copies at once, if it takes a tensor map.
    pub(crate) box_rows: Option<u32>,
}

/// Names of a kernel by what becomes of its results.
#[derive(Clone, Copy)]
struct Names {
    half: &'static str,
    full: &'static str,
    qkv: &'static str,
}

/// A kernel for few rows: see `Skinny`.
#[derive(Clone, Copy)]
struct Skinny {
    names: Names,
    tokens: u32,
    tiles: u32,
    steps: u32,
    stages: u32,
}

/// A kernel for many rows: see `Tiled`.
#[derive(Clone, Copy)]
struct Tiled {
    names: Names,
    tokens: u32,
    stages: u32,
}

/// A kernel for many rows on Hopper: see `Warpgroups`.
#[derive(Clone, Copy)]
struct Wide {
    names: Names,
    tokens: u32,
    multipliers: u32,
    stages: u32,
    /// How long a piece takes beside others'.
    time: u32,
}

const SKINNY_8X1: Skinny = Skinny {
    names: Names { half: "linear_half_8x1", full: "linear_full_8x1", qkv: "qkv_8x1" },
    tokens: 8,
    tiles: 1,
    steps: 2,
    stages: 7,
};

/// By the rows of input that they take.
const SKINNY: [Skinny; 4] = [
    Skinny {
        names: Names { half: "linear_half_8x2", full: "linear_full_8x2", qkv: "qkv_8x2" },
        tokens: 8,
        tiles: 2,
        steps: 2,
        stages: 4,
    },
    Skinny {
        names: Names { half: "linear_half_16x2", full: "linear_full_16x2", qkv: "qkv_16x2" },
        tokens: 16,
        tiles: 2,
        steps: 1,
        stages: 6,
    },
    Skinny {
        names: Names { half: "linear_half_32x2", full: "linear_full_32x2", qkv: "qkv_32x2" },
        tokens: 32,
        tiles: 2,
        steps: 1,
        stages: 5,
    },
    Skinny {
        names: Names { half: "linear_half_64x2", full: "linear_full_64x2", qkv: "qkv_64x2" },
        tokens: 64,
        tiles: 2,
        steps: 1,
        stages: 3,
    },
];

const TILED_128: Tiled = Tiled {
    names: Names { half: "linear_half_tiled128", full: "linear_full_tiled128", qkv: "qkv_tiled128" },
    tokens: 128,
    stages: 3,
};

const TILED_32: Tiled = Tiled {
    names: Names { half: "linear_half_tiled32", full: "linear_full_tiled32", qkv: "qkv_tiled32" },
    tokens: 32,
    stages: 4,
};

/// The first multiplies as fast as a processor can; the others wait for the
/// cache, each in proportion to what a piece reads.
const WIDE: [Wide; 3] = [
    Wide {
        names: Names { half: "linear_half_wide256", full: "linear_full_wide256", qkv: "qkv_wide256" },
        tokens: 256,
        multipliers: 2,
        stages: 4,
        time: 100,
    },
    Wide {
        names: Names { half: "linear_half_wide128", full: "linear_full_wide128", qkv: "qkv_wide128" },
        tokens: 128,
        multipliers: 2,
        stages: 6,
        time: 64,
    },
    Wide {
        names: Names { half: "linear_half_narrow128", full: "linear_full_narrow128", qkv: "qkv_narrow128" },
        tokens: 128,
        multipliers: 1,
        stages: 8,
        time: 48,
    },
];

/// Tiles of so many rows of weights.
pub(crate) fn tiles_of(rows: usize) -> usize {
    rows.div_ceil(TILE_ROWS)
}

/// Bytes of packed weights: columns are padded to 64, rows to 16.
pub(crate) fn packed_bytes(rows: usize, cols: usize) -> usize {
    tiles_of(rows) * (cols.div_ceil(64) * 4) * FRAGMENT_BYTES as usize
}

/// Chooses the kernel and its blocks, for at least one row and one output.
pub(crate) fn cut(product: &Product, results: Results, facts: &Facts) -> Cut {
    let Product { outputs, rows, picked, .. } = *product;
    let tiles = outputs.div_ceil(TILE_ROWS as u32);
    let sms = facts.num_sms.max(1);
    // Of a matrix of few rows, such as a router, there are not enough tiles for
    // all processors: then each takes few rows of the input, and reads the weights
    // from the cache again.
    let is_small = tiles <= sms / 4;
    if is_small && rows <= 512 {
        return SKINNY_8X1.cut(tiles, rows, results, sms);
    }
    if let Some(kernel) = SKINNY.iter().find(|kernel| rows <= kernel.tokens) {
        // Two tiles at a time halve what is read of the input, which matters the
        // less the fewer rows it has: then rather work for all processors.
        let is_narrow = kernel.tokens == SKINNY_8X1.tokens && tiles / 2 < sms;
        let kernel = if is_narrow { &SKINNY_8X1 } else { kernel };
        return kernel.cut(tiles, rows, results, sms);
    }
    if TILED_128.blocks(product) < sms / 4 {
        return TILED_32.cut(product, results);
    }
    // Tensor maps gather no rows.
    if !facts.is_hopper() || picked != 0 {
        return TILED_128.cut(product, results);
    }
    let time = |kernel: &Wide| kernel.pieces(product).div_ceil(sms) * kernel.time;
    let [first, others @ ..] = WIDE;
    let fastest = others
        .into_iter()
        .fold(first, |best, kernel| if time(&kernel) < time(&best) { kernel } else { best });
    fastest.cut(product, results, sms)
}

impl Names {
    fn kernel(&self, results: Results, threads: u32) -> Kernel {
        let name = match results {
            Results::Half => self.half,
            Results::Full => self.full,
            Results::Qkv => self.qkv,
        };
        Kernel { name, threads }
    }
}

impl Skinny {
    const WARPS: u32 = THREADS / 32;
    /// Blocks that an SM holds at once.
    const BLOCKS_PER_SM: u32 = 2;

    fn cut(&self, tiles: u32, rows: u32, results: Results, sms: u32) -> Cut {
        // Each block does as many groups of tiles as the others, and all run at once.
        let groups = tiles.div_ceil(self.tiles);
        let groups_per_block = groups.div_ceil(sms * Self::BLOCKS_PER_SM);
        Cut {
            kernel: self.names.kernel(results, THREADS),
            grid: [groups.div_ceil(groups_per_block), rows.div_ceil(self.tokens), 1],
            shared_bytes: self.shared_bytes(),
            box_rows: None,
        }
    }

    /// A ring and sums for each warp, and 8 bytes for each row of input.
    fn shared_bytes(&self) -> u32 {
        let stage = self.steps * (self.tiles * FRAGMENT_BYTES + self.tokens * 32);
        Self::WARPS * (self.stages * stage + self.tiles * FRAGMENT_BYTES) + self.tokens * 8
    }
}

impl Tiled {
    fn grid(&self, product: &Product) -> [u32; 3] {
        [product.outputs.div_ceil(BLOCK_OUTPUTS), product.rows.div_ceil(self.tokens), 1]
    }

    fn blocks(&self, product: &Product) -> u32 {
        self.grid(product).into_iter().product()
    }

    fn cut(&self, product: &Product, results: Results) -> Cut {
        Cut {
            kernel: self.names.kernel(results, THREADS),
            grid: self.grid(product),
            shared_bytes: self.stages * (BLOCK_OUTPUTS + self.tokens) * CHUNK_BYTES + self.tokens * 8,
            box_rows: None,
        }
    }
}

impl Wide {
    /// What a warpgroup lays results out in.
    const RESULT_BYTES: u32 = 64 * (64 * 2 + 16);

    /// Of a piece: 64 for each warpgroup that multiplies.
    fn outputs(&self) -> u32 {
        self.multipliers * 64
    }

    /// Pieces of the product.
    fn pieces(&self, product: &Product) -> u32 {
        product.outputs.div_ceil(self.outputs()) * product.rows.div_ceil(self.tokens)
    }

    /// Each processor takes piece after piece.
    fn cut(&self, product: &Product, results: Results, sms: u32) -> Cut {
        let ring = self.stages * (self.outputs() + self.tokens) * CHUNK_BYTES;
        Cut {
            // One more warpgroup copies.
            kernel: self.names.kernel(results, 128 + self.multipliers * 128),
            grid: [self.pieces(product).min(sms), 1, 1],
            // Beside it, a place for each row of input, and two barriers a stage.
            shared_bytes: ring + self.multipliers * (Self::RESULT_BYTES + self.tokens * 8) + self.stages * 16,
            box_rows: Some(self.tokens),
        }
    }
}

impl Product {
    /// How a kernel that copies `box_rows` rows at once finds the input.
    pub(crate) fn input_map(&self, box_rows: u32) -> TensorMap {
        TensorMap {
            address: self.input,
            rows: u64::from(self.rows),
            cols: u64::from(self.cols),
            row_bytes: u64::from(self.stride) * size_of::<u16>() as u64,
            box_rows,
            box_cols: 64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The least that a GPU of compute capability 8.0 or later gives a block.
    const SHARED_BYTES_MIN: u32 = 99 * 1024;

    #[test]
    fn kernels_fit_into_the_smallest_shared_memory() {
        for kernel in SKINNY.iter().chain([&SKINNY_8X1]) {
            assert!(kernel.shared_bytes() <= SHARED_BYTES_MIN, "{}", kernel.names.half);
        }
        for kernel in [TILED_128, TILED_32] {
            assert!(
                kernel.cut(&Product::zeroed(), Results::Half).shared_bytes <= SHARED_BYTES_MIN,
                "{}",
                kernel.names.half
            );
        }
    }

    /// The kernel's name and its blocks, with one matrix of bf16 as result.
    fn names(outputs: u32, rows: u32, capability: (u32, u32)) -> (&'static str, u32, u32) {
        let facts = Facts {
            name: "GPU".to_owned(),
            capability,
            num_sms: 132,
            shared_bytes_max: 227 * 1024,
            memory_bytes: 80 << 30,
            memory_bytes_per_s: 3 << 40,
            driver: 13000,
        };
        let product = Product { outputs, rows, ..Product::zeroed() };
        let cut = cut(&product, Results::Half, &facts);
        assert!(cut.shared_bytes <= facts.shared_bytes_max);
        (cut.kernel.name, cut.grid[0], cut.grid[1])
    }

    #[test]
    fn gpt_oss_is_cut_for_132_processors() {
        let generic = |outputs, rows| names(outputs, rows, (8, 0));
        assert_eq!(generic(5120, 1), ("linear_half_8x2", 160, 1));
        assert_eq!(generic(2880, 1), ("linear_half_8x1", 180, 1));
        assert_eq!(generic(2880, 9), ("linear_half_16x2", 90, 1));
        assert_eq!(generic(128, 1), ("linear_half_8x1", 8, 1));
        assert_eq!(generic(128, 64), ("linear_half_8x1", 8, 8));
        assert_eq!(generic(201_088, 8), ("linear_half_8x2", 262, 1));
        assert_eq!(generic(201_088, 33), ("linear_half_64x2", 262, 1));
        assert_eq!(generic(5120, 4096), ("linear_half_tiled128", 40, 32));
        assert_eq!(generic(128, 2048), ("linear_half_tiled32", 1, 64));
    }

    #[test]
    fn hopper_has_kernels_of_its_own_for_many_rows() {
        let hopper = |outputs, rows| names(outputs, rows, (9, 0));
        assert_eq!(hopper(5120, 64), ("linear_half_64x2", 160, 1));
        assert_eq!(hopper(5120, 100), ("linear_half_narrow128", 80, 1));
        assert_eq!(hopper(5120, 200), ("linear_half_wide128", 80, 1));
        assert_eq!(hopper(5120, 4096), ("linear_half_wide256", 132, 1));
        assert_eq!(hopper(2880, 4096), ("linear_half_wide256", 132, 1));
        assert_eq!(hopper(128, 2048), ("linear_half_tiled32", 1, 64));
    }
}
