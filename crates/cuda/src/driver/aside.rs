//! A second stream, for copies that run beside the kernels, and points of both.

#![expect(unsafe_code, reason = "calls CUDA's driver")]

use super::context::{Context, Event};
use crate::gpu::{GpuError, Point, Transfer};
use cudarc::driver::sys;
use std::collections::VecDeque;
use std::ptr::null_mut;
use std::sync::Arc;

/// Events that are kept for later points.
const KEPT: usize = 64;

/// Events that are there from the start.
const MADE_EARLY: usize = 16;

/// Copies beside the kernels.
pub(super) struct Aside {
    stream: sys::CUstream,
    /// Points that may not be past yet, in order; all others are.
    points: VecDeque<(Point, Event)>,
    unused: Vec<Event>,
    next: u64,
    context: Arc<Context>,
}

// SAFETY: CUDA's handles may be used on every thread that the context is bound to.
unsafe impl Send for Aside {}

impl Aside {
    pub(super) fn new(context: &Arc<Context>) -> Result<Self, GpuError> {
        let unused = (0..MADE_EARLY).map(|_| Event::new(context, false)).collect::<Result<_, _>>()?;
        let mut stream = null_mut();
        // As the context's own: nobody else's work is waited for.
        let flags = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: it writes one handle.
        context.call(|api| unsafe { api.cuStreamCreate(&raw mut stream, flags) })?;
        Ok(Self { stream, points: VecDeque::new(), unused, next: 0, context: Arc::clone(context) })
    }

    /// The point behind all that is enqueued on the context's own stream.
    pub(super) fn point(&mut self) -> Result<Point, GpuError> {
        self.point_of(self.context.stream())
    }

    /// Enqueues copies behind a point, and gives the point behind them.
    ///
    /// # Safety
    /// As of [`crate::Gpu::copy_aside`].
    pub(super) unsafe fn copy(&mut self, after: Point, copies: &[Transfer]) -> Result<Point, GpuError> {
        let stream = self.stream;
        if let Some(event) = self.event(after) {
            event.hold(stream)?;
        }
        for &Transfer { from, to, len } in copies {
            // SAFETY: the caller's.
            self.context.call(|api| unsafe { api.cuMemcpyAsync(to, from, len, stream) })?;
        }
        self.point_of(stream)
    }

    /// Holds the context's own stream until a point is past.
    pub(super) fn follow(&self, point: Point) -> Result<(), GpuError> {
        self.event(point).map_or(Ok(()), |event| event.hold(self.context.stream()))
    }

    pub(super) fn is_past(&self, point: Point) -> Result<bool, GpuError> {
        self.event(point).map_or(Ok(true), Event::is_past)
    }

    /// Waits for all copies.
    pub(super) fn wait(&mut self) -> Result<(), GpuError> {
        // SAFETY: the stream lives.
        self.context.call(|api| unsafe { api.cuStreamSynchronize(self.stream) })
    }

    /// The event of a point that may not be past yet.
    fn event(&self, point: Point) -> Option<&Event> {
        let index = self.points.binary_search_by_key(&point, |&(point, _)| point).ok()?;
        self.points.get(index).map(|(_, event)| event)
    }

    fn point_of(&mut self, stream: sys::CUstream) -> Result<Point, GpuError> {
        while let Some((_, event)) = self.points.front()
            && event.is_past()?
        {
            let past = self.points.pop_front().map(|(_, event)| event);
            self.unused.extend(past.filter(|_| self.unused.len() < KEPT));
        }
        let event = match self.unused.pop() {
            Some(event) => event,
            None => Event::new(&self.context, false)?,
        };
        event.record_on(stream)?;
        self.next += 1;
        let point = Point(self.next);
        self.points.push_back((point, event));
        Ok(point)
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        // SAFETY: nobody else has it; CUDA keeps it until its work is done.
        self.context.discard(|api| unsafe { api.cuStreamDestroy_v2(self.stream) });
    }
}
