//! Work for the GPU in order: launches are gathered into a list, which goes to
//! the GPU when the host needs an answer or has something to copy. A list that
//! equals an older one can then be replayed as a graph.

#![expect(unsafe_code, reason = "launches kernels on memory that this crate owns")]

use crate::gpu::{Arriving, Facts, Gpu, GpuError, Point, Transfer};
use crate::launch::{Kernel, Launches};
use crate::memory::{Heap, Memory};
use crate::options::CudaOptions;
use bytemuck::Pod;
use std::ops::Range;
use std::sync::Arc;

/// The GPU's one queue, and its memory.
pub(crate) struct Stream {
    gpu: Arc<dyn Gpu>,
    heap: Arc<Heap>,
    options: CudaOptions,
    queued: Launches,
}

impl Stream {
    pub(crate) fn new(gpu: Arc<dyn Gpu>, options: CudaOptions) -> Self {
        Self { heap: Heap::new(Arc::clone(&gpu)), gpu, options, queued: Launches::default() }
    }

    pub(crate) fn gpu(&self) -> &Arc<dyn Gpu> {
        &self.gpu
    }

    pub(crate) fn facts(&self) -> &Facts {
        self.gpu.facts()
    }

    /// How the device computes.
    pub(crate) fn options(&self) -> CudaOptions {
        self.options
    }

    pub(crate) fn set_options(&mut self, options: CudaOptions) {
        self.options = options;
    }

    /// Memory for `len` bytes; what it holds is unspecified.
    pub(crate) fn alloc(&self, len: usize) -> Result<Memory, GpuError> {
        match self.heap.alloc(len) {
            // Memory that was dropped waits for what is queued, and nothing is.
            Err(GpuError::OutOfMemory { .. }) if self.queued.is_empty() => {
                self.heap.sweep();
                self.heap.alloc(len)
            }
            outcome => outcome,
        }
    }

    /// Bytes of the GPU's memory that are free once all that is queued is done.
    pub(crate) fn free_bytes(&mut self) -> Result<usize, GpuError> {
        self.flush()?;
        self.heap.sweep();
        self.gpu.free_bytes()
    }

    /// Memory of the host for `len` bytes, which kernels may read.
    pub(crate) fn alloc_host(&self, len: usize) -> Result<Memory, GpuError> {
        self.heap.alloc_host(len)
    }

    /// Where memory comes from.
    pub(crate) fn heap(&self) -> &Arc<Heap> {
        &self.heap
    }

    /// Makes sure that `memory` has at least `len` bytes, of which nothing is kept.
    pub(crate) fn grow(&self, memory: &mut Option<Memory>, len: usize) -> Result<u64, GpuError> {
        if memory.as_ref().is_none_or(|memory| memory.len() < len) {
            *memory = None;
            *memory = Some(self.alloc(len.next_power_of_two())?);
        }
        Ok(memory.as_ref().map_or(0, Memory::address))
    }

    /// The same, and exactly as many: for what is not going to grow.
    pub(crate) fn reserve(&self, memory: &mut Option<Memory>, len: usize) -> Result<(), GpuError> {
        if len > 0 && memory.as_ref().is_none_or(|memory| memory.len() < len) {
            *memory = None;
            *memory = Some(self.alloc(len)?);
        }
        Ok(())
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

    /// Copies between memories that live, after what is queued. The caller asserts
    /// that both ranges lie within them.
    pub(crate) fn copy(&mut self, transfer: Transfer) -> Result<(), GpuError> {
        self.flush()?;
        // SAFETY: the caller asserted it.
        unsafe { self.gpu.copy(transfer.from, transfer.to, transfer.len) }
    }

    /// The point behind all that is queued.
    pub(crate) fn point(&mut self) -> Result<Point, GpuError> {
        self.flush()?;
        self.gpu.point()
    }

    /// Copies between memories that live, beside what is queued and behind a point;
    /// gives the point behind the copies. The caller asserts that the ranges lie
    /// within memories, and that nothing uses them otherwise between the two points.
    pub(crate) fn copy_aside(&mut self, after: Point, copies: &[Transfer]) -> Result<Point, GpuError> {
        // SAFETY: the caller asserted it.
        unsafe { self.gpu.copy_aside(after, copies) }
    }

    /// What is queued from now on waits for a point.
    pub(crate) fn follow(&mut self, point: Point) -> Result<(), GpuError> {
        self.flush()?;
        self.gpu.follow(point)
    }

    /// Waits for all that is queued.
    pub(crate) fn wait(&mut self) -> Result<(), GpuError> {
        self.flush()?;
        self.gpu.wait()
    }
}

impl Drop for Stream {
    /// Other GPUs' memory is not held up by what nobody will launch.
    fn drop(&mut self) {
        self.heap.sweep();
        let _ = self.gpu.wait();
    }
}

fn within(memory: &Memory, offset: usize, len: usize) -> Range<usize> {
    let end = offset.checked_add(len).filter(|&end| end <= memory.len());
    offset..end.expect("a range within the memory")
}
