//! Weights as they lie in a checkpoint, before a device packs them.
//!
//! [`Bytes`] are views: of a mapped file on a worker, of a buffer in tests. A
//! device that computes from the file's own layout keeps the view and copies
//! nothing; one that repacks reads each view once and drops it.

use bytes::Bytes;

/// A bf16 matrix `[rows, cols]`, row-major and little-endian, in one or more
/// runs of rows: the published checkpoints keep q, k and v apart, OpenAI's
/// keeps them together, and a rank of a group holds some rows of each.
#[derive(Clone, Debug)]
pub struct DenseSource {
    /// Inputs of each row.
    pub cols: usize,
    /// Runs of rows, in order.
    pub parts: Vec<DensePart>,
}

/// Consecutive rows of a [`DenseSource`].
#[derive(Clone, Debug)]
pub struct DensePart {
    /// How many rows.
    pub rows: usize,
    /// `rows * cols` bf16.
    pub weight: Bytes,
    /// `rows` bf16, or no bias.
    pub bias: Option<Bytes>,
}

impl DenseSource {
    /// Rows of all parts.
    pub fn rows(&self) -> usize {
        self.parts.iter().map(|part| part.rows).sum()
    }
}

/// The experts of one layer that a rank holds.
#[derive(Clone, Debug)]
pub struct ExpertsSource {
    /// `[2 * intermediate, hidden]` for each expert; even rows are gates, odd rows ups.
    pub gate_up: Mxfp4Source,
    /// `[hidden, intermediate]` for each expert.
    pub down: Mxfp4Source,
    /// Gates are clamped above at this, ups on both sides.
    pub swiglu_limit: f32,
}

/// One MXFP4 matrix `[rows, cols]` for each local expert.
#[derive(Clone, Debug)]
pub struct Mxfp4Source {
    /// Outputs of each expert's matrix.
    pub rows: usize,
    /// Inputs of each expert's matrix, a multiple of 32.
    pub cols: usize,
    /// In the order of the rank's local experts.
    pub experts: Vec<Mxfp4Part>,
}

/// One expert's MXFP4 matrix.
#[derive(Clone, Debug)]
pub struct Mxfp4Part {
    /// `rows * cols / 2` bytes: byte `b` of a block holds elements `2b` (low
    /// nibble) and `2b + 1`.
    pub blocks: Bytes,
    /// `rows * cols / 32` E8M0 exponents, biased by 127; never 255 (NaN).
    pub scales: Bytes,
    /// `rows` bf16, or no bias.
    pub bias: Option<Bytes>,
}
