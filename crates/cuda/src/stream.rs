//! Work for the GPU in order: launches are gathered into a list, which goes to
//! the GPU when the host needs an answer or has something to copy. A list that
//! equals an older one can then be replayed as a graph.

#![expect(unsafe_code, reason = "launches kernels on memory that this crate owns")]

use crate::gpu::{Arriving, Facts, Gpu, GpuError};
use crate::launch::{Kernel, Launches};
use crate::memory::{Heap, Memory};
use bytemuck::Pod;
use std::ops::Range;
use std::sync::Arc;

/// The GPU's one queue, and its memory.
pub(crate) struct Stream {
    gpu: Arc<dyn Gpu>,
    heap: Arc<Heap>,
    queued: Launches,
}

impl Stream {
    pub(crate) fn new(gpu: Arc<dyn Gpu>) -> Self {
        Self { heap: Heap::new(Arc::clone(&gpu)), gpu, queued: Launches::default() }
    }

    pub(crate) fn gpu(&self) -> &Arc<dyn Gpu> {
        &self.gpu
    }

    pub(crate) fn facts(&self) -> &Facts {
        self.gpu.facts()
    }

    /// Memory for `len` bytes; what it holds is unspecified.
    pub(crate) fn alloc(&self, len: usize) -> Result<Memory, GpuError> {
        self.heap.alloc(len)
    }

    /// Makes sure that `memory` has at least `len` bytes, of which nothing is kept.
    pub(crate) fn grow(&self, memory: &mut Option<Memory>, len: usize) -> Result<u64, GpuError> {
        if memory.as_ref().is_none_or(|memory| memory.len() < len) {
            *memory = None;
            *memory = Some(self.alloc(len.next_power_of_two())?);
        }
        Ok(memory.as_ref().map_or(0, Memory::address))
    }

    /// Queues a launch. The caller asserts all that the kernel assumes: that
    /// `args` is the kernel's struct, and what its addresses point to is large enough.
    pub(crate) fn launch<A: Pod>(&mut self, kernel: Kernel, grid: [u32; 3], shared_bytes: u32, args: &A) {
        self.queued.push(kernel, grid, shared_bytes, args);
    }

    /// Hands over what is queued.
    pub(crate) fn flush(&mut self) -> Result<(), GpuError> {
        if self.queued.is_empty() {
            return Ok(());
        }
        // SAFETY: whoever queued a launch asserted what its kernel assumes, and
        // memory that was dropped since is not swept before this.
        let ran = unsafe { self.gpu.run(&self.queued) };
        self.queued.clear();
        self.heap.sweep();
        ran
    }

    /// Copies to the device, after what is queued.
    pub(crate) fn upload(&mut self, bytes: &[u8], to: &Memory, offset: usize) -> Result<(), GpuError> {
        self.flush()?;
        let range = within(to, offset, bytes.len());
        if range.is_empty() {
            return Ok(());
        }
        // SAFETY: the range lies within the memory.
        unsafe { self.gpu.upload(bytes, to.address() + range.start as u64) }
    }

    /// Waits for all that is queued, and copies to the host.
    pub(crate) fn download(
        &mut self,
        from: &Memory,
        offset: usize,
        bytes: &mut [u8],
    ) -> Result<(), GpuError> {
        self.flush()?;
        let range = within(from, offset, bytes.len());
        if range.is_empty() {
            return Ok(());
        }
        // SAFETY: the range lies within the memory.
        unsafe { self.gpu.download(from.address() + range.start as u64, bytes) }
    }

    /// Starts a copy to the host, after what is queued.
    pub(crate) fn begin_download(
        &mut self,
        from: &Memory,
        offset: usize,
        len: usize,
    ) -> Result<Arriving, GpuError> {
        self.flush()?;
        let range = within(from, offset, len);
        if range.is_empty() {
            return Ok(Box::new(|| Ok(Vec::new())));
        }
        // SAFETY: the range lies within the memory.
        unsafe { self.gpu.begin_download(from.address() + range.start as u64, len) }
    }

    /// Waits for all that is queued.
    pub(crate) fn wait(&mut self) -> Result<(), GpuError> {
        self.flush()?;
        self.gpu.wait()
    }
}

fn within(memory: &Memory, offset: usize, len: usize) -> Range<usize> {
    let end = offset.checked_add(len).filter(|&end| end <= memory.len());
    offset..end.expect("a range within the memory")
}
