//! Memory of the GPU, or of the host for it, that frees itself, once nothing that is queued uses it.

#![expect(unsafe_code, reason = "gives back what was allocated")]

use crate::gpu::{Gpu, GpuError};
use std::sync::{Arc, Mutex, PoisonError};

/// Memory on the GPU, or where it can read it.
pub(crate) struct Memory {
    address: u64,
    len: usize,
    is_on_gpu: bool,
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

    /// False if it is the host's.
    pub(crate) fn is_on_gpu(&self) -> bool {
        self.is_on_gpu
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let dead = Dead { address: self.address, len: self.len, is_on_gpu: self.is_on_gpu };
        self.heap.dead.lock().unwrap_or_else(PoisonError::into_inner).push(dead);
    }
}

/// Where memory comes from, and where it waits to be given back: launches
/// that are queued but not enqueued yet may still use it.
pub(crate) struct Heap {
    gpu: Arc<dyn Gpu>,
    dead: Mutex<Vec<Dead>>,
    /// What else is dropped when nothing uses it any more.
    things: Mutex<Vec<Box<dyn Send>>>,
}

/// Memory that nobody has any more.
struct Dead {
    address: u64,
    len: usize,
    is_on_gpu: bool,
}

impl Heap {
    pub(crate) fn new(gpu: Arc<dyn Gpu>) -> Arc<Self> {
        Arc::new(Self { gpu, dead: Mutex::default(), things: Mutex::default() })
    }

    /// Memory for `len` bytes, at least one.
    pub(crate) fn alloc(self: &Arc<Self>, len: usize) -> Result<Memory, GpuError> {
        let len = len.max(1);
        Ok(Memory { address: self.gpu.alloc(len)?, len, is_on_gpu: true, heap: Arc::clone(self) })
    }

    /// The same of the host.
    pub(crate) fn alloc_host(self: &Arc<Self>, len: usize) -> Result<Memory, GpuError> {
        let len = len.max(1);
        Ok(Memory { address: self.gpu.alloc_host(len)?, len, is_on_gpu: false, heap: Arc::clone(self) })
    }

    /// Drops a thing once what is queued does not use it any more.
    pub(crate) fn drop_later(&self, thing: Box<dyn Send>) {
        self.things.lock().unwrap_or_else(PoisonError::into_inner).push(thing);
    }

    /// Gives back what was dropped; nothing that is not enqueued uses it.
    pub(crate) fn sweep(&self) {
        let dead = std::mem::take(&mut *self.dead.lock().unwrap_or_else(PoisonError::into_inner));
        for Dead { address, len, is_on_gpu } in dead {
            // SAFETY: it came from `alloc` or `alloc_host`, its owner is gone, and what
            // used it is enqueued.
            unsafe {
                match is_on_gpu {
                    true => self.gpu.free(address, len),
                    false => self.gpu.free_host(address, len),
                }
            }
        }
        let things = std::mem::take(&mut *self.things.lock().unwrap_or_else(PoisonError::into_inner));
        things.into_iter().for_each(|thing| self.gpu.drop_later(thing));
    }
}

impl Drop for Heap {
    fn drop(&mut self) {
        self.sweep();
    }
}
