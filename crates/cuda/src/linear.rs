//! Dense bf16 matrices in the tensor cores' own layout, and products with them.

use crate::gpu::GpuError;
use crate::launch::Kernel;
use crate::matrix::Matrix;
use crate::memory::Memory;
use crate::product::{self, Cut, Product, Results};
use crate::stream::Stream;
use bytemuck::{Pod, Zeroable};
use chorale_device::{DenseDtype, DensePart, DenseSource, Precision};
use std::ops::Range;
use std::sync::{Arc, Weak};

/// Rows are packed by whole heads: see `tile_rows` of kernels/fragments.cuh.
const GROUP_ROWS: usize = 64;
/// How much of a checkpoint is on the GPU beside what was packed from it.
const PIECE_BYTES: usize = 64 << 20;

/// A dense matrix with its bias.
pub struct Linear {
    rows: usize,
    cols: usize,
    dtype: DenseDtype,
    /// All tiles as kernels/fragments.cuh says.
    weights: Arc<Memory>,
    /// f32, padded to whole tiles; zeros where the source has none. Of integers
    /// as many scales follow.
    bias: Memory,
}

/// Rows that are multiplied.
pub(crate) struct Input {
    /// bf16 `[rows, cols]`.
    pub(crate) address: u64,
    pub(crate) stride: usize,
    /// How many rows are multiplied.
    pub(crate) rows: usize,
    /// Which: u32 row numbers on the GPU, or the first ones.
    pub(crate) picked: Option<u64>,
}

/// Where products go.
pub(crate) struct Output {
    /// `[rows, weights' rows]`.
    pub(crate) address: u64,
    pub(crate) stride: usize,
    pub(crate) precision: Precision,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct PackArgs {
    source: u64,
    fragments: u64,
    rows: u32,
    cols: u32,
    first_row: u32,
    num_rows: u32,
}

/// For weights in eight bits.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct PackInt8Args {
    matrix: PackArgs,
    scales: u64,
}

const PACK: Kernel = Kernel { name: "pack_linear", threads: 256 };
const PACK_INT8: Kernel = Kernel { name: "pack_linear_int8", threads: 256 };

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct LinearArgs {
    product: Product,
    out: u64,
    stride: u32,
    pad: u32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct GatherArgs {
    from: u64,
    picked: u64,
    to: u64,
    rows: u32,
    pieces: u32,
    stride: u32,
    pad: u32,
}

const GATHER: Kernel = Kernel { name: "gather_rows", threads: 128 };

/// For a kernel that takes its input by a tensor map.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct LinearHopperArgs {
    input: [u64; 16],
    linear: LinearArgs,
    pad: [u64; 8],
}

impl Linear {
    pub(crate) fn new(stream: &mut Stream, source: DenseSource, dtype: DenseDtype) -> Result<Self, GpuError> {
        let (rows, cols) = (source.rows(), source.cols);
        assert!(cols > 0 && cols.is_multiple_of(8), "columns are read eight at a time, not {cols}");
        assert!(u32::try_from(rows.max(cols)).is_ok(), "a matrix of {rows} x {cols}");
        for part in &source.parts {
            assert_eq!(part.weight.len(), part.rows * cols * size_of::<u16>(), "weights of a part");
            if let Some(bias) = &part.bias {
                assert_eq!(bias.len(), part.rows * size_of::<u16>(), "biases of a part");
            }
        }
        let bias = bias(&source);
        let bias_bytes = size_of_val(&bias[..]);
        let edge_bytes = match dtype {
            DenseDtype::Bf16 => bias_bytes,
            DenseDtype::Int8 => 2 * bias_bytes,
        };
        let packed = Self {
            rows,
            cols,
            dtype,
            weights: Arc::new(stream.alloc(product::packed_bytes(rows, cols, dtype))?),
            bias: stream.alloc(edge_bytes)?,
        };
        stream.upload(bytemuck::cast_slice(&bias), &packed.bias, 0)?;
        packed.pack(stream, &source.parts)?;
        // Products read weights before earlier kernels are done.
        stream.wait()?;
        Ok(packed)
    }

    /// Uploads the rows of all parts piece by piece, and packs each.
    fn pack(&self, stream: &mut Stream, parts: &[DensePart]) -> Result<(), GpuError> {
        let row_bytes = self.cols * size_of::<u16>();
        let piece_rows = (PIECE_BYTES / row_bytes / GROUP_ROWS).max(1) * GROUP_ROWS;
        let staging = stream.alloc(piece_rows.min(self.rows) * row_bytes)?;
        for first_row in (0..self.rows).step_by(piece_rows) {
            let rows = first_row..self.rows.min(first_row + piece_rows);
            upload_rows(stream, parts, row_bytes, rows.clone(), &staging)?;
            let args = PackArgs {
                source: staging.address(),
                fragments: self.weights.address(),
                rows: self.rows as u32,
                cols: self.cols as u32,
                first_row: first_row as u32,
                num_rows: rows.len() as u32,
            };
            let grid = [product::tiles_of(rows.len()) as u32, 1, 1];
            match self.dtype {
                DenseDtype::Bf16 => stream.launch(PACK, grid, 0, &args),
                DenseDtype::Int8 => {
                    let scales = self.bias.address() + (self.bias.len() / 2) as u64;
                    stream.launch(PACK_INT8, grid, 0, &PackInt8Args { matrix: args, scales });
                }
            }
        }
        Ok(())
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// Where its weights are, as long as they are.
    pub(crate) fn memory(&self) -> Weak<Memory> {
        Arc::downgrade(&self.weights)
    }

    /// What its weights are kept in.
    pub(crate) fn dtype(&self) -> DenseDtype {
        self.dtype
    }

    /// `output[r] = weights * input[r] + bias`.
    pub(crate) fn multiply(
        &self,
        stream: &mut Stream,
        input: &Input,
        output: &Output,
    ) -> Result<(), GpuError> {
        let cut = self.cut(stream, input, output.precision);
        self.multiply_by(stream, cut, input, output)
    }

    /// The same for some rows of the input. They are gathered in `gathered` if the
    /// kernel does not pick them itself: that takes microseconds.
    pub(crate) fn multiply_picked(
        &self,
        stream: &mut Stream,
        gathered: &mut Option<Memory>,
        (input, picked): (&Input, u64),
        output: &Output,
    ) -> Result<(), GpuError> {
        let cut = self.cut(stream, input, output.precision);
        if cut.is_none_or(|cut| cut.box_rows.is_none()) {
            let input = Input { picked: Some(picked), ..*input };
            return self.multiply_by(stream, cut, &input, output);
        }
        let address = stream.grow(gathered, input.rows * self.cols * size_of::<u16>())?;
        let pieces = (self.cols / 8) as u32;
        let args = GatherArgs {
            from: input.address,
            picked,
            to: address,
            rows: input.rows as u32,
            pieces,
            stride: (input.stride / 8) as u32,
            pad: 0,
        };
        stream.launch(GATHER, [args.rows, pieces.div_ceil(GATHER.threads), 1], 0, &args);
        let input = Input { address, stride: self.cols, rows: input.rows, picked: None };
        self.multiply_by(stream, cut, &input, output)
    }

    /// The kernel and its blocks; none if there is nothing to be multiplied.
    fn cut(&self, stream: &Stream, input: &Input, precision: Precision) -> Option<Cut> {
        let results = match precision {
            Precision::Half => Results::Half,
            Precision::Full => Results::Full,
        };
        let product = (input.rows > 0 && self.rows > 0).then(|| self.product(input))?;
        Some(product::cut(&product, self.dtype, results, (stream.facts(), stream.options())))
    }

    fn multiply_by(
        &self,
        stream: &mut Stream,
        cut: Option<Cut>,
        input: &Input,
        output: &Output,
    ) -> Result<(), GpuError> {
        let Some(cut) = cut else { return Ok(()) };
        assert!(output.stride >= self.rows, "room for {} results", self.rows);
        assert!(output.address.is_multiple_of(16), "results leave 16 bytes at a time");
        let product = self.product(input);
        let args = LinearArgs { product, out: output.address, stride: output.stride as u32, pad: 0 };
        if let Some(box_rows) = cut.box_rows {
            let input = stream.gpu().tensor_map(&product.input_map(box_rows))?;
            let args = LinearHopperArgs { input, linear: args, pad: [0; 8] };
            stream.launch(cut.kernel, cut.grid, cut.shared_bytes, &args);
        } else {
            stream.launch(cut.kernel, cut.grid, cut.shared_bytes, &args);
        }
        Ok(())
    }

    /// The operands, for a kernel.
    pub(crate) fn product(&self, input: &Input) -> Product {
        assert!(input.stride >= self.cols, "rows of {} columns", self.cols);
        assert!(
            input.stride.is_multiple_of(8) && input.address.is_multiple_of(16),
            "rows are read 16 bytes at a time"
        );
        assert!(u32::try_from(input.rows * (input.stride / 8)).is_ok(), "pieces of 16 bytes are numbered");
        Product {
            weights: self.weights.address(),
            bias: self.bias.address(),
            input: input.address,
            picked: input.picked.unwrap_or(0),
            outputs: self.rows as u32,
            cols: self.cols as u32,
            rows: input.rows as u32,
            stride: input.stride as u32,
        }
    }
}

impl Input {
    /// All rows of a matrix.
    pub(crate) fn all(matrix: &Matrix) -> Self {
        Self { address: matrix.address(), stride: matrix.stride(), rows: matrix.rows(), picked: None }
    }
}

/// Copies some of the rows of all parts together.
fn upload_rows(
    stream: &mut Stream,
    parts: &[DensePart],
    row_bytes: usize,
    rows: Range<usize>,
    to: &Memory,
) -> Result<(), GpuError> {
    let mut part_start = 0;
    for part in parts {
        let part_end = part_start + part.rows;
        let (start, end) = (rows.start.max(part_start), rows.end.min(part_end));
        if start < end {
            let bytes = &part.weight[(start - part_start) * row_bytes..(end - part_start) * row_bytes];
            stream.upload(bytes, to, (start - rows.start) * row_bytes)?;
        }
        part_start = part_end;
    }
    Ok(())
}

/// Biases of all parts as f32, padded to whole tiles.
fn bias(source: &DenseSource) -> Vec<f32> {
    let mut values = Vec::with_capacity(product::tiles_of(source.rows()) * product::TILE_ROWS);
    for part in &source.parts {
        let end = values.len() + part.rows;
        if let Some(bias) = &part.bias {
            let bits = bias.as_chunks::<2>().0.iter().map(|bytes| u16::from_le_bytes(*bytes));
            values.extend(bits.map(|bits| f32::from_bits(u32::from(bits) << 16)));
        }
        values.resize(end, 0.0);
    }
    values.resize(product::tiles_of(values.len()) * product::TILE_ROWS, 0.0);
    values
}
