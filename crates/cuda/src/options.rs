//! What whoever starts a device chooses.

/// How a [`Cuda`](crate::Cuda) computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CudaOptions {
    /// The bits of a row's results follow from its own input, the weights and its
    /// sequence's keys and values alone: not from how many rows share the step, nor
    /// from how the sequence is cut into slices. Otherwise steps of equal slices
    /// give equal bits, and others nearly the same. What it costs, and which
    /// kernels then are not used, is said where they are chosen: `product.rs`,
    /// `attention/plan.rs` and `experts/plan.rs`.
    pub batch_invariant: bool,
    /// Rows of partial results, of 264 bytes each, that attention takes room for at
    /// most; a step that has more goes through it in rounds. One tile's always fit.
    pub partial_rows_max: u32,
    /// Bytes of the weights behind a layer's experts that a small step asks for, to be
    /// in the L2 cache, while it chooses those: see `ahead.rs`. Results are the same.
    /// Whether they are still there when they are wanted, after the experts' own have
    /// gone through the cache, no GPU has shown yet, so none unless told.
    pub ahead_bytes: usize,
}

impl Default for CudaOptions {
    /// 256 decoding sequences of 8 key and value heads with groups of 8 take one
    /// round at any length.
    fn default() -> Self {
        Self { batch_invariant: false, partial_rows_max: 1 << 19, ahead_bytes: 0 }
    }
}
