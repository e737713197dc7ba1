//! Memory that GPUs of one host share: between contexts of this process, or
//! with another process by CUDA's handles.

#![expect(unsafe_code, reason = "calls CUDA's driver")]

use super::api::Api;
use super::context::Context;
use super::functions::Refused;
use crate::gpu::GpuError;
use crate::peers::{Exposed, Offer, Reached, unreachable};
use cudarc::driver::sys;
use std::ffi::c_int;
use std::ptr::null_mut;
use std::sync::Arc;

/// CUDA's code for access that was allowed before.
const ALREADY_ENABLED: u32 = 704;

/// What others need to reach the context's memory at an address.
pub(super) fn expose(context: &Context, address: u64) -> Result<Exposed, GpuError> {
    // SAFETY: it asks for the context's own device.
    let device = context.call(|api| unsafe { uuid(api, context.device()) })?;
    let mut handle = sys::CUipcMemHandle { reserved: [0; 64] };
    // SAFETY: the memory was allocated; it writes one handle.
    let got = context.attempt(|api| unsafe { api.cuIpcGetMemHandle(&raw mut handle, address) })?;
    // Without one, GPUs of this process still reach it.
    Ok(Exposed { device, ipc: got.is_ok().then(|| handle.reserved.map(|byte| byte as u8)) })
}

/// Makes the context reach what is offered.
///
/// # Safety
/// The memory lives until what this gives is dropped.
pub(super) unsafe fn reach(context: &Arc<Context>, offer: &Offer) -> Result<Box<dyn Reached>, GpuError> {
    if !offer.is_own() {
        return open(context, offer);
    }
    // SAFETY: it asks for the context's own device.
    let own = context.call(|api| unsafe { uuid(api, context.device()) })?;
    if own == offer.device {
        // Of the same context, which is the device's primary one.
        return Ok(Box::new(Neighbour {
            address: offer.address,
            context: Arc::clone(context),
            retained: None,
        }));
    }
    let device = find(context, offer)?;
    let neighbour = retain(context, offer.address, device)?;
    let other = neighbour.retained.map_or(null_mut(), |(_, raw)| raw);
    // SAFETY: both contexts live.
    match context.attempt(|api| unsafe { api.cuCtxEnablePeerAccess(other, 0) })? {
        Ok(()) => Ok(Box::new(neighbour)),
        Err(refused) if refused.code == ALREADY_ENABLED => Ok(Box::new(neighbour)),
        Err(refused) => Err(refusal(context, refused)),
    }
}

/// Memory of a context of this process.
struct Neighbour {
    address: u64,
    context: Arc<Context>,
    /// The other device, and its primary context, which is held.
    retained: Option<(sys::CUdevice, sys::CUcontext)>,
}

// SAFETY: CUDA's handles may be used on every thread.
unsafe impl Send for Neighbour {}
// SAFETY: CUDA's functions lock what they share.
unsafe impl Sync for Neighbour {}

impl Reached for Neighbour {
    fn address(&self) -> u64 {
        self.address
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        if let Some((device, _)) = self.retained {
            // SAFETY: it was retained when this was made.
            self.context.discard(|api| unsafe { api.cuDevicePrimaryCtxRelease_v2(device) });
        }
    }
}

fn retain(context: &Arc<Context>, address: u64, device: sys::CUdevice) -> Result<Neighbour, GpuError> {
    let mut raw = null_mut();
    // SAFETY: it writes one handle.
    let retained = context.attempt(|api| unsafe { api.cuDevicePrimaryCtxRetain(&raw mut raw, device) })?;
    retained.map_err(|refused| refusal(context, refused))?;
    Ok(Neighbour { address, context: Arc::clone(context), retained: Some((device, raw)) })
}

/// Memory of another process.
struct Opened {
    address: u64,
    context: Arc<Context>,
}

impl Reached for Opened {
    fn address(&self) -> u64 {
        self.address
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        // SAFETY: it was opened, and nothing uses it any more.
        self.context.discard(|api| unsafe { api.cuIpcCloseMemHandle(self.address) });
    }
}

fn open(context: &Arc<Context>, offer: &Offer) -> Result<Box<dyn Reached>, GpuError> {
    let ipc =
        offer.ipc.ok_or_else(|| unreachable("CUDA gives other processes no handle for it".to_owned()))?;
    // SAFETY: it asks for the context's own device.
    let own = context.call(|api| unsafe { uuid(api, context.device()) })?;
    if own != offer.device {
        find(context, offer)?;
    }
    let handle = sys::CUipcMemHandle { reserved: ipc.map(|byte| byte as _) };
    let flags = sys::CUipcMem_flags_enum::CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS as u32;
    let mut address = 0;
    // SAFETY: it writes one address; a handle that is none is refused.
    let opened =
        context.attempt(|api| unsafe { api.cuIpcOpenMemHandle_v2(&raw mut address, handle, flags) })?;
    // A refused handle is nobody's mistake but the processes' surroundings.
    opened.map_err(|refused| {
        let said = context.text(refused.code);
        unreachable(format!(
            "{} says {said}; containers need a common PID and IPC namespace to share memory of GPUs \
             (--pid and --ipc of one another, or shareProcessNamespace and hostIPC in a pod)",
            refused.call
        ))
    })?;
    Ok(Box::new(Opened { address, context: Arc::clone(context) }))
}

/// The device of an offer, if this one reaches it.
fn find(context: &Context, offer: &Offer) -> Result<sys::CUdevice, GpuError> {
    let reaches = context.attempt(|api| {
        let mut count = 0;
        // SAFETY: it writes one number.
        unsafe { api.cuDeviceGetCount(&raw mut count) }?;
        for ordinal in 0..count {
            let mut device = 0;
            // SAFETY: it writes one number, of a device that there is.
            unsafe { api.cuDeviceGet(&raw mut device, ordinal) }?;
            // SAFETY: as above.
            if unsafe { uuid(api, device) }? == offer.device {
                let mut can: c_int = 0;
                // SAFETY: as above.
                unsafe { api.cuDeviceCanAccessPeer(&raw mut can, context.device(), device) }?;
                return Ok(Some((device, can != 0)));
            }
        }
        Ok(None)
    })?;
    match reaches.map_err(|refused| refusal(context, refused))? {
        Some((device, true)) => Ok(device),
        Some((_, false)) => {
            Err(unreachable("CUDA says that there is no peer access between the two".to_owned()))
        }
        None => Err(unreachable("this process does not see it, look at CUDA_VISIBLE_DEVICES".to_owned())),
    }
}

/// # Safety
/// The device is one.
unsafe fn uuid(api: &Api, device: sys::CUdevice) -> Result<[u8; 16], Refused> {
    let mut uuid = sys::CUuuid { bytes: [0; 16] };
    // SAFETY: it writes one UUID.
    unsafe { api.cuDeviceGetUuid_v2(&raw mut uuid, device) }?;
    Ok(uuid.bytes.map(|byte| byte as u8))
}

fn refusal(context: &Context, refused: Refused) -> GpuError {
    unreachable(format!("{} says {}", refused.call, context.text(refused.code)))
}
