//! Attention of one layer: sequences that each add a token, and prompts.

use super::{Bench, Matrix, limits};
use crate::bench::geometry::{BLOCK_SIZE, Geometry, HEAD_DIM};
use crate::bench::limits::Work;
use crate::noise;
use crate::reference::Random;
use chorale_cuda::{Cuda, GpuError};
use chorale_device::Precision::Half;
use chorale_device::{Columns, DenseDtype, Device, KvDtype, SliceColumns, Table};
use std::ops::Range;

/// Layers that decoding rotates through at most.
const LAYERS_MAX: usize = 64;

/// What keys and values are kept in.
const KV_DTYPES: [KvDtype; 2] = [KvDtype::Bf16, KvDtype::Fp8];

/// An operation's name, with what keys and values are kept in unless it is bf16.
fn named(what: &str, dtype: KvDtype) -> String {
    match dtype {
        KvDtype::Bf16 => what.to_owned(),
        KvDtype::Fp8 | KvDtype::F32 => format!("{what}, {}", dtype.name()),
    }
}

/// Sequences with the same positions, whose pages lie mixed.
fn step(num_sequences: usize, positions: Range<usize>) -> Columns {
    let pages = positions.end.div_ceil(BLOCK_SIZE);
    let slice = |sequence: usize| {
        let numbers = (0..pages).map(|page| (page * num_sequences + sequence) as u32);
        let table = Table { first: 0, pages: numbers.collect() };
        let first = (sequence * positions.len()) as u32;
        let rows = first..first + positions.len() as u32;
        SliceColumns { rows, full: table.clone(), sliding: table }
    };
    let all = (0..num_sequences).flat_map(|_| positions.start as u32..positions.end as u32);
    Columns {
        tokens: vec![0; num_sequences * positions.len()],
        positions: all.collect(),
        slices: (0..num_sequences).map(slice).collect(),
        ..Columns::default()
    }
}

/// Visible keys of all rows of one sequence.
fn num_keys(positions: Range<usize>, window: Option<u32>) -> usize {
    positions.map(|position| window.map_or(position + 1, |window| (position + 1).min(window as usize))).sum()
}

impl Bench<'_> {
    pub(super) fn attention(&mut self) -> Result<(), GpuError> {
        let extent = self.extent;
        let windows = [None, Some(self.geometry.window)];
        for (kv, window) in KV_DTYPES.into_iter().flat_map(|kv| windows.map(|window| (kv, window))) {
            for &num_sequences in &extent.decodes {
                self.layers(num_sequences, extent.context - 1..extent.context, (kv, window))?;
            }
            for &rows in &extent.operation_prefills {
                self.layers(1, 0..rows, (kv, window))?;
            }
        }
        Ok(())
    }

    fn layers(
        &mut self,
        num_sequences: usize,
        positions: Range<usize>,
        (dtype, window): (KvDtype, Option<u32>),
    ) -> Result<(), GpuError> {
        let geometry = self.geometry;
        let (hidden, qkv, kv_bytes) = (geometry.hidden, geometry.qkv(), geometry.kv_bytes(dtype));
        let is_decode = positions.len() == 1;
        let num_rows = num_sequences * positions.len();
        let cache_bytes = num_sequences * positions.end * kv_bytes;
        let rotated = self.extent.rotated_bytes;
        let num_layers = if is_decode { rotated.div_ceil(cache_bytes).min(LAYERS_MAX) } else { 2 };
        let device = &mut self.meter.device;
        let num_blocks = num_sequences * positions.end.div_ceil(BLOCK_SIZE);
        let kv = geometry.kv_shape(dtype, vec![window; num_layers], num_blocks);
        let mut cache = device.kv_cache(&kv)?;
        let weights = device.linear(noise::dense(&mut Random(1), qkv, hidden, true), DenseDtype::Bf16)?;
        let sinks = device.sinks(noise::bf16(&mut Random(2), geometry.heads))?;
        let samples = device.samples(1)?;

        // All positions once, so that pages hold numbers.
        let each = (self.extent.fill_rows / num_sequences).clamp(1, positions.end);
        let mut at = 0;
        while is_decode && at < positions.end {
            let run = at..(at + each).min(positions.end);
            let rows = num_sequences * run.len();
            let mut batch = device.batch(limits(rows), &self.rope, &kv)?;
            let (input, mut queries) = rows_and_queries(device, geometry, rows)?;
            device.begin(&step(num_sequences, run.clone()), &samples, &mut batch)?;
            for layer in 0..num_layers {
                device.qkv(&input, &weights, &batch, &mut cache, layer, &mut queries)?;
            }
            device.wait()?;
            at = run.end;
        }

        let mut batch = device.batch(limits(num_rows), &self.rope, &kv)?;
        device.begin(&step(num_sequences, positions.clone()), &samples, &mut batch)?;
        let (input, mut queries) = rows_and_queries(device, geometry, num_rows)?;
        let mut context = device.matrix(num_rows, geometry.queries(), Half)?;
        let seconds = self.meter.time(|device| {
            (0..num_layers)
                .try_for_each(|layer| device.qkv(&input, &weights, &batch, &mut cache, layer, &mut queries))
        })?;
        let of = match (is_decode, window) {
            (true, None) => format!("{num_sequences} × 1 row, context {}", positions.end),
            (true, Some(window)) => format!("{num_sequences} × 1 row, window {window}"),
            (false, None) => format!("{num_rows} rows, full"),
            (false, Some(window)) => format!("{num_rows} rows, window {window}"),
        };
        if window.is_none() {
            let bytes = 2 * qkv * hidden + 2 * num_rows * (hidden + qkv);
            let work = Work { bytes, flop: 2 * num_rows * hidden * qkv };
            // The same weights each time: where they are read from a cache, its share tells.
            self.add(&named("qkv with pages", dtype), of.clone(), seconds, num_layers, work);
        }
        let seconds = self.meter.time(|device| {
            (0..num_layers)
                .try_for_each(|layer| device.attention(&queries, &sinks, &batch, &cache, layer, &mut context))
        })?;
        let keys = num_keys(positions.clone(), window);
        // Each sequence's visible pages once, queries and contexts.
        let seen = match window {
            Some(window) if is_decode => positions.end.min(window as usize),
            _ => positions.end,
        };
        let work = Work {
            bytes: num_sequences * seen * kv_bytes + 2 * 2 * num_rows * geometry.queries(),
            flop: num_sequences * keys * 4 * geometry.heads * HEAD_DIM,
        };
        self.add(&named("attention", dtype), of, seconds, num_layers, work);
        Ok(())
    }
}

fn rows_and_queries(
    device: &mut Cuda,
    geometry: &Geometry,
    rows: usize,
) -> Result<(Matrix, Matrix), GpuError> {
    let hidden = geometry.hidden;
    let mut input = device.matrix(rows, hidden, Half)?;
    device.write(&noise::activations(&mut Random(rows as u64), rows * hidden), &mut input)?;
    Ok((input, device.matrix(rows, geometry.queries(), Half)?))
}
