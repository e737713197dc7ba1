//! Copies to the host, by way of pinned memory.

#![expect(unsafe_code, reason = "reads memory that the GPU writes")]

use super::context::{Context, Event, Pinned};
use crate::gpu::{Arriving, GpuError};
use std::sync::{Arc, Mutex, PoisonError};

/// The least that a piece of pinned memory has: an answer of a step.
const LEAST_BYTES: usize = 64 << 10;
/// Such pieces that are there from the start: answers of steps in flight, and what
/// else a step fetches. Pinning memory may wait for kernels, and those of several
/// GPUs for each other.
const MADE_EARLY: usize = 4;
/// What larger copies are cut into when the caller waits for them.
const CHUNK_BYTES: usize = 4 << 20;
/// Pieces that are kept for later copies, none larger than a chunk. More than
/// that are under way only if the caller lets answers pile up.
const KEPT: usize = 16;

/// Pinned memory, and when it holds what the GPU was asked for.
struct Landing {
    memory: Pinned,
    written: Event,
}

impl Landing {
    fn new(context: &Arc<Context>, len: usize) -> Result<Self, GpuError> {
        Ok(Self { memory: Pinned::new(context, len)?, written: Event::new(context, false)? })
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        // Not for the whole stream, of which a graph may be captured meanwhile.
        // If it fails there are no copies any more.
        let _ = self.written.wait();
    }
}

/// Pinned memory that copies to the host go through.
pub(super) struct Arrivals {
    context: Arc<Context>,
    free: Arc<Mutex<Vec<Landing>>>,
}

impl Arrivals {
    pub(super) fn new(context: &Arc<Context>) -> Result<Self, GpuError> {
        let early = (0..MADE_EARLY).map(|_| Landing::new(context, LEAST_BYTES));
        let free = Mutex::new(early.collect::<Result<_, _>>()?);
        Ok(Self { context: Arc::clone(context), free: Arc::new(free) })
    }

    /// Waits for all that is enqueued, and copies to the host.
    ///
    /// # Safety
    /// `from` and what follows is memory of the GPU.
    pub(super) unsafe fn download(&self, from: u64, bytes: &mut [u8]) -> Result<(), GpuError> {
        // The next chunk travels while one is copied on.
        let mut under_way = None;
        let mut from = from;
        for chunk in bytes.chunks_mut(CHUNK_BYTES) {
            // SAFETY: the caller's; chunks follow each other.
            let copy = unsafe { self.begin(from, chunk.len()) }?;
            from += chunk.len() as u64;
            if let Some((earlier, room)) = under_way.replace((copy, chunk)) {
                Copy::finish(earlier, |found| room.copy_from_slice(found))?;
            }
        }
        under_way.map_or(Ok(()), |(last, room)| last.finish(|found| room.copy_from_slice(found)))
    }

    /// Enqueues a copy to the host; the result waits for it.
    ///
    /// # Safety
    /// `from` and what follows is memory of the GPU.
    pub(super) unsafe fn begin_download(&self, from: u64, len: usize) -> Result<Arriving, GpuError> {
        // SAFETY: the caller's.
        let copy = unsafe { self.begin(from, len) }?;
        Ok(Box::new(move || {
            let mut bytes = Vec::new();
            copy.finish(|found| bytes.extend_from_slice(found))?;
            Ok(bytes)
        }))
    }

    /// # Safety
    /// `from` and what follows is memory of the GPU.
    unsafe fn begin(&self, from: u64, len: usize) -> Result<Copy, GpuError> {
        let kept = {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            let fits = free.iter().position(|landing| landing.memory.len() >= len);
            fits.map(|index| free.swap_remove(index))
        };
        let landing = match kept {
            Some(landing) => landing,
            None => Landing::new(&self.context, len.next_power_of_two().max(LEAST_BYTES))?,
        };
        // SAFETY: the copy owns the memory and looks at it once the event is past.
        // One that is given up early goes to the next copy, which comes later in
        // the stream. The rest is the caller's.
        unsafe { landing.memory.copy_in(from, len) }?;
        landing.written.record()?;
        Ok(Copy { landing: Some(landing), len, free: Arc::clone(&self.free) })
    }
}

/// A copy under way. Gives its memory back when it is dropped.
struct Copy {
    landing: Option<Landing>,
    len: usize,
    free: Arc<Mutex<Vec<Landing>>>,
}

impl Copy {
    fn finish(self, take: impl FnOnce(&[u8])) -> Result<(), GpuError> {
        if let Some(landing) = &self.landing {
            landing.written.wait()?;
            // SAFETY: the copy is done, and no other has this memory.
            take(&unsafe { landing.memory.bytes() }[..self.len]);
        }
        Ok(())
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let is_kept = |landing: &Landing| free.len() < KEPT && landing.memory.len() <= CHUNK_BYTES;
        if let Some(landing) = self.landing.take().filter(is_kept) {
            free.push(landing);
        }
    }
}
