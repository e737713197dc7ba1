//! For links that keep rows on the GPU: memory for what other ranks give, what
//! lies between a rank's own rows and those of all, and a way to enqueue what is
//! not a kernel of ours.

use crate::cuda::Cuda;
use crate::gpu::{Arriving, GpuError};
use crate::launch::Kernel;
use crate::matrix::Matrix;
use crate::memory::Memory;
use crate::route::Routing;
use bytemuck::{Pod, Zeroable};
use std::sync::Arc;

/// The most parts that columns are joined from.
pub const MAX_PARTS: usize = 16;

/// Bytes of a gathered choice.
pub const CHOICE_BYTES: usize = 8;

/// Bytes that a thread copies at a time, at most.
const WORD_BYTES: usize = 16;
/// Units of a row that one block joins.
const JOINED_UNITS: usize = 2048;

const SHARE_ROWS: Kernel = Kernel { name: "share_rows", threads: 128 };
const CLAIM_CHOICES: Kernel = Kernel { name: "claim_choices", threads: 256 };
const CLEAR_ELSEWHERE: Kernel = Kernel { name: "clear_elsewhere", threads: 128 };
const SUM_CHOICES: Kernel = Kernel { name: "sum_choices", threads: 128 };
const ROUND_SUMS: Kernel = Kernel { name: "round_sums", threads: 256 };

/// Memory on the GPU that holds what a caller likes.
pub struct Buffer {
    memory: Memory,
}

impl Buffer {
    /// Where it begins, a multiple of 256.
    pub fn address(&self) -> u64 {
        self.memory.address()
    }

    /// The address of `len` bytes that begin at `offset`; panics if they are not
    /// all in the buffer.
    pub fn span(&self, offset: usize, len: usize) -> u64 {
        let is_inside = offset.checked_add(len).is_some_and(|end| end <= self.memory.len());
        assert!(is_inside, "{len} bytes from {offset} in a buffer of {}", self.memory.len());
        self.memory.address() + offset as u64
    }
}

/// A rank's share of the rows of its home.
#[derive(Clone, Copy)]
pub struct Share<'a> {
    /// All rows of the home; `None` if the rows need not be copied.
    pub rows: Option<&'a Matrix>,
    /// Where they go.
    pub routing: &'a Routing,
    /// The first row of the share.
    pub first_row: usize,
    /// Rows that there are in it, perhaps none.
    pub num_rows: usize,
    /// Rows that there could be; choices of the rest go nowhere.
    pub max_rows: usize,
}

/// Choices of all homes, gathered.
#[derive(Clone, Copy)]
pub struct Gathered<'a> {
    /// Those of `num_rows` rows, as they were shared.
    pub choices: &'a Buffer,
    /// For each home and each expert, [`claim`] of this rank.
    pub table: &'a Buffer,
    /// Where the table of the layer begins, in bytes.
    pub table_offset: usize,
    /// u32 for each expert: counts what is claimed.
    pub loads: &'a Buffer,
    /// Where those of the layer begin, in bytes.
    pub loads_offset: usize,
    /// Experts of a layer.
    pub num_experts: usize,
    /// Homes.
    pub num_homes: usize,
    /// Rows of each home.
    pub home_rows: usize,
}

/// What a table says of an expert that has `num_copies` for a home, of which
/// this rank's takes every row whose number leaves the rest `turn`.
pub fn claim(num_copies: u32, turn: u32) -> u32 {
    assert!(turn < num_copies && num_copies <= 0xffff, "copy {turn} of {num_copies}");
    turn << 16 | num_copies
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct ShareRowsArgs {
    rows: u64,
    experts: u64,
    weights: u64,
    to_rows: u64,
    to_choices: u64,
    num_rows: u32,
    row_words: u32,
    stride_words: u32,
    top_k: u32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct ClaimChoicesArgs {
    choices: u64,
    table: u64,
    experts: u64,
    weights: u64,
    loads: u64,
    num_slots: u32,
    top_k: u32,
    home_rows: u32,
    num_experts: u32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct ClearElsewhereArgs {
    experts: u64,
    outputs: u64,
    row_words: u32,
    pad: u32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct SumChoicesArgs {
    outputs: u64,
    experts: u64,
    weights: u64,
    sums: u64,
    row_words: u32,
    top_k: u32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct RoundSumsArgs {
    sums: u64,
    rounded: u64,
    num_words: u32,
    pad: u32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct JoinColumnsArgs {
    parts: u64,
    whole: u64,
    rows: u32,
    num_parts: u32,
    whole_stride: u32,
    first: [u32; MAX_PARTS + 1],
    strides: [u32; MAX_PARTS],
}

impl Cuda {
    /// Memory for `len` bytes; what it holds is unspecified.
    pub fn buffer(&mut self, len: usize) -> Result<Buffer, GpuError> {
        Ok(Buffer { memory: self.stream.alloc(len)? })
    }

    /// Memory that holds these bytes.
    pub fn buffer_of(&mut self, bytes: &[u8]) -> Result<Buffer, GpuError> {
        let buffer = Buffer { memory: self.stream.alloc(bytes.len())? };
        self.stream.upload(bytes, &buffer.memory, 0)?;
        Ok(buffer)
    }

    /// Starts to copy what a buffer begins with.
    pub fn begin_read_buffer(&mut self, buffer: &Buffer, len: usize) -> Result<Arriving, GpuError> {
        self.stream.begin_download(&buffer.memory, 0, len)
    }

    /// Hands over all that is queued, and lets `run` enqueue more behind it: on a
    /// CUDA stream, which is null where everything handed over is done already.
    /// The thread's current context is the GPU's.
    pub fn enqueue<R>(&mut self, run: impl FnOnce(u64) -> R) -> Result<R, GpuError> {
        self.stream.flush()?;
        let stream = self.stream.gpu().raw_stream();
        if stream == 0 {
            self.stream.gpu().wait()?;
        }
        self.stream.gpu().bind()?;
        Ok(run(stream))
    }

    /// Makes other threads ones whose current context is the GPU's, as long as there
    /// is the GPU.
    pub fn binder(&self) -> Arc<dyn Fn() + Send + Sync> {
        let gpu = Arc::downgrade(self.stream.gpu());
        Arc::new(move || {
            // One that has failed is nobody's any more.
            let _ = gpu.upgrade().map(|gpu| gpu.bind());
        })
    }

    /// The address of `max_rows` rows of a matrix, of which the first may be set;
    /// panics if it has no room for as many, or if there is anything between rows.
    pub fn dense_rows(&self, matrix: &Matrix, max_rows: usize) -> u64 {
        assert!(matrix.is_dense() && max_rows <= matrix.max_rows(), "{max_rows} dense rows");
        matrix.address()
    }

    /// As [`Self::dense_rows`], and sets the number of rows: somebody else writes
    /// what they hold.
    pub fn dense_rows_mut(&self, matrix: &mut Matrix, max_rows: usize, rows: usize) -> u64 {
        matrix.set_rows(rows);
        self.dense_rows(matrix, max_rows)
    }

    /// The address of a matrix's rows as they lie.
    pub fn laid_out(&self, matrix: &Matrix) -> u64 {
        matrix.address()
    }

    /// Lays a share out: its rows from `to_rows` on, dense, and its choices, of
    /// [`CHOICE_BYTES`] each, from `to_choices` on.
    pub fn share_rows(&mut self, share: &Share<'_>, to_rows: u64, to_choices: u64) {
        let &Share { rows, routing, first_row, num_rows, max_rows } = share;
        assert!(num_rows <= max_rows && first_row + num_rows <= routing.rows, "rows of the share");
        if max_rows == 0 {
            return;
        }
        let (mut address, mut row_words, mut stride_words) = (0, 0, 0);
        if let Some(rows) = rows.filter(|_| num_rows > 0) {
            assert_eq!(rows.rows(), routing.rows, "a routing for the rows");
            let row_bytes = rows.cols() * rows.width();
            assert_eq!(row_bytes % WORD_BYTES, 0, "whole words in a row");
            row_words = (row_bytes / WORD_BYTES) as u32;
            stride_words = (rows.stride() * rows.width() / WORD_BYTES) as u32;
            address = rows.address() + (first_row * rows.stride() * rows.width()) as u64;
        }
        let choices = (first_row * routing.top_k * size_of::<u32>()) as u64;
        let args = ShareRowsArgs {
            rows: address,
            experts: routing.experts.address() + choices,
            weights: routing.weights.address() + choices,
            to_rows,
            to_choices,
            num_rows: num_rows as u32,
            row_words,
            stride_words,
            top_k: routing.top_k as u32,
        };
        assert!(routing.top_k <= SHARE_ROWS.threads as usize, "a thread for each choice");
        self.stream.launch(SHARE_ROWS, [max_rows as u32, 1, 1], 0, &args);
    }

    /// Sets a routing from the choices of all homes: those that this rank computes
    /// keep their expert, and all others have none.
    pub fn claim_choices(&mut self, gathered: &Gathered<'_>, routing: &mut Routing) {
        let &Gathered { num_experts, num_homes, home_rows, .. } = gathered;
        let rows = num_homes * home_rows;
        assert!(rows * routing.top_k <= routing.max_choices(), "room for {rows} rows");
        routing.rows = rows;
        let num_slots = rows * routing.top_k;
        if num_slots == 0 {
            return;
        }
        let args = ClaimChoicesArgs {
            choices: gathered.choices.span(0, num_slots * CHOICE_BYTES),
            table: gathered.table.span(gathered.table_offset, num_homes * num_experts * size_of::<u32>()),
            experts: routing.experts.address(),
            weights: routing.weights.address(),
            loads: gathered.loads.span(gathered.loads_offset, num_experts * size_of::<u32>()),
            num_slots: num_slots as u32,
            top_k: routing.top_k as u32,
            home_rows: home_rows as u32,
            num_experts: num_experts as u32,
        };
        let blocks = num_slots.div_ceil(CLAIM_CHOICES.threads as usize);
        self.stream.launch(CLAIM_CHOICES, [blocks as u32, 1, 1], 0, &args);
    }

    /// Sets the outputs of choices to 0 that this rank did not claim.
    pub fn clear_elsewhere(&mut self, claimed: &Routing, outputs: &mut Matrix) {
        let num_slots = claimed.rows * claimed.top_k;
        let args = ClearElsewhereArgs {
            experts: claimed.experts.address(),
            outputs: self.dense_rows_mut(outputs, num_slots, num_slots),
            row_words: words(outputs),
            pad: 0,
        };
        if num_slots > 0 {
            self.stream.launch(CLEAR_ELSEWHERE, [num_slots as u32, 1, 1], 0, &args);
        }
    }

    /// For each row the weighted sum of the outputs that this rank claimed, as f32
    /// `[rows, cols]` from `sums` on.
    pub fn sum_choices(&mut self, claimed: &Routing, outputs: &Matrix, sums: u64) {
        let args = SumChoicesArgs {
            outputs: self.dense_rows(outputs, claimed.rows * claimed.top_k),
            experts: claimed.experts.address(),
            weights: claimed.weights.address(),
            sums,
            row_words: words(outputs),
            top_k: claimed.top_k as u32,
        };
        if claimed.rows > 0 {
            self.stream.launch(SUM_CHOICES, [claimed.rows as u32, 1, 1], 0, &args);
        }
    }

    /// Rounds `rows` rows of f32 from `sums` on to those of `rounded` from
    /// `first_row` on, which becomes `whole_rows` rows of which others are set elsewhere.
    pub fn round_sums(&mut self, sums: u64, rows: usize, rounded: &Matrix, first_row: usize) {
        let to = self.dense_rows(rounded, first_row + rows);
        let row_words = words(rounded) as usize;
        let args = RoundSumsArgs {
            sums,
            rounded: to + (first_row * row_words * WORD_BYTES) as u64,
            num_words: (rows * row_words) as u32,
            pad: 0,
        };
        let blocks = (rows * row_words).div_ceil(ROUND_SUMS.threads as usize);
        if blocks > 0 {
            self.stream.launch(ROUND_SUMS, [blocks as u32, 1, 1], 0, &args);
        }
    }

    /// Joins columns: parts of `cols` columns each lie one after the other in
    /// `parts`, laid out as matrices of their own are.
    pub fn join_columns(&mut self, parts: u64, cols: &[usize], rows: usize, whole: &mut Matrix) {
        assert!((1..=MAX_PARTS).contains(&cols.len()), "{} parts", cols.len());
        assert_eq!(cols.iter().sum::<usize>(), whole.cols(), "columns of the parts");
        whole.set_rows(rows);
        if rows == 0 {
            return;
        }
        let width = whole.width();
        let is_even = |unit: usize| cols.iter().all(|cols| (cols * width).is_multiple_of(unit));
        let (name, unit) = match width {
            _ if is_even(16) => ("join_columns_16", 16),
            _ if is_even(4) => ("join_columns_4", 4),
            _ => ("join_columns_2", 2),
        };
        let units = |elements: usize| (elements * width / unit) as u32;
        let mut args = JoinColumnsArgs {
            parts,
            whole: whole.address(),
            rows: rows as u32,
            num_parts: cols.len() as u32,
            whole_stride: units(whole.stride()),
            first: [0; MAX_PARTS + 1],
            strides: [0; MAX_PARTS],
        };
        for (part, &cols) in cols.iter().enumerate() {
            args.first[part + 1] = args.first[part] + units(cols);
            args.strides[part] = units(Matrix::stride_of(cols));
        }
        let blocks = (args.first[cols.len()] as usize).div_ceil(JOINED_UNITS) as u32;
        self.stream.launch(Kernel { name, threads: 256 }, [rows as u32, blocks, 1], 0, &args);
    }
}

/// Words of a dense row.
fn words(matrix: &Matrix) -> u32 {
    let bytes = matrix.cols() * matrix.width();
    assert!(bytes.is_multiple_of(WORD_BYTES) && matrix.width() == 2, "whole words of bf16 in a row");
    (bytes / WORD_BYTES) as u32
}

/// Bytes of a matrix of `cols` columns that has as many rows of the same
/// precision as another, as it lies.
pub fn part_bytes(cols: usize, like: &Matrix) -> usize {
    like.rows() * Matrix::stride_of(cols) * like.width()
}
