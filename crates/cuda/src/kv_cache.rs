//! Paged keys and values: each layer is `[page][kv head][keys,
//! values][block_size][head_dim]`, so that a head's keys of a page lie together.
//!
//! FP8 rows are codes, in the order of kernels/fp8.cuh, and the exponents of all
//! rows follow the layer's last page: `[page][kv head][block_size][key, value]`
//! bytes. So a row is 65 bytes with pages of any size, codes of a row are aligned
//! to 64 and the exponents of a head's page lie together.

use crate::gpu::GpuError;
use crate::memory::Memory;
use crate::stream::Stream;
use chorale_device::{KvDtype, KvShape};

/// The only width of a head that the kernels know: gpt-oss's.
pub(crate) const HEAD_DIM: usize = 64;

/// Keys and values of all layers.
pub struct KvCache {
    shape: KvShape,
    layers: Vec<Memory>,
}

impl KvCache {
    pub(crate) fn new(stream: &Stream, shape: &KvShape) -> Result<Self, GpuError> {
        assert!(matches!(shape.dtype, KvDtype::Bf16 | KvDtype::Fp8), "keys and values in {:?}", shape.dtype);
        assert!(shape.block_size.is_power_of_two(), "a block size that is a power of two");
        let page_bytes = page_rows(shape) * shape.dtype.row_bytes(shape.head_dim);
        let layers = shape.windows.iter().map(|window| {
            let pages = if window.is_some() { shape.num_sliding_blocks } else { shape.num_full_blocks };
            stream.alloc(pages.saturating_mul(page_bytes))
        });
        Ok(Self { shape: shape.clone(), layers: layers.collect::<Result<_, _>>()? })
    }

    pub(crate) fn shape(&self) -> &KvShape {
        &self.shape
    }

    /// Where a layer's pages begin.
    pub(crate) fn layer(&self, layer: usize) -> u64 {
        self.layers[layer].address()
    }

    /// Where the exponents of a layer's rows begin, or 0 where they have none.
    pub(crate) fn exponents(&self, layer: usize) -> u64 {
        let shape = &self.shape;
        let pages =
            if shape.windows[layer].is_some() { shape.num_sliding_blocks } else { shape.num_full_blocks };
        match shape.dtype {
            KvDtype::Fp8 => self.layer(layer) + (pages * self.page_bytes()) as u64,
            KvDtype::Bf16 | KvDtype::F32 => 0,
        }
    }

    /// Bytes from one page to the next.
    pub(crate) fn page_bytes(&self) -> usize {
        let value_bytes = if self.shape.dtype == KvDtype::Fp8 { size_of::<u8>() } else { size_of::<u16>() };
        page_rows(&self.shape) * self.shape.head_dim * value_bytes
    }
}

/// Keys and values of all heads in a page.
fn page_rows(shape: &KvShape) -> usize {
    shape.num_kv_heads * 2 * shape.block_size
}
