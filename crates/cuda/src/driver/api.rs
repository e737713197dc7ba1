//! The functions of CUDA's driver.

#![expect(unsafe_code, reason = "looks up and calls CUDA's functions")]
#![expect(non_snake_case, reason = "the functions have CUDA's names")]

use super::absence::Absence;
use super::functions::{Refused, functions};
use crate::gpu::GpuError;
use cudarc::driver::sys;
use libloading::Library;
use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::sync::OnceLock;

/// The oldest driver's CUDA version: what the kernels are compiled for.
pub(super) const OLDEST: i32 = 13_000;

/// What the driver's library is called. The second is in development packages.
const LIBRARIES: [&str; 2] = ["libcuda.so.1", "libcuda.so"];

functions! { Api, cudarc::driver::sys, sys::CUresult:
    cuInit(flags: c_uint);
    cuDeviceGetCount(count: *mut c_int);
    cuDeviceGet(device: *mut sys::CUdevice, ordinal: c_int);
    cuDeviceGetName(name: *mut c_char, len: c_int, device: sys::CUdevice);
    cuDeviceGetPCIBusId(id: *mut c_char, len: c_int, device: sys::CUdevice);
    cuDeviceGetUuid_v2(uuid: *mut sys::CUuuid, device: sys::CUdevice);
    cuDeviceGetAttribute(value: *mut c_int, attribute: sys::CUdevice_attribute, device: sys::CUdevice);
    cuDeviceTotalMem_v2(bytes: *mut usize, device: sys::CUdevice);
    cuDevicePrimaryCtxRetain(context: *mut sys::CUcontext, device: sys::CUdevice);
    cuDevicePrimaryCtxRelease_v2(device: sys::CUdevice);
    cuCtxSetCurrent(context: sys::CUcontext);

    cuStreamCreate(stream: *mut sys::CUstream, flags: c_uint);
    cuStreamDestroy_v2(stream: sys::CUstream);
    cuStreamSynchronize(stream: sys::CUstream);
    cuEventCreate(event: *mut sys::CUevent, flags: c_uint);
    cuEventDestroy_v2(event: sys::CUevent);
    cuEventRecord(event: sys::CUevent, stream: sys::CUstream);
    cuEventSynchronize(event: sys::CUevent);
    cuEventQuery(event: sys::CUevent);
    cuStreamWaitEvent(stream: sys::CUstream, event: sys::CUevent, flags: c_uint);
    cuEventElapsedTime_v2(milliseconds: *mut f32, start: sys::CUevent, end: sys::CUevent);

    cuMemGetInfo_v2(free: *mut usize, total: *mut usize);
    cuMemAlloc_v2(address: *mut sys::CUdeviceptr, bytes: usize);
    cuMemFree_v2(address: sys::CUdeviceptr);
    cuMemHostAlloc(pointer: *mut *mut c_void, bytes: usize, flags: c_uint);
    cuMemFreeHost(pointer: *mut c_void);
    cuMemcpyHtoDAsync_v2(to: sys::CUdeviceptr, from: *const c_void, bytes: usize, stream: sys::CUstream);
    cuMemcpyDtoHAsync_v2(to: *mut c_void, from: sys::CUdeviceptr, bytes: usize, stream: sys::CUstream);
    cuMemcpyAsync(to: sys::CUdeviceptr, from: sys::CUdeviceptr, bytes: usize, stream: sys::CUstream);

    cuDeviceCanAccessPeer(can: *mut c_int, device: sys::CUdevice, peer: sys::CUdevice);
    cuCtxEnablePeerAccess(peer: sys::CUcontext, flags: c_uint);
    cuIpcGetMemHandle(handle: *mut sys::CUipcMemHandle, address: sys::CUdeviceptr);
    cuIpcOpenMemHandle_v2(address: *mut sys::CUdeviceptr, handle: sys::CUipcMemHandle, flags: c_uint);
    cuIpcCloseMemHandle(address: sys::CUdeviceptr);

    cuModuleLoadData(module: *mut sys::CUmodule, image: *const c_void);
    cuModuleUnload(module: sys::CUmodule);
    cuModuleGetFunctionCount(count: *mut c_uint, module: sys::CUmodule);
    cuModuleEnumerateFunctions(functions: *mut sys::CUfunction, count: c_uint, module: sys::CUmodule);
    cuFuncGetName(name: *mut *const c_char, function: sys::CUfunction);
    cuFuncLoad(function: sys::CUfunction);
    cuFuncGetParamInfo(function: sys::CUfunction, index: usize, offset: *mut usize, bytes: *mut usize);
    cuFuncGetAttribute(value: *mut c_int, attribute: sys::CUfunction_attribute, function: sys::CUfunction);
    cuFuncSetAttribute(function: sys::CUfunction, attribute: sys::CUfunction_attribute, value: c_int);
    cuLaunchKernelEx(
        config: *const sys::CUlaunchConfig,
        function: sys::CUfunction,
        arguments: *mut *mut c_void,
        extra: *mut *mut c_void,
    );

    cuStreamBeginCapture_v2(stream: sys::CUstream, mode: sys::CUstreamCaptureMode);
    cuStreamEndCapture(stream: sys::CUstream, graph: *mut sys::CUgraph);
    cuGraphInstantiateWithFlags(graph: *mut sys::CUgraphExec, from: sys::CUgraph, flags: c_ulonglong);
    cuGraphDestroy(graph: sys::CUgraph);
    cuGraphUpload(graph: sys::CUgraphExec, stream: sys::CUstream);
    cuGraphLaunch(graph: sys::CUgraphExec, stream: sys::CUstream);
    cuGraphExecDestroy(graph: sys::CUgraphExec);

    // The map; the elements' type, their rank, where they are; per dimension the
    // extents, bytes from one to the next, a box's extents and its steps; what
    // lies between, how it is swizzled, what L2 fetches, what is outside.
    + cuTensorMapEncodeTiled(
        *mut sys::CUtensorMap,
        sys::CUtensorMapDataType,
        u32,
        *mut c_void,
        *const u64,
        *const u64,
        *const u32,
        *const u32,
        sys::CUtensorMapInterleave,
        sys::CUtensorMapSwizzle,
        sys::CUtensorMapL2promotion,
        sys::CUtensorMapFloatOOBfill,
    );
}

/// Gives a name or a sentence for a code. Not in the table, which would have it
/// take cudarc's enum.
type Describe = unsafe extern "C" fn(u32, *mut *const c_char) -> u32;

/// The driver, loaded and initialised.
pub(super) struct Loaded {
    pub(super) functions: Api,
    pub(super) version: i32,
    describe: [Describe; 2],
}

/// The driver of this machine, which is loaded once.
pub(super) fn loaded() -> Result<&'static Loaded, Absence> {
    static LOADED: OnceLock<Result<Loaded, Absence>> = OnceLock::new();
    LOADED.get_or_init(load).as_ref().map_err(Clone::clone)
}

fn load() -> Result<Loaded, Absence> {
    // SAFETY: loading CUDA's driver runs what it runs in any program that uses it.
    let library = LIBRARIES.iter().find_map(|name| unsafe { Library::new(*name) }.ok());
    // Functions of it are called until the process ends.
    let library: &'static Library = Box::leak(Box::new(library.ok_or(Absence::NoLibrary)?));

    type Version = unsafe extern "C" fn(*mut c_int) -> u32;
    let lacks = |function: &'static str| move |_| Absence::Incomplete { function };
    // SAFETY: that is the function's type.
    let ask: Version = *unsafe { library.get("cuDriverGetVersion") }.map_err(lacks("cuDriverGetVersion"))?;
    let mut version = 0;
    // SAFETY: it may be called at any time.
    let code = unsafe { ask(&raw mut version) };
    if code == 0 && version < OLDEST {
        return Err(Absence::TooOld { version });
    }
    // SAFETY: it is CUDA's driver.
    let functions = unsafe { Api::find(library) }.map_err(|function| Absence::Incomplete { function })?;
    // SAFETY: those are the functions' types.
    let describe: [Describe; 2] = unsafe {
        [
            *library.get("cuGetErrorName").map_err(lacks("cuGetErrorName"))?,
            *library.get("cuGetErrorString").map_err(lacks("cuGetErrorString"))?,
        ]
    };
    let loaded = Loaded { functions, version, describe };
    // SAFETY: it may be called at any time, and is before all else.
    match unsafe { loaded.functions.cuInit(0) } {
        Ok(()) => Ok(loaded),
        Err(refused) => Err(Absence::Refused { code: refused.code, text: loaded.text(refused.code) }),
    }
}

impl Loaded {
    /// CUDA's name and sentence for a code.
    pub(super) fn text(&self, code: u32) -> String {
        let [name, sentence] = self.describe.map(|describe| {
            let mut text = std::ptr::null();
            // SAFETY: it writes a pointer to text that lives forever, or to nothing.
            unsafe {
                describe(code, &raw mut text);
                if text.is_null() { None } else { CStr::from_ptr(text).to_str().ok() }
            }
        });
        format!("{} ({code}): {}", name.unwrap_or("error"), sentence.unwrap_or("unknown to this driver"))
    }

    /// The error that a caller gets for a refused call.
    pub(super) fn error(&self, refused: Refused) -> GpuError {
        GpuError::Driver { call: refused.call, reason: self.text(refused.code) }
    }
}
