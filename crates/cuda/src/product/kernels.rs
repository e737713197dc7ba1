//! The kernels that multiply with dense weights, with what the host must know of
//! each. The numbers are those of the `typedef`s at the ends of
//! kernels/linear_skinny.cuh, linear_tiled.cuh and linear_warpgroups.cuh.

use super::{Cut, Product, Results};
use crate::launch::Kernel;
use chorale_device::DenseDtype;

const THREADS: u32 = 256;
/// Outputs of a block that takes many rows.
const BLOCK_OUTPUTS: u32 = 128;
/// Bytes of 64 columns of the input.
const CHUNK_BYTES: u32 = 128;
/// A warp's sums of one tile, of eight rows of input.
const SUM_BYTES: u32 = 512;
/// Tiles of a head, and bytes of one row's results of it.
const HEAD_TILES: u32 = 4;
const HEAD_ROW_BYTES: u32 = 72 * 4;

/// The kernels for one kind of weights. Of each way to multiply, all kernels add
/// a row's products in the same order.
pub(super) struct Family {
    /// The least work at once.
    pub(super) narrow: Skinny,
    /// By the rows of input that they take.
    pub(super) skinny: [Skinny; 4],
    pub(super) tiled_128: Tiled,
    pub(super) tiled_32: Tiled,
    /// The first multiplies as fast as a processor can; the others wait for the
    /// cache, each in proportion to what a piece reads.
    pub(super) wide: [Wide; 3],
}

/// Names of a kernel by what becomes of its results.
#[derive(Clone, Copy)]
pub(super) struct Names {
    pub(super) half: &'static str,
    full: &'static str,
    qkv: &'static str,
}

/// A kernel for few rows: see `Skinny`.
#[derive(Clone, Copy)]
pub(super) struct Skinny {
    pub(super) names: Names,
    dtype: DenseDtype,
    pub(super) tokens: u32,
    tiles: u32,
    steps: u32,
    stages: u32,
}

/// A kernel for many rows: see `Tiled`.
#[derive(Clone, Copy)]
pub(super) struct Tiled {
    pub(super) names: Names,
    dtype: DenseDtype,
    pub(super) tokens: u32,
    stages: u32,
}

/// A kernel for many rows on Hopper: see `Warpgroups`.
#[derive(Clone, Copy)]
pub(super) struct Wide {
    pub(super) names: Names,
    dtype: DenseDtype,
    tokens: u32,
    multipliers: u32,
    stages: u32,
    /// How long a piece takes beside others'.
    pub(super) time: u32,
}

const fn names(half: &'static str, full: &'static str, qkv: &'static str) -> Names {
    Names { half, full, qkv }
}

static BF16: Family = {
    let dtype = DenseDtype::Bf16;
    Family {
        narrow: Skinny {
            names: names("linear_half_8x1", "linear_full_8x1", "qkv_8x1"),
            dtype,
            tokens: 8,
            tiles: 1,
            steps: 2,
            stages: 7,
        },
        skinny: [
            Skinny {
                names: names("linear_half_8x2", "linear_full_8x2", "qkv_8x2"),
                dtype,
                tokens: 8,
                tiles: 2,
                steps: 2,
                stages: 4,
            },
            Skinny {
                names: names("linear_half_16x2", "linear_full_16x2", "qkv_16x2"),
                dtype,
                tokens: 16,
                tiles: 2,
                steps: 1,
                stages: 6,
            },
            Skinny {
                names: names("linear_half_32x2", "linear_full_32x2", "qkv_32x2"),
                dtype,
                tokens: 32,
                tiles: 2,
                steps: 1,
                stages: 5,
            },
            Skinny {
                names: names("linear_half_64x2", "linear_full_64x2", "qkv_64x2"),
                dtype,
                tokens: 64,
                tiles: 2,
                steps: 1,
                stages: 3,
            },
        ],
        tiled_128: Tiled {
            names: names("linear_half_tiled128", "linear_full_tiled128", "qkv_tiled128"),
            dtype,
            tokens: 128,
            stages: 3,
        },
        tiled_32: Tiled {
            names: names("linear_half_tiled32", "linear_full_tiled32", "qkv_tiled32"),
            dtype,
            tokens: 32,
            stages: 4,
        },
        wide: [
            Wide {
                names: names("linear_half_wide256", "linear_full_wide256", "qkv_wide256"),
                dtype,
                tokens: 256,
                multipliers: 2,
                stages: 4,
                time: 100,
            },
            Wide {
                names: names("linear_half_wide128", "linear_full_wide128", "qkv_wide128"),
                dtype,
                tokens: 128,
                multipliers: 2,
                stages: 6,
                time: 64,
            },
            Wide {
                names: names("linear_half_narrow128", "linear_full_narrow128", "qkv_narrow128"),
                dtype,
                tokens: 128,
                multipliers: 1,
                stages: 8,
                time: 48,
            },
        ],
    }
};

static INT8: Family = {
    let dtype = DenseDtype::Int8;
    Family {
        narrow: Skinny {
            names: names("linear_int8_half_8x1", "linear_int8_full_8x1", "qkv_int8_8x1"),
            dtype,
            tokens: 8,
            tiles: 1,
            steps: 4,
            stages: 5,
        },
        skinny: [
            Skinny {
                names: names("linear_int8_half_8x2", "linear_int8_full_8x2", "qkv_int8_8x2"),
                dtype,
                tokens: 8,
                tiles: 2,
                steps: 4,
                stages: 3,
            },
            Skinny {
                names: names("linear_int8_half_16x2", "linear_int8_full_16x2", "qkv_int8_16x2"),
                dtype,
                tokens: 16,
                tiles: 2,
                steps: 2,
                stages: 5,
            },
            Skinny {
                names: names("linear_int8_half_32x2", "linear_int8_full_32x2", "qkv_int8_32x2"),
                dtype,
                tokens: 32,
                tiles: 2,
                steps: 2,
                stages: 3,
            },
            Skinny {
                names: names("linear_int8_half_64x2", "linear_int8_full_64x2", "qkv_int8_64x2"),
                dtype,
                tokens: 64,
                tiles: 2,
                steps: 2,
                stages: 2,
            },
        ],
        tiled_128: Tiled {
            names: names("linear_int8_half_tiled128", "linear_int8_full_tiled128", "qkv_int8_tiled128"),
            dtype,
            tokens: 128,
            stages: 3,
        },
        tiled_32: Tiled {
            names: names("linear_int8_half_tiled32", "linear_int8_full_tiled32", "qkv_int8_tiled32"),
            dtype,
            tokens: 32,
            stages: 4,
        },
        wide: [
            Wide {
                names: names("linear_int8_half_wide256", "linear_int8_full_wide256", "qkv_int8_wide256"),
                dtype,
                tokens: 256,
                multipliers: 2,
                stages: 5,
                time: 100,
            },
            Wide {
                names: names("linear_int8_half_wide128", "linear_int8_full_wide128", "qkv_int8_wide128"),
                dtype,
                tokens: 128,
                multipliers: 2,
                stages: 8,
                time: 52,
            },
            Wide {
                names: names(
                    "linear_int8_half_narrow128",
                    "linear_int8_full_narrow128",
                    "qkv_int8_narrow128",
                ),
                dtype,
                tokens: 128,
                multipliers: 1,
                stages: 10,
                time: 42,
            },
        ],
    }
};

impl Family {
    pub(super) fn of(dtype: DenseDtype) -> &'static Self {
        match dtype {
            DenseDtype::Bf16 => &BF16,
            DenseDtype::Int8 => &INT8,
        }
    }
}

/// Bytes of a tile's 16 columns.
pub(super) fn step_bytes(dtype: DenseDtype) -> u32 {
    match dtype {
        DenseDtype::Bf16 => 512,
        DenseDtype::Int8 => 256,
    }
}

impl Results {
    fn whole_heads(self) -> u32 {
        match self {
            Self::Qkv { whole_heads } => whole_heads,
            Self::Half | Self::Full => 0,
        }
    }
}

impl Names {
    fn kernel(&self, results: Results, threads: u32) -> Kernel {
        let name = match results {
            Results::Half => self.half,
            Results::Full => self.full,
            Results::Qkv { .. } => self.qkv,
        };
        Kernel { name, threads }
    }
}

impl Skinny {
    const WARPS: u32 = THREADS / 32;
    /// Blocks that an SM holds at once.
    const BLOCKS_PER_SM: u32 = 2;

    pub(super) fn cut(&self, tiles: u32, rows: u32, results: Results, sms: u32) -> Cut {
        // Each block does as many groups of tiles as the others, or a head's together,
        // and all run at once.
        let turns = tiles.div_ceil(self.tiles) - results.whole_heads() * (HEAD_TILES / self.tiles - 1);
        let turns_per_block = turns.div_ceil(sms * Self::BLOCKS_PER_SM);
        Cut {
            kernel: self.names.kernel(results, THREADS),
            grid: [turns.div_ceil(turns_per_block), rows.div_ceil(self.tokens), 1],
            shared_bytes: self.shared_bytes(results),
            box_rows: None,
        }
    }

    /// Whether two tiles, which the kernels of more than eight rows take at a time, are
    /// fewer bytes than what these rows add.
    pub(super) fn reads_more_input(&self, rows: u32) -> bool {
        rows * 32 > 2 * step_bytes(self.dtype)
    }

    /// A ring and sums for each warp, and for each row of input 8 bytes and perhaps
    /// a head's results.
    pub(super) fn shared_bytes(&self, results: Results) -> u32 {
        let stage = self.steps * (self.tiles * step_bytes(self.dtype) + self.tokens * 32);
        let head_row = if results.whole_heads() > 0 { HEAD_ROW_BYTES } else { 0 };
        Self::WARPS * (self.stages * stage + self.tiles * SUM_BYTES) + self.tokens * (8 + head_row)
    }
}

impl Tiled {
    fn grid(&self, product: &Product) -> [u32; 3] {
        [product.outputs.div_ceil(BLOCK_OUTPUTS), product.rows.div_ceil(self.tokens), 1]
    }

    pub(super) fn blocks(&self, product: &Product) -> u32 {
        self.grid(product).into_iter().product()
    }

    pub(super) fn cut(&self, product: &Product, results: Results) -> Cut {
        Cut {
            kernel: self.names.kernel(results, THREADS),
            grid: self.grid(product),
            shared_bytes: self.stages
                * (BLOCK_OUTPUTS / 16 * 4 * step_bytes(self.dtype) + self.tokens * CHUNK_BYTES)
                + self.tokens * 8,
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
    pub(super) fn pieces(&self, product: &Product) -> u32 {
        product.outputs.div_ceil(self.outputs()) * product.rows.div_ceil(self.tokens)
    }

    /// Each processor takes piece after piece.
    pub(super) fn cut(&self, product: &Product, results: Results, sms: u32) -> Cut {
        let weights = self.outputs() / 16 * 4 * step_bytes(self.dtype);
        let ring = self.stages * (weights + self.tokens * CHUNK_BYTES);
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
