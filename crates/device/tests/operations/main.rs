//! Tests every operation of a device against plain f64 loops, over random
//! shapes and the edges. The checks are generic: a faster device is run through
//! the same ones.

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

mod attention;
mod empty;
mod experts;
mod fixtures;
mod host;
mod reference;
mod rows;

use chorale_device::{BatchLimits, Columns, Cpu, Device, Draw, RopeParams, SliceColumns, Table};
use reference::Rows;
use std::num::NonZeroUsize;

pub(crate) fn cpu() -> Cpu {
    Cpu::new(NonZeroUsize::new(2)).unwrap()
}

pub(crate) const ROPE: RopeParams = RopeParams { head_dim: 8, theta: 10_000.0, yarn: None };

pub(crate) fn limits(rows: usize) -> BatchLimits {
    BatchLimits { max_rows: rows, max_slices: rows, max_logit_rows: rows }
}

/// A batch that looks up row `r` of a table as token `r`.
pub(crate) fn columns(num_rows: usize) -> Columns {
    let rows = 0..num_rows as u32;
    Columns {
        tokens: rows.clone().collect(),
        positions: rows.clone().collect(),
        slices: vec![SliceColumns { rows, full: Table::default(), sliding: Table::default() }],
        ..Columns::default()
    }
}

/// Puts rows on the device by way of an embedding table.
pub(crate) fn upload<D: Device>(device: &mut D, rows: &Rows) -> D::Matrix {
    let table = device.embedding(reference::dense(&[(rows, None)])).unwrap();
    let samples = device.samples(1).unwrap();
    let mut batch = device.batch(limits(rows.len()), &ROPE).unwrap();
    device.begin(&columns(rows.len()), &samples, &mut batch).unwrap();
    let mut matrix = device.matrix(rows.len(), rows[0].len()).unwrap();
    device.embed(&table, &batch, &mut matrix).unwrap();
    matrix
}

pub(crate) fn greedy() -> Draw {
    Draw {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        allowed: None,
        bias: Vec::new(),
        penalties: None,
        seed: 0,
        position: 0,
        num_logprobs: None,
    }
}

/// Asserts closeness relative to the largest expected magnitude.
pub(crate) fn assert_close(found: &[f32], expected: &Rows, tolerance: f64, what: &str) {
    let expected = expected.concat();
    assert_eq!(found.len(), expected.len(), "{what}: values");
    let scale = expected.iter().fold(1.0f64, |largest, value| largest.max(value.abs()));
    for (index, (&found, &expected)) in found.iter().zip(&expected).enumerate() {
        let error = (f64::from(found) - expected).abs() / scale;
        assert!(error <= tolerance, "{what}: value {index} is {found}, not {expected}");
    }
}
