//! A GPU's context, its stream, and what lives in it.

#![expect(unsafe_code, reason = "calls CUDA's driver")]

use super::absence::Absence;
use super::api::{Api, Loaded};
use super::functions::Refused;
use crate::gpu::GpuError;
use cudarc::driver::sys;
use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::{Arc, OnceLock};

/// CUDA's code for what is not done yet.
const NOT_READY: u32 = 600;
/// CUDA's code for memory that is not there.
pub(super) const OUT_OF_MEMORY: u32 = 2;

/// The primary context of a device, with the one stream that all work goes to.
pub(super) struct Context {
    driver: &'static Loaded,
    device: sys::CUdevice,
    raw: sys::CUcontext,
    stream: sys::CUstream,
    /// The first failure. CUDA's context is lost with it, so nothing is called
    /// any more and all that follows fails alike.
    failure: OnceLock<GpuError>,
}

// SAFETY: CUDA's handles may be used on every thread that the context is bound to.
unsafe impl Send for Context {}
// SAFETY: CUDA's functions lock what they share.
unsafe impl Sync for Context {}

impl Context {
    /// Makes the device's context, and a stream in it.
    pub(super) fn open(driver: &'static Loaded, device: sys::CUdevice) -> Result<Arc<Self>, GpuError> {
        let refused =
            |refused: Refused| Absence::Refused { code: refused.code, text: driver.text(refused.code) };
        let mut raw = null_mut();
        // SAFETY: it writes one handle.
        unsafe { driver.functions.cuDevicePrimaryCtxRetain(&raw mut raw, device) }.map_err(refused)?;
        let mut context = Self { driver, device, raw, stream: null_mut(), failure: OnceLock::new() };
        let mut stream = null_mut();
        // Work of other streams, such as a library's default one, is not waited for.
        let flags = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: it writes one handle.
        context.call(|api| unsafe { api.cuStreamCreate(&raw mut stream, flags) })?;
        context.stream = stream;
        Ok(Arc::new(context))
    }

    /// The stream, for calls.
    pub(super) fn stream(&self) -> sys::CUstream {
        self.stream
    }

    /// Whose context it is.
    pub(super) fn device(&self) -> sys::CUdevice {
        self.device
    }

    /// Calls CUDA on this thread. A refusal is the context's last word.
    pub(super) fn call<T>(&self, call: impl FnOnce(&Api) -> Result<T, Refused>) -> Result<T, GpuError> {
        self.attempt(call)?.map_err(|refused| self.fail(refused))
    }

    /// Calls CUDA on this thread, where a refusal can be lived with.
    pub(super) fn attempt<T>(
        &self,
        call: impl FnOnce(&Api) -> Result<T, Refused>,
    ) -> Result<Result<T, Refused>, GpuError> {
        if let Some(failure) = self.failure.get() {
            return Err(failure.clone());
        }
        let api = &self.driver.functions;
        // Cheap, and whoever calls may be a thread that never did.
        // SAFETY: the context lives.
        unsafe { api.cuCtxSetCurrent(self.raw) }.map_err(|refused| self.fail(refused))?;
        Ok(call(api))
    }

    /// Remembers a refusal for which the context is lost.
    pub(super) fn fail(&self, refused: Refused) -> GpuError {
        self.fail_with(self.driver.error(refused))
    }

    /// Remembers an error for which the context is lost; gives the first.
    pub(super) fn fail_with(&self, error: GpuError) -> GpuError {
        self.failure.get_or_init(|| error).clone()
    }

    /// CUDA's name and sentence for a code.
    pub(super) fn text(&self, code: u32) -> String {
        self.driver.text(code)
    }

    /// Waits for all that is enqueued.
    pub(super) fn wait(&self) -> Result<(), GpuError> {
        // SAFETY: the stream lives.
        self.call(|api| unsafe { api.cuStreamSynchronize(self.stream) })
    }

    /// Gives something back. That this fails after a failure is of no interest.
    pub(super) fn discard(&self, call: impl FnOnce(&Api) -> Result<(), Refused>) {
        let api = &self.driver.functions;
        // SAFETY: the context lives.
        if unsafe { api.cuCtxSetCurrent(self.raw) }.is_ok() {
            let _ = call(api);
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if !self.stream.is_null() {
            // SAFETY: nobody else has the stream, the context goes with this.
            self.discard(|api| unsafe { api.cuStreamDestroy_v2(self.stream) });
        }
        // SAFETY: retained when this was made. All that lived in it holds this.
        let _ = unsafe { self.driver.functions.cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

/// A point of the stream.
pub(super) struct Event {
    context: Arc<Context>,
    raw: sys::CUevent,
}

// SAFETY: as of the context.
unsafe impl Send for Event {}
// SAFETY: as of the context.
unsafe impl Sync for Event {}

impl Event {
    /// An event, which knows the time if it is `timed`.
    pub(super) fn new(context: &Arc<Context>, timed: bool) -> Result<Self, GpuError> {
        let untimed = sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING as u32;
        let mut raw = null_mut();
        // SAFETY: it writes one handle.
        context.call(|api| unsafe { api.cuEventCreate(&raw mut raw, if timed { 0 } else { untimed }) })?;
        Ok(Self { context: Arc::clone(context), raw })
    }

    /// Moves it to behind all that is enqueued.
    pub(super) fn record(&self) -> Result<(), GpuError> {
        self.record_on(self.context.stream)
    }

    /// Moves it to behind all that is enqueued on a stream of the context.
    pub(super) fn record_on(&self, stream: sys::CUstream) -> Result<(), GpuError> {
        // SAFETY: both live.
        self.context.call(|api| unsafe { api.cuEventRecord(self.raw, stream) })
    }

    /// What is enqueued on a stream of the context from now on waits for it.
    pub(super) fn hold(&self, stream: sys::CUstream) -> Result<(), GpuError> {
        // SAFETY: both live.
        self.context.call(|api| unsafe { api.cuStreamWaitEvent(stream, self.raw, 0) })
    }

    /// True if its stream is past it; does not wait.
    pub(super) fn is_past(&self) -> Result<bool, GpuError> {
        // SAFETY: it lives.
        match self.context.attempt(|api| unsafe { api.cuEventQuery(self.raw) })? {
            Ok(()) => Ok(true),
            Err(refused) if refused.code == NOT_READY => Ok(false),
            Err(refused) => Err(self.context.fail(refused)),
        }
    }

    /// Waits until the stream is past it. One that was never recorded is past.
    pub(super) fn wait(&self) -> Result<(), GpuError> {
        // SAFETY: it lives.
        self.context.call(|api| unsafe { api.cuEventSynchronize(self.raw) })
    }

    /// From this event to a later one, both timed and past.
    pub(super) fn milliseconds_to(&self, end: &Self) -> Result<f32, GpuError> {
        let mut milliseconds = 0.0;
        self.context.call(|api| {
            // SAFETY: both live; it writes one number.
            unsafe { api.cuEventElapsedTime_v2(&raw mut milliseconds, self.raw, end.raw) }
        })?;
        Ok(milliseconds)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: nobody else has it.
        self.context.discard(|api| unsafe { api.cuEventDestroy_v2(self.raw) });
    }
}

/// Memory of the host that the GPU reads and writes by itself. Its owner waits
/// for the last copy before it drops it.
pub(super) struct Pinned {
    context: Arc<Context>,
    pointer: *mut u8,
    len: usize,
}

// SAFETY: it is plain memory that has one owner.
unsafe impl Send for Pinned {}

impl Pinned {
    /// Where there is none, nothing else is lost.
    pub(super) fn new(context: &Arc<Context>, len: usize) -> Result<Self, GpuError> {
        let mut pointer: *mut c_void = null_mut();
        let flags = sys::CU_MEMHOSTALLOC_PORTABLE;
        // SAFETY: it writes one pointer.
        match context.attempt(|api| unsafe { api.cuMemHostAlloc(&raw mut pointer, len, flags) })? {
            Ok(()) => {}
            Err(refused) if refused.code == OUT_OF_MEMORY => {
                return Err(GpuError::OutOfHostMemory { bytes: len });
            }
            Err(refused) => return Err(context.fail(refused)),
        }
        // SAFETY: that much was just made. Zeros make it memory that Rust may look at.
        unsafe { pointer.cast::<u8>().write_bytes(0, len) };
        Ok(Self { context: Arc::clone(context), pointer: pointer.cast(), len })
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// What it holds.
    ///
    /// # Safety
    /// No copy to it is under way.
    pub(super) unsafe fn bytes(&self) -> &[u8] {
        // SAFETY: it is that long, was written when it was made, and nobody writes now.
        unsafe { std::slice::from_raw_parts(self.pointer, self.len) }
    }

    /// What it holds, to be changed.
    ///
    /// # Safety
    /// No copy to or from it is under way.
    pub(super) unsafe fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: it is that long, was written when it was made, and nobody uses it now.
        unsafe { std::slice::from_raw_parts_mut(self.pointer, self.len) }
    }

    /// Enqueues a copy of its first bytes to the GPU.
    ///
    /// # Safety
    /// It stays and does not change until the stream is past; `to` is memory of the GPU.
    pub(super) unsafe fn copy_out(&self, to: u64, len: usize) -> Result<(), GpuError> {
        assert!(len <= self.len);
        let stream = self.context.stream;
        // SAFETY: the caller's, and the assert.
        self.context.call(|api| unsafe { api.cuMemcpyHtoDAsync_v2(to, self.pointer.cast(), len, stream) })
    }

    /// Enqueues a copy from the GPU to its first bytes.
    ///
    /// # Safety
    /// It stays and is not looked at until the stream is past; `from` is memory of the GPU.
    pub(super) unsafe fn copy_in(&self, from: u64, len: usize) -> Result<(), GpuError> {
        assert!(len <= self.len);
        let stream = self.context.stream;
        // SAFETY: the caller's, and the assert.
        self.context.call(|api| unsafe { api.cuMemcpyDtoHAsync_v2(self.pointer.cast(), from, len, stream) })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: nobody else has it; whoever had it waited for its last copy.
        self.context.discard(|api| unsafe { api.cuMemFreeHost(self.pointer.cast()) });
    }
}
