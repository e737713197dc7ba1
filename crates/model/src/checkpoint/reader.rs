//! Views of a checkpoint's tensors, checked on the way out for values that
//! would poison every answer: E8M0 scales of 255, and NaN or infinity in bf16.
//! That reads every dense weight once, which loading would do anyway.

use super::CheckpointError;
use super::names::{DenseNames, Mxfp4Names};
use super::table::{Tensor, TensorTable};
use bytes::Bytes;
use chorale_device::{DensePart, Mxfp4Part, Mxfp4Source, NAN_SCALE};
use std::ops::Range;

/// What a tensor lacks that was there when the checkpoint was opened.
const CHECKED_AT_OPEN: &str = "it was checked when the checkpoint was opened";

/// Hands out views.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    pub(super) table: &'a TensorTable,
    /// Off to measure views without touching a page of them.
    pub(super) scans: bool,
}

impl Reader<'_> {
    /// Rows of packed elements, which are finite whatever their bits.
    fn packed(&self, name: &str, rows: Range<usize>) -> Result<Bytes, CheckpointError> {
        Ok(self.tensor(name)?.rows(rows))
    }

    /// Rows of a bf16 tensor.
    pub(super) fn finite_rows(&self, name: &str, rows: Range<usize>) -> Result<Bytes, CheckpointError> {
        let tensor = self.tensor(name)?;
        let bytes = tensor.rows(rows.clone());
        if self.scans
            && let Some((place, value)) = first_not_finite(&bytes)
        {
            let element = rows.start * tensor.row_bytes() / 2 + place;
            return Err(self.not_finite(name, tensor, element, value));
        }
        Ok(bytes)
    }

    pub(super) fn finite(&self, name: &str) -> Result<Bytes, CheckpointError> {
        self.finite_rows(name, 0..self.tensor(name)?.shape[0])
    }

    /// Rows of a dense matrix, counted from the matrix's own first row.
    pub(super) fn dense(
        &self,
        names: &DenseNames,
        rows: Range<usize>,
        has_bias: bool,
    ) -> Result<DensePart, CheckpointError> {
        let place = names.first_row + rows.start..names.first_row + rows.end;
        Ok(DensePart {
            rows: rows.len(),
            weight: self.finite_rows(&names.weight, place.clone())?,
            bias: has_bias.then(|| self.finite_rows(&names.bias, place)).transpose()?,
        })
    }

    /// The matrices of the named experts.
    pub(super) fn mxfp4(
        &self,
        names: &Mxfp4Names,
        experts: &[u32],
        rows: usize,
        cols: usize,
    ) -> Result<Mxfp4Source, CheckpointError> {
        let mut parts = Vec::with_capacity(experts.len());
        for &expert in experts {
            let place = expert as usize..expert as usize + 1;
            parts.push(Mxfp4Part {
                blocks: self.packed(&names.blocks, place.clone())?,
                scales: self.scales(&names.scales, place.clone())?,
                bias: Some(self.finite_rows(&names.bias, place)?),
            });
        }
        Ok(Mxfp4Source { rows, cols, experts: parts })
    }

    fn scales(&self, name: &str, rows: Range<usize>) -> Result<Bytes, CheckpointError> {
        let tensor = self.tensor(name)?;
        let bytes = tensor.rows(rows.clone());
        if self.scans
            && let Some(place) = bytes.iter().position(|&scale| scale == NAN_SCALE)
        {
            let element = rows.start * tensor.row_bytes() + place;
            return Err(self.not_finite(name, tensor, element, "the scale 255, which is NaN,"));
        }
        Ok(bytes)
    }

    fn tensor(&self, name: &str) -> Result<&Tensor, CheckpointError> {
        self.table.get(name, CHECKED_AT_OPEN)
    }

    fn not_finite(
        &self,
        name: &str,
        tensor: &Tensor,
        element: usize,
        value: &'static str,
    ) -> CheckpointError {
        CheckpointError::NotFinite {
            file: self.table.file_of(tensor).to_owned(),
            tensor: name.to_owned(),
            index: tensor.coordinates(element),
            value,
        }
    }
}

/// The first bf16 element that is NaN or infinite: all bits of the exponent are set.
fn first_not_finite(bytes: &[u8]) -> Option<(usize, &'static str)> {
    let (elements, _) = bytes.as_chunks::<2>();
    // Whole runs first, in a form that vectorises: nearly always all is well.
    let is_poisoned = |run: &[[u8; 2]]| {
        run.iter().fold(false, |any, &element| any | (u16::from_le_bytes(element) & 0x7f80 == 0x7f80))
    };
    if !elements.chunks(1 << 12).any(is_poisoned) {
        return None;
    }
    let place = elements.iter().position(|&element| u16::from_le_bytes(element) & 0x7f80 == 0x7f80)?;
    let is_nan = u16::from_le_bytes(elements[place]) & 0x007f != 0;
    Some((place, if is_nan { "NaN" } else { "infinity" }))
}
