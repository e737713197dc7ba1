//! Paged keys and values in bf16: each layer is `[page][kv head][keys,
//! values][block_size][head_dim]`, so that a head's keys of a page lie together.

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
        assert_eq!(shape.dtype, KvDtype::Bf16, "fp8 is under way");
        assert!(shape.block_size.is_power_of_two(), "a block size that is a power of two");
        let page_bytes = shape.num_kv_heads * 2 * shape.block_size * shape.head_dim * size_of::<u16>();
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
}
