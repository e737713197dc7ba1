//! How a product with dense weights is cut for the GPU: which kernel computes
//! it, and with how many blocks. The kernels are kernels/linear_skinny.cuh for
//! few rows of input, and for many kernels/linear_warpgroups.cuh on Hopper and
//! kernels/linear_tiled.cuh elsewhere.

mod kernels;

use crate::gpu::{Facts, TensorMap};
use crate::launch::Kernel;
use crate::options::CudaOptions;
use bytemuck::{Pod, Zeroable};
use chorale_device::DenseDtype;
use kernels::{Family, Skinny, Wide};

/// Rows of a tile of the weights.
pub(crate) const TILE_ROWS: usize = 16;

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
    /// Queries, keys and values; the last results are so many heads, of each of
    /// which one block has the whole.
    Qkv { whole_heads: u32 },
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

/// Tiles of so many rows of weights.
pub(crate) fn tiles_of(rows: usize) -> usize {
    rows.div_ceil(TILE_ROWS)
}

/// Bytes of packed weights: columns are padded to 64, rows to 16.
pub(crate) fn packed_bytes(rows: usize, cols: usize, dtype: DenseDtype) -> usize {
    tiles_of(rows) * (cols.div_ceil(64) * 4) * kernels::step_bytes(dtype) as usize
}

/// Chooses the kernel and its blocks, for at least one row and one output. One
/// that takes a tensor map gathers no rows: whoever picks some has to.
///
/// Kernels for few rows add in one order, whichever of them it is, those for many
/// in another, and those of Hopper perhaps in a third. A batch-invariant product
/// keeps to one kind whatever the number of rows: to that for few rows where the
/// matrix is small, else to that for many. Of few rows the latter reads weights
/// nearly as fast on Hopper; elsewhere it has blocks for too few processors.
pub(crate) fn cut(
    product: &Product,
    dtype: DenseDtype,
    results: Results,
    (facts, options): (&Facts, CudaOptions),
) -> Cut {
    let Product { outputs, rows, .. } = *product;
    let family = Family::of(dtype);
    let tiles = outputs.div_ceil(TILE_ROWS as u32);
    let sms = facts.num_sms.max(1);
    // Of a matrix of few rows, such as a router, there are not enough tiles for
    // all processors: then each takes few rows of the input, and reads the weights
    // from the cache again.
    let is_small = tiles <= sms / 4;
    if is_small && rows <= 512 {
        return family.narrow.cut(tiles, rows, results, sms);
    }
    let fits = |kernel: &&Skinny| kernel.shared_bytes(results) <= facts.shared_bytes_max;
    if options.batch_invariant {
        let mut most = family.skinny.iter().rev().filter(fits);
        return match (is_small, facts.is_hopper()) {
            (true, _) => most.next().unwrap_or(&family.narrow).cut(tiles, rows, results, sms),
            (false, true) => family.wide(product, results, sms),
            (false, false) if rows <= family.tiled_32.tokens => family.tiled_32.cut(product, results),
            (false, false) => family.tiled_128.cut(product, results),
        };
    }
    let is_head = facts.is_hopper() && family.is_for_hopper_at(product, sms);
    let few = family.skinny.iter().filter(fits).find(|kernel| rows <= kernel.tokens && !is_head);
    if let Some(kernel) = few {
        // Two tiles at a time halve what is read of the input, which matters the
        // less the fewer rows it has: then rather work for all processors.
        let is_narrow = kernel.tokens == family.narrow.tokens && tiles / 2 < sms;
        let kernel = if is_narrow { &family.narrow } else { kernel };
        return kernel.cut(tiles, rows, results, sms);
    }
    if family.tiled_128.blocks(product) < sms / 4 {
        return family.tiled_32.cut(product, results);
    }
    if facts.is_hopper() {
        family.wide(product, results, sms)
    } else {
        family.tiled_128.cut(product, results)
    }
}

impl Family {
    /// True of products of some dozens of rows with so many outputs that Hopper's
    /// kernels, which share each row among 128 of them, keep all processors busy. Those
    /// for few rows, which share it among 32, would read more of the input than of the
    /// weights then, and the cache delivers less than twice what the memory does.
    fn is_for_hopper_at(&self, product: &Product, sms: u32) -> bool {
        let [_, wide, _] = &self.wide;
        self.narrow.reads_more_input(product.rows) && wide.pieces(product) >= 4 * sms
    }

    /// The fastest of the kernels for many rows on Hopper.
    fn wide(&self, product: &Product, results: Results, sms: u32) -> Cut {
        let time = |kernel: &Wide| kernel.pieces(product).div_ceil(sms) * kernel.time;
        let [first, others @ ..] = &self.wide;
        let fastest =
            others.iter().fold(first, |best, kernel| if time(kernel) < time(best) { kernel } else { best });
        fastest.cut(product, results, sms)
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
    const DTYPES: [DenseDtype; 2] = [DenseDtype::Bf16, DenseDtype::Int8];

    #[test]
    fn kernels_fit_into_the_smallest_shared_memory() {
        for dtype in DTYPES {
            let family = Family::of(dtype);
            for kernel in family.skinny.iter().chain([&family.narrow]) {
                let bytes = |whole_heads| kernel.shared_bytes(Results::Qkv { whole_heads });
                assert!(bytes(0) <= SHARED_BYTES_MIN, "{}", kernel.names.half);
                // One is for larger GPUs, as far as FP8 keys and values go.
                assert_eq!(bytes(8) <= SHARED_BYTES_MIN, kernel.names.half != "linear_int8_half_64x2");
            }
            for kernel in [&family.tiled_128, &family.tiled_32] {
                let cut = kernel.cut(&Product::zeroed(), Results::Half);
                assert!(cut.shared_bytes <= SHARED_BYTES_MIN, "{}", kernel.names.half);
            }
        }
    }

    fn facts(capability: (u32, u32)) -> Facts {
        Facts {
            name: "GPU".to_owned(),
            capability,
            num_sms: 132,
            shared_bytes_max: 227 * 1024,
            memory_bytes: 80 << 30,
            memory_bytes_per_s: 3 << 40,
            driver: 13000,
        }
    }

    /// The kernel's name after what all share, and its blocks, with one matrix of
    /// bf16 as result. Both kinds of weights are cut alike.
    fn names(outputs: u32, rows: u32, capability: (u32, u32)) -> (&'static str, u32, u32) {
        let [bf16, int8] = names_of(outputs, rows, capability, CudaOptions::default());
        assert_eq!(bf16, int8);
        bf16
    }

    fn names_of(
        outputs: u32,
        rows: u32,
        capability: (u32, u32),
        options: CudaOptions,
    ) -> [(&'static str, u32, u32); 2] {
        let facts = facts(capability);
        let product = Product { outputs, rows, ..Product::zeroed() };
        DTYPES.map(|dtype| {
            let cut = cut(&product, dtype, Results::Half, (&facts, options));
            assert!(cut.shared_bytes <= facts.shared_bytes_max, "{}", cut.kernel.name);
            let (family, kind) = cut.kernel.name.rsplit_once('_').unwrap();
            assert_eq!(family.contains("int8"), dtype == DenseDtype::Int8, "{}", cut.kernel.name);
            (kind, cut.grid[0], cut.grid[1])
        })
    }

    #[test]
    fn gpt_oss_is_cut_for_132_processors() {
        let generic = |outputs, rows| names(outputs, rows, (8, 0));
        assert_eq!(generic(5120, 1), ("8x2", 160, 1));
        assert_eq!(generic(2880, 1), ("8x1", 180, 1));
        assert_eq!(generic(2880, 9), ("16x2", 90, 1));
        assert_eq!(generic(128, 1), ("8x1", 8, 1));
        assert_eq!(generic(128, 64), ("8x1", 8, 8));
        assert_eq!(generic(201_088, 8), ("8x2", 262, 1));
        assert_eq!(generic(201_088, 33), ("64x2", 262, 1));
        assert_eq!(generic(5120, 4096), ("tiled128", 40, 32));
        assert_eq!(generic(128, 2048), ("tiled32", 1, 64));
    }

    #[test]
    fn a_head_that_becomes_fp8_is_one_blocks() {
        let facts = facts((8, 0));
        for (outputs, rows, whole_heads, blocks) in
            [(5120, 1, 16, 144), (5120, 40, 16, 144), (2560, 1, 8, 136), (640, 1, 2, 34)]
        {
            let product = Product { outputs, rows, ..Product::zeroed() };
            let results = Results::Qkv { whole_heads };
            let cut = cut(&product, DenseDtype::Bf16, results, (&facts, CudaOptions::default()));
            assert_eq!(cut.grid, [blocks, 1, 1], "{outputs} outputs of {rows} rows by {}", cut.kernel.name);
        }
    }

    #[test]
    fn hopper_has_kernels_of_its_own_for_many_rows() {
        let hopper = |outputs, rows| names(outputs, rows, (9, 0));
        assert_eq!(hopper(5120, 64), ("64x2", 160, 1));
        assert_eq!(hopper(201_088, 16), ("16x2", 262, 1));
        assert_eq!(hopper(201_088, 33), ("wide128", 132, 1));
        // Weights in eight bits are fewer bytes than what 32 rows add.
        let kinds = names_of(201_088, 32, (9, 0), CudaOptions::default()).map(|(kind, ..)| kind);
        assert_eq!(kinds, ["32x2", "wide128"]);
        assert_eq!(hopper(5120, 100), ("narrow128", 80, 1));
        assert_eq!(hopper(5120, 200), ("wide128", 80, 1));
        assert_eq!(hopper(5120, 4096), ("wide256", 132, 1));
        assert_eq!(hopper(2880, 4096), ("wide256", 132, 1));
        assert_eq!(hopper(128, 2048), ("tiled32", 1, 64));
    }

    #[test]
    fn an_invariant_product_keeps_to_one_kind_of_kernel() {
        let options = CudaOptions { batch_invariant: true, ..CudaOptions::default() };
        let kind = |name: &str| match name {
            name if name.starts_with("tiled") => "tiled",
            name if name.contains('x') => "skinny",
            _ => "wide",
        };
        for (outputs, capability, expected) in [
            (128, (8, 0), "skinny"),
            (128, (9, 0), "skinny"),
            (2880, (8, 0), "tiled"),
            (2880, (9, 0), "wide"),
            (201_088, (8, 0), "tiled"),
            (201_088, (9, 0), "wide"),
        ] {
            for rows in [1, 3, 8, 9, 17, 32, 33, 64, 65, 200, 512, 513, 4096] {
                for (name, ..) in names_of(outputs, rows, capability, options) {
                    assert_eq!(kind(name), expected, "{name} for {outputs} outputs of {rows} rows");
                }
            }
        }
    }
}
