//! Paged keys and values in f32: for each layer `[pages, kv heads, block size,
//! head dim]`, so that a head's keys of a page lie together.

use super::CpuError;
use crate::columns::{SliceColumns, Table};
use crate::device::KvShape;

/// Keys and values of all layers.
#[derive(Debug)]
pub struct KvCache {
    pub(super) shape: KvShape,
    layers: Vec<Layer>,
}

#[derive(Debug)]
struct Layer {
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl KvCache {
    pub(super) fn new(shape: &KvShape) -> Result<Self, CpuError> {
        assert!(shape.head_dim.is_multiple_of(2) && shape.block_size > 0);
        let layers = shape.windows.iter().map(|window| {
            let pages = if window.is_some() { shape.num_sliding_blocks } else { shape.num_full_blocks };
            // Too much to count is too much to have.
            let len = [shape.num_kv_heads, shape.block_size, shape.head_dim]
                .iter()
                .fold(pages, |len, factor| len.saturating_mul(*factor));
            Ok(Layer { keys: super::zeros(len)?, values: super::zeros(len)? })
        });
        Ok(Self { shape: shape.clone(), layers: layers.collect::<Result<_, _>>()? })
    }

    /// The pages that `layer` keeps a slice's positions in.
    pub(super) fn table<'a>(&self, layer: usize, slice: &'a SliceColumns) -> &'a Table {
        if self.shape.windows[layer].is_some() { &slice.sliding } else { &slice.full }
    }

    /// Writes one head's key and value at a position.
    pub(super) fn write(&mut self, at: Place, key: &[f32], value: &[f32]) {
        let offset = self.offset(at);
        let layer = &mut self.layers[at.layer];
        layer.keys[offset..][..key.len()].copy_from_slice(key);
        layer.values[offset..][..value.len()].copy_from_slice(value);
    }

    /// One head's keys from a place on, `count` of them in the same page.
    #[inline(always)]
    pub(super) fn keys(&self, at: Place, count: usize) -> &[f32] {
        &self.layers[at.layer].keys[self.offset(at)..][..count * self.shape.head_dim]
    }

    /// One head's values from a place on, `count` of them in the same page.
    #[inline(always)]
    pub(super) fn values(&self, at: Place, count: usize) -> &[f32] {
        &self.layers[at.layer].values[self.offset(at)..][..count * self.shape.head_dim]
    }

    #[inline(always)]
    fn offset(&self, at: Place) -> usize {
        let head = at.page * self.shape.num_kv_heads + at.head;
        (head * self.shape.block_size + at.slot) * self.shape.head_dim
    }

    /// Where a position of a sequence lies.
    #[inline(always)]
    pub(super) fn place(&self, layer: usize, head: usize, table: &Table, position: usize) -> Place {
        let block = (position / self.shape.block_size)
            .checked_sub(table.first as usize)
            .expect("the table holds the window");
        let page = table.pages[block] as usize;
        Place { layer, page, head, slot: position % self.shape.block_size }
    }
}

/// One head's place for one position.
#[derive(Clone, Copy)]
pub(super) struct Place {
    layer: usize,
    page: usize,
    head: usize,
    slot: usize,
}
