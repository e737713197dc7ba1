//! Copies that run beside the launches, as unkindly as a GPU may: none is done
//! before somebody waits for it or asks for it often enough, and until then its
//! destination holds NaN.

#![expect(unsafe_code, reason = "copies what kernels read")]

use chorale_cuda::{Point, Transfer};
use std::collections::VecDeque;

/// What memory holds that nobody wrote.
const POISON: u8 = 0xFF;
/// One of so many questions finds a copy done.
const PATIENCE: u64 = 3;

/// Copies that are enqueued and not done.
#[derive(Debug, Default)]
pub(crate) struct Aside {
    last: u64,
    pending: VecDeque<Batch>,
    draws: u64,
}

/// Copies that come behind a point together.
#[derive(Debug)]
struct Batch {
    point: Point,
    copies: Vec<Transfer>,
    /// What the sources held, and must go on to hold.
    bytes: Vec<Vec<u8>>,
}

impl Aside {
    pub(crate) fn new(seed: u64) -> Self {
        Self { draws: seed, ..Self::default() }
    }

    pub(crate) fn point(&mut self) -> Point {
        self.last += 1;
        Point(self.last)
    }

    /// Enqueues copies. Launches are done when they are enqueued, so nothing is to
    /// be waited for but older copies.
    ///
    /// # Safety
    /// All ranges are allocated, and stay so until the copies are done.
    pub(crate) unsafe fn begin(&mut self, after: Point, copies: &[Transfer]) -> Point {
        assert!(after.0 <= self.last, "copies behind {after:?}, which nobody was given");
        let is_near = |copy: &Transfer| {
            self.reader(copy.to, copy.len).or(self.writer(copy.to, copy.len)).is_some()
                || self.writer(copy.from, copy.len).is_some()
        };
        if copies.iter().any(is_near) {
            // Copies of this queue follow each other.
            self.finish_all();
        }
        let mut bytes = Vec::with_capacity(copies.len());
        for copy in copies {
            // SAFETY: the range is allocated.
            bytes.push(unsafe { std::slice::from_raw_parts(copy.from as *const u8, copy.len) }.to_vec());
        }
        for copy in copies {
            // SAFETY: the range is allocated, and nobody has a reference to it.
            unsafe { (copy.to as *mut u8).write_bytes(POISON, copy.len) };
        }
        let point = self.point();
        self.pending.push_back(Batch { point, copies: copies.to_vec(), bytes });
        point
    }

    /// Does all copies up to a point.
    pub(crate) fn finish(&mut self, point: Point) {
        assert!(point.0 <= self.last, "{point:?}, which nobody was given");
        while let Some(batch) = self.pending.pop_front_if(|batch| batch.point <= point) {
            for (copy, bytes) in batch.copies.iter().zip(&batch.bytes) {
                // SAFETY: both were allocated when it began, and memory is not
                // given back before all copies are done.
                unsafe {
                    let from = std::slice::from_raw_parts(copy.from as *const u8, copy.len);
                    assert!(from == &bytes[..], "what is copied aside changed meanwhile: {copy:x?}");
                    (copy.to as *mut u8).copy_from_nonoverlapping(bytes.as_ptr(), copy.len);
                }
            }
        }
    }

    /// Does all copies.
    pub(crate) fn finish_all(&mut self) {
        self.finish(Point(self.last));
    }

    /// Whether all before a point is done; asked often enough, it is.
    pub(crate) fn is_past(&mut self, point: Point) -> bool {
        self.draws =
            self.draws.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        if (self.draws >> 33).is_multiple_of(PATIENCE) {
            self.finish(point);
        }
        self.pending.front().is_none_or(|batch| batch.point > point)
    }

    /// Panics if a pending copy writes what is read.
    pub(crate) fn check_read(&self, what: &str, address: u64, len: usize) {
        let hit = self.writer(address, len);
        assert!(hit.is_none(), "{what}: {len} bytes at {address:#x} are still to be written: {hit:x?}");
    }

    /// Panics if a pending copy reads or writes what is written.
    pub(crate) fn check_written(&self, what: &str, address: u64, len: usize) {
        let hit = self.writer(address, len).or(self.reader(address, len));
        assert!(hit.is_none(), "{what}: {len} bytes at {address:#x} are still in use: {hit:x?}");
    }

    /// A pending copy that writes to a range.
    fn writer(&self, address: u64, len: usize) -> Option<&Transfer> {
        self.copies().find(|copy| overlap((copy.to, copy.len), (address, len)))
    }

    /// A pending copy that reads from a range.
    fn reader(&self, address: u64, len: usize) -> Option<&Transfer> {
        self.copies().find(|copy| overlap((copy.from, copy.len), (address, len)))
    }

    fn copies(&self) -> impl Iterator<Item = &Transfer> {
        self.pending.iter().flat_map(|batch| &batch.copies)
    }
}

fn overlap(a: (u64, usize), b: (u64, usize)) -> bool {
    a.0 < b.0 + b.1 as u64 && b.0 < a.0 + a.1 as u64
}
