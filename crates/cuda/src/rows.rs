//! What is done row by row: looking tokens up, norms, sums into the residual.
//! The kernels are in kernels/rows.cu.

use crate::ahead::Lines;
use crate::batch::Step;
use crate::gpu::GpuError;
use crate::launch::Kernel;
use crate::matrix::Matrix;
use crate::memory::Memory;
use crate::route::Routing;
use crate::stream::Stream;
use bytemuck::{Pod, Zeroable};
use bytes::Bytes;
use chorale_device::DenseSource;

/// Columns that a thread reads at once; tables and gains are padded to them.
const WIDTH: usize = 8;
/// Bytes of a table that are copied at once.
const PIECE_BYTES: usize = 16 << 20;

const EMBED: Kernel = Kernel { name: "embed", threads: 256 };
const RMS_NORM: Kernel = Kernel { name: "rms_norm", threads: 256 };
const ADD_RMS_NORM: Kernel = Kernel { name: "add_rms_norm", threads: 256 };
/// Blocks that ask for lines of memory, and rows of a step that does.
const AHEAD_BLOCKS: usize = 64;
const AHEAD_ROWS_MAX: usize = 64;
const COMBINE_RMS_NORM: Kernel = Kernel { name: "combine_rms_norm", threads: 256 };

/// bf16 rows to look up, as they lie in the checkpoint.
pub struct Embedding {
    memory: Memory,
    rows: usize,
    cols: usize,
}

/// The gain of an RMSNorm.
pub struct Norm {
    /// bf16, padded with zeros.
    memory: Memory,
    cols: usize,
    eps: f32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct EmbedArgs {
    tokens: u64,
    fed: u64,
    table: u64,
    hidden: u64,
    num_rows: u32,
    table_rows: u32,
    width: u32,
    stride: u32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct NormArgs {
    hidden: u64,
    gain: u64,
    normed: u64,
    added: u64,
    weights: u64,
    cols: u32,
    hidden_stride: u32,
    normed_stride: u32,
    added_stride: u32,
    top_k: u32,
    eps: f32,
    num_rows: u32,
    ahead_lines: u32,
    ahead: u64,
}

impl Embedding {
    pub(crate) fn new(stream: &mut Stream, source: DenseSource) -> Result<Self, GpuError> {
        let (rows, cols) = (source.rows(), source.cols);
        assert!(rows > 0 && cols > 0, "a table of {rows} x {cols}");
        assert!(u32::try_from(rows.max(cols)).is_ok(), "a table of {rows} x {cols}");
        let row_bytes = cols * size_of::<u16>();
        let padded_bytes = cols.next_multiple_of(WIDTH) * size_of::<u16>();
        let memory = stream.alloc(rows * padded_bytes)?;
        let mut offset = 0;
        for part in &source.parts {
            assert_eq!(part.weight.len(), part.rows * row_bytes, "weights of a part");
            for rows in part.weight.chunks((PIECE_BYTES / row_bytes).max(1) * row_bytes) {
                if row_bytes == padded_bytes {
                    stream.upload(rows, &memory, offset)?;
                    offset += rows.len();
                    continue;
                }
                let mut padded = vec![0u8; rows.len() / row_bytes * padded_bytes];
                for (to, from) in padded.chunks_exact_mut(padded_bytes).zip(rows.chunks_exact(row_bytes)) {
                    to[..row_bytes].copy_from_slice(from);
                }
                stream.upload(&padded, &memory, offset)?;
                offset += padded.len();
            }
        }
        Ok(Self { memory, rows, cols })
    }

    /// `hidden[r] = table[token[r]]`.
    pub(crate) fn look_up(&self, stream: &mut Stream, step: &Step, hidden: &mut Matrix) {
        assert_eq!(hidden.cols(), self.cols, "embed: columns of the table");
        assert_eq!(hidden.rows(), step.num_rows, "embed: rows of the step");
        let width = self.cols.div_ceil(WIDTH);
        let num_threads = step.num_rows * width;
        if num_threads == 0 {
            return;
        }
        assert!(u32::try_from(num_threads).is_ok(), "{} rows at once", step.num_rows);
        let args = EmbedArgs {
            tokens: step.tokens,
            fed: step.fed,
            table: self.memory.address(),
            hidden: hidden.address(),
            num_rows: step.num_rows as u32,
            table_rows: self.rows as u32,
            width: width as u32,
            stride: hidden.stride() as u32,
        };
        stream.launch(EMBED, [num_threads.div_ceil(EMBED.threads as usize) as u32, 1, 1], 0, &args);
    }
}

impl Norm {
    pub(crate) fn new(stream: &mut Stream, gain: &Bytes, eps: f32) -> Result<Self, GpuError> {
        let cols = gain.len() / size_of::<u16>();
        assert!(cols > 0 && gain.len().is_multiple_of(size_of::<u16>()), "a gain of {} bytes", gain.len());
        let mut padded = gain.to_vec();
        padded.resize(cols.next_multiple_of(WIDTH) * size_of::<u16>(), 0);
        let memory = stream.alloc(padded.len())?;
        stream.upload(&padded, &memory, 0)?;
        Ok(Self { memory, cols, eps })
    }

    /// `normed = rms_norm(hidden)`.
    pub(crate) fn apply(&self, stream: &mut Stream, hidden: &Matrix, normed: &mut Matrix) {
        self.launch(stream, RMS_NORM, self.args(hidden, normed), hidden.rows());
    }

    /// `hidden += delta; normed = rms_norm(hidden)`. Of a small step, more blocks ask
    /// for lines of memory meanwhile.
    pub(crate) fn apply_after(
        &self,
        stream: &mut Stream,
        (delta, ahead): (&Matrix, Lines),
        hidden: &mut Matrix,
        normed: &mut Matrix,
    ) {
        let added = NormArgs {
            added: delta.address(),
            added_stride: delta.stride() as u32,
            ..self.args(hidden, normed)
        };
        let num_rows = hidden.rows();
        if ahead.count == 0 || !(1..=AHEAD_ROWS_MAX).contains(&num_rows) {
            return self.launch(stream, ADD_RMS_NORM, added, num_rows);
        }
        let added = NormArgs { ahead: ahead.address, ahead_lines: ahead.count, ..added };
        self.launch(stream, ADD_RMS_NORM, added, num_rows + AHEAD_BLOCKS);
    }

    /// `hidden += the weighted outputs of the choices; normed = rms_norm(hidden)`.
    pub(crate) fn apply_combined(
        &self,
        stream: &mut Stream,
        (outputs, routing): (&Matrix, &Routing),
        hidden: &mut Matrix,
        normed: &mut Matrix,
    ) {
        let added = NormArgs {
            added: outputs.address(),
            added_stride: outputs.stride() as u32,
            weights: routing.weights.address(),
            top_k: routing.top_k as u32,
            ..self.args(hidden, normed)
        };
        self.launch(stream, COMBINE_RMS_NORM, added, hidden.rows());
    }

    fn args(&self, hidden: &Matrix, normed: &Matrix) -> NormArgs {
        assert_eq!(hidden.cols(), self.cols, "columns of the norm's gain");
        NormArgs {
            hidden: hidden.address(),
            gain: self.memory.address(),
            normed: normed.address(),
            cols: self.cols as u32,
            hidden_stride: hidden.stride() as u32,
            normed_stride: normed.stride() as u32,
            eps: self.eps,
            num_rows: hidden.rows() as u32,
            ..NormArgs::zeroed()
        }
    }

    /// Where its gain is.
    pub(crate) fn address(&self) -> u64 {
        self.memory.address()
    }

    fn launch(&self, stream: &mut Stream, kernel: Kernel, args: NormArgs, num_blocks: usize) {
        if num_blocks > 0 {
            stream.launch(kernel, [num_blocks as u32, 1, 1], 0, &args);
        }
    }
}
