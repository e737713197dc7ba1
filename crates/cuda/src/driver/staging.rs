//! Copies to the GPU, by way of pinned memory: what the caller gives is copied
//! there first, so that it may change at once and the GPU fetches at full speed.

#![expect(unsafe_code, reason = "writes to memory that the GPU reads")]

use super::context::{Context, Event, Pinned};
use crate::gpu::GpuError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Pieces of the ring that small copies take turns in: a step has a handful.
const SMALL_SLOTS: usize = 32;
/// Bytes of each.
const SMALL_BYTES: usize = 32 << 10;

/// Bytes of a chunk of a large copy: long enough for PCIe to be at full speed,
/// short enough for the first to leave soon.
const CHUNK_BYTES: usize = 4 << 20;
/// Chunks of a thread: it fills one while the other travels.
const CHUNKS_EACH: usize = 2;
/// Threads that fill chunks. One moves about 10 GB/s, PCIe 5 takes 50 and more.
const THREADS_MAX: usize = 6;

/// A piece of pinned memory, and when the GPU is done with it.
struct Slot {
    memory: Pinned,
    read: Event,
}

impl Slot {
    fn new(context: &Arc<Context>, len: usize) -> Result<Self, GpuError> {
        Ok(Self { memory: Pinned::new(context, len)?, read: Event::new(context, false)? })
    }

    /// Sends bytes on their way, once the last ones have left.
    ///
    /// # Safety
    /// `to` and what follows is memory of the GPU.
    unsafe fn send(&mut self, bytes: &[u8], to: u64) -> Result<(), GpuError> {
        self.read.wait()?;
        // SAFETY: the GPU is done with what was in it.
        let room = unsafe { self.memory.bytes_mut() };
        room[..bytes.len()].copy_from_slice(bytes);
        // SAFETY: `read` is waited for before it changes. The rest is the caller's.
        unsafe { self.memory.copy_out(to, bytes.len()) }?;
        self.read.record()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // If that fails there are no copies any more.
        let _ = self.read.wait();
    }
}

/// Pinned memory that copies to the GPU go through.
pub(super) struct Staging {
    context: Arc<Context>,
    small: Vec<Slot>,
    next_small: usize,
    /// Those of each thread; made when the first large copy comes.
    large: Vec<Vec<Slot>>,
}

impl Staging {
    pub(super) fn new(context: &Arc<Context>) -> Result<Self, GpuError> {
        let small = (0..SMALL_SLOTS).map(|_| Slot::new(context, SMALL_BYTES)).collect::<Result<_, _>>()?;
        Ok(Self { context: Arc::clone(context), small, next_small: 0, large: Vec::new() })
    }

    /// Enqueues a copy; `bytes` may change when this returns.
    ///
    /// # Safety
    /// `to` and what follows is memory of the GPU.
    pub(super) unsafe fn upload(&mut self, bytes: &[u8], to: u64) -> Result<(), GpuError> {
        if bytes.len() > SMALL_BYTES * SMALL_SLOTS / 2 {
            // SAFETY: the caller's.
            return unsafe { self.upload_large(bytes, to) };
        }
        let mut to = to;
        for piece in bytes.chunks(SMALL_BYTES) {
            let slot = &mut self.small[self.next_small];
            self.next_small = (self.next_small + 1) % SMALL_SLOTS;
            // SAFETY: the caller's; the pieces follow each other.
            unsafe { slot.send(piece, to) }?;
            to += piece.len() as u64;
        }
        Ok(())
    }

    /// Several threads take chunks in turn, each fills one of its slots while
    /// the other travels. Chunks do not overlap, so their order is free.
    ///
    /// # Safety
    /// `to` and what follows is memory of the GPU.
    unsafe fn upload_large(&mut self, bytes: &[u8], to: u64) -> Result<(), GpuError> {
        self.make_large()?;
        let chunks: Vec<&[u8]> = bytes.chunks(CHUNK_BYTES).collect();
        let next = AtomicUsize::new(0);
        let failure = Mutex::new(None);
        let work = |slots: &mut Vec<Slot>| {
            for turn in 0.. {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(chunk) = chunks.get(index) else { return };
                let slot = &mut slots[turn % CHUNKS_EACH];
                // SAFETY: the caller's; each chunk goes to its own place.
                if let Err(error) = unsafe { slot.send(chunk, to + (index * CHUNK_BYTES) as u64) } {
                    *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    return;
                }
            }
        };
        let threads = chunks.len().min(self.large.len());
        std::thread::scope(|scope| {
            let (first, others) = self.large[..threads].split_at_mut(1);
            for slots in others {
                scope.spawn(|| work(slots));
            }
            first.iter_mut().for_each(work);
        });
        failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    fn make_large(&mut self) -> Result<(), GpuError> {
        if self.large.is_empty() {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            for _ in 0..(cores / 2).clamp(2, THREADS_MAX) {
                let slots = (0..CHUNKS_EACH).map(|_| Slot::new(&self.context, CHUNK_BYTES));
                self.large.push(slots.collect::<Result<_, _>>()?);
            }
        }
        Ok(())
    }
}
