//! Memory of the GPU that frees itself, once nothing that is queued uses it.

#![expect(unsafe_code, reason = "gives back what was allocated")]

use crate::gpu::{Gpu, GpuError};
use std::sync::{Arc, Mutex, PoisonError};

/// Memory on the GPU.
pub(crate) struct Memory {
    address: u64,
    len: usize,
    heap: Arc<Heap>,
}

impl Memory {
    /// Where it begins, a multiple of 256.
    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    /// Its bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.heap.dead.lock().unwrap_or_else(PoisonError::into_inner).push((self.address, self.len));
    }
}

/// Where memory comes from, and where it waits to be given back: launches
/// that are queued but not enqueued yet may still use it.
pub(crate) struct Heap {
    gpu: Arc<dyn Gpu>,
    dead: Mutex<Vec<(u64, usize)>>,
}

impl Heap {
    pub(crate) fn new(gpu: Arc<dyn Gpu>) -> Arc<Self> {
        Arc::new(Self { gpu, dead: Mutex::default() })
    }

    /// Memory for `len` bytes, at least one.
    pub(crate) fn alloc(self: &Arc<Self>, len: usize) -> Result<Memory, GpuError> {
        let len = len.max(1);
        Ok(Memory { address: self.gpu.alloc(len)?, len, heap: Arc::clone(self) })
    }

    /// Gives back what was dropped; nothing that is not enqueued uses it.
    pub(crate) fn sweep(&self) {
        let dead = std::mem::take(&mut *self.dead.lock().unwrap_or_else(PoisonError::into_inner));
        for (address, len) in dead {
            // SAFETY: it came from `alloc`, its owner is gone, and what used it is enqueued.
            unsafe { self.gpu.free(address, len) };
        }
    }
}

impl Drop for Heap {
    fn drop(&mut self) {
        self.sweep();
    }
}
