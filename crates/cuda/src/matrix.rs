//! Activations on the GPU, row-major: bf16, or f32 where precision is kept.

use crate::gpu::GpuError;
use crate::memory::Memory;
use crate::stream::Stream;
use chorale_device::Precision;

/// Rows begin at multiples of 16 bytes, for loads of that width.
const STRIDE_ELEMENTS: usize = 8;

/// Activations `[rows, cols]`.
pub struct Matrix {
    memory: Memory,
    precision: Precision,
    rows: usize,
    max_rows: usize,
    cols: usize,
    stride: usize,
}

impl Matrix {
    pub(crate) fn new(
        stream: &Stream,
        max_rows: usize,
        cols: usize,
        precision: Precision,
    ) -> Result<Self, GpuError> {
        assert!(cols > 0, "a matrix has columns");
        let stride = Self::stride_of(cols);
        let memory = stream.alloc(max_rows * stride * width(precision))?;
        Ok(Self { memory, precision, rows: 0, max_rows, cols, stride })
    }

    pub(crate) fn address(&self) -> u64 {
        self.memory.address()
    }

    /// What [`Self::stride`] is with so many columns.
    pub(crate) fn stride_of(cols: usize) -> usize {
        cols.next_multiple_of(STRIDE_ELEMENTS)
    }

    /// Bytes of an element.
    pub(crate) fn width(&self) -> usize {
        width(self.precision)
    }

    /// True if nothing lies between two rows.
    pub(crate) fn is_dense(&self) -> bool {
        self.stride == self.cols
    }

    pub(crate) fn max_rows(&self) -> usize {
        self.max_rows
    }

    /// Its rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Its columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Elements from one row to the next.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// Sets the number of rows; what they hold is to be overwritten.
    pub(crate) fn set_rows(&mut self, rows: usize) {
        assert!(rows <= self.max_rows, "{rows} rows in a matrix for {}", self.max_rows);
        self.rows = rows;
    }

    /// Asserts what an operation asks of its matrix.
    pub(crate) fn expect(&self, what: &str, precision: Precision, cols: usize) {
        assert_eq!(self.precision, precision, "{what}: precision");
        assert_eq!(self.cols, cols, "{what}: columns");
    }

    pub(crate) fn write(&mut self, stream: &mut Stream, values: &[f32]) -> Result<(), GpuError> {
        assert_eq!(values.len() % self.cols, 0, "whole rows of {} values", self.cols);
        self.set_rows(values.len() / self.cols);
        let width = width(self.precision);
        let mut bytes = vec![0u8; self.rows * self.stride * width];
        let rows = bytes.chunks_exact_mut(self.stride * width).zip(values.chunks_exact(self.cols));
        for (bytes, values) in rows {
            for (bytes, &value) in bytes.chunks_exact_mut(width).zip(values) {
                match self.precision {
                    Precision::Full => bytes.copy_from_slice(&value.to_le_bytes()),
                    Precision::Half => bytes.copy_from_slice(&to_bf16(value).to_le_bytes()),
                }
            }
        }
        stream.upload(&bytes, &self.memory, 0)
    }

    pub(crate) fn read(&self, stream: &mut Stream) -> Result<Vec<f32>, GpuError> {
        let width = width(self.precision);
        let mut bytes = vec![0u8; self.rows * self.stride * width];
        stream.download(&self.memory, 0, &mut bytes)?;
        let mut values = Vec::with_capacity(self.rows * self.cols);
        for row in bytes.chunks_exact(self.stride * width) {
            let row = &row[..self.cols * width];
            match self.precision {
                Precision::Full => {
                    values.extend(row.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)));
                }
                Precision::Half => {
                    let bits = row.as_chunks::<2>().0.iter().map(|bytes| u16::from_le_bytes(*bytes));
                    values.extend(bits.map(|bits| f32::from_bits(u32::from(bits) << 16)));
                }
            }
        }
        Ok(values)
    }
}

fn width(precision: Precision) -> usize {
    match precision {
        Precision::Full => 4,
        Precision::Half => 2,
    }
}

/// Rounds to the nearest bf16, ties to even. What is not a number stays so.
fn to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}
