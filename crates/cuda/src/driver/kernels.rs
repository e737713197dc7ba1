//! The kernels' machine code, and the functions in it.

#![expect(unsafe_code, reason = "calls CUDA's driver")]

use super::api::Api;
use super::context::Context;
use super::functions::Refused;
use super::nvrtc;
use crate::gpu::{Facts, GpuError};
use crate::launch::Call;
use cudarc::driver::sys::{self, CUfunction_attribute_enum as Attribute};
use std::collections::HashMap;
use std::ffi::CStr;
use std::path::Path;
use std::ptr::null_mut;
use std::sync::Arc;

mod embedded {
    include!(concat!(env!("OUT_DIR"), "/embedded.rs"));
    pub(super) const ALL: super::Kernels<'static> =
        super::Kernels { fatbins: FATBINS, sources: SOURCES, headers: HEADERS };
}

/// Files of kernels: machine code for many GPUs, or sources where the build had
/// no compiler. The first of a pair is the file's stem, or its name.
#[derive(Clone, Copy, Debug)]
pub struct Kernels<'a> {
    /// Compiled files.
    pub fatbins: &'a [(&'a str, &'a [u8])],
    /// Files that NVRTC compiles for the GPU at hand.
    pub sources: &'a [(&'a str, &'a str)],
    /// What the sources include.
    pub headers: &'a [(&'a str, &'a str)],
}

impl Kernels<'static> {
    /// Those of this build.
    pub const fn embedded() -> Self {
        embedded::ALL
    }
}

/// True for a file that holds Hopper's own instructions.
pub(super) fn is_hopper_only(name: &str) -> bool {
    name.trim_end_matches(".cu").ends_with("_sm90")
}

/// The first generation that the kernels' instructions are known to.
const OLDEST: (u32, u32) = (8, 0);

/// A kernel on the GPU.
pub(super) struct Function {
    pub(super) raw: sys::CUfunction,
    args_bytes: usize,
    threads_max: u32,
    dynamic_shared_max: u32,
    /// Compiled with the instructions that wait for the kernel before it: it may
    /// begin while that one still runs.
    pub(super) is_dependent: bool,
}

/// All kernels of a GPU.
pub(super) struct Functions {
    context: Arc<Context>,
    modules: Vec<sys::CUmodule>,
    by_name: HashMap<String, Function>,
}

// SAFETY: CUDA's handles may be used on every thread that the context is bound to.
unsafe impl Send for Functions {}
// SAFETY: they do not change once they are loaded.
unsafe impl Sync for Functions {}

impl Functions {
    /// Loads all kernels that this GPU can run; `cache` keeps what NVRTC makes.
    pub(super) fn load(
        context: &Arc<Context>,
        facts: &Facts,
        kernels: &Kernels<'_>,
        cache: Option<&Path>,
    ) -> Result<Self, GpuError> {
        let missing = |reason: String| GpuError::NoKernels { reason };
        let (major, minor) = facts.capability;
        if facts.capability < OLDEST {
            return Err(missing(format!(
                "{} has compute capability {major}.{minor}, the kernels need 8.0 or newer (Ampere)",
                facts.name
            )));
        }
        let mut functions =
            Self { context: Arc::clone(context), modules: Vec::new(), by_name: HashMap::new() };
        let runs = |name: &str| facts.is_hopper() || !is_hopper_only(name);
        for (stem, fatbin) in kernels.fatbins.iter().filter(|(stem, _)| runs(stem)) {
            functions.load_module(stem, fatbin, facts)?;
        }
        let sources: Vec<_> = kernels.sources.iter().copied().filter(|(name, _)| runs(name)).collect();
        if !sources.is_empty() {
            for (name, code) in nvrtc::compile(&sources, kernels.headers, facts.capability, cache)? {
                functions.load_module(name, &code, facts)?;
            }
        }
        if functions.by_name.is_empty() {
            return Err(missing("this build holds none".to_owned()));
        }
        Ok(functions)
    }

    /// The kernel of a launch, if the launch is such as it takes.
    pub(super) fn of(&self, call: &Call, args: &[u8]) -> Result<&Function, GpuError> {
        let name = call.kernel.name;
        let refused =
            |reason: String| GpuError::Driver { call: "launch", reason: format!("kernel {name} {reason}") };
        let function = self.by_name.get(name).ok_or_else(|| refused("is not among this GPU's".to_owned()))?;
        if args.len() != function.args_bytes {
            return Err(refused(format!("takes {} bytes, not {}", function.args_bytes, args.len())));
        }
        if call.kernel.threads > function.threads_max {
            return Err(refused(format!(
                "has at most {} threads, not {}",
                function.threads_max, call.kernel.threads
            )));
        }
        if call.shared_bytes > function.dynamic_shared_max {
            return Err(refused(format!(
                "has at most {} bytes of dynamic shared memory here, not {}",
                function.dynamic_shared_max, call.shared_bytes
            )));
        }
        if call.grid[1].max(call.grid[2]) > 65_535 {
            return Err(refused(format!("has more blocks than a grid: {:?}", call.grid)));
        }
        Ok(function)
    }

    /// The kernels' names, in order.
    pub(super) fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.by_name.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// How many may begin while the kernel before them still runs.
    pub(super) fn num_dependent(&self) -> usize {
        self.by_name.values().filter(|function| function.is_dependent).count()
    }

    fn load_module(&mut self, file: &str, image: &[u8], facts: &Facts) -> Result<(), GpuError> {
        let (major, minor) = facts.capability;
        let missing = |reason: String| GpuError::NoKernels {
            reason: format!("{file} for {} ({major}.{minor}): {reason}", facts.name),
        };
        // The driver reads words, and code that is text up to a 0.
        let mut aligned = vec![0_u64; image.len() / 8 + 1];
        bytemuck::cast_slice_mut(&mut aligned)[..image.len()].copy_from_slice(image);
        let mut module = null_mut();
        // SAFETY: the image is whole; CUDA copies it.
        let loaded = self
            .context
            .attempt(|api| unsafe { api.cuModuleLoadData(&raw mut module, aligned.as_ptr().cast()) })?;
        loaded.map_err(|refused| missing(self.context.text(refused.code)))?;
        self.modules.push(module);

        let mut count = 0;
        // SAFETY: it writes one number.
        self.context.call(|api| unsafe { api.cuModuleGetFunctionCount(&raw mut count, module) })?;
        let mut found = vec![null_mut(); count as usize];
        self.context.call(|api| {
            // SAFETY: there is room for that many.
            unsafe { api.cuModuleEnumerateFunctions(found.as_mut_ptr(), count, module) }
        })?;
        for raw in found {
            let (name, function) = self.context.call(|api| {
                let mut name = std::ptr::null();
                // SAFETY: it writes a pointer to text that lives as long as the module.
                unsafe { api.cuFuncGetName(&raw mut name, raw) }?;
                // SAFETY: as above.
                let name = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
                Ok((name, Self::describe(api, raw, facts)?))
            })?;
            if function.args_bytes == 0 {
                return Err(missing(format!("kernel {name} does not take one argument")));
            }
            if self.by_name.insert(name.clone(), function).is_some() {
                return Err(missing(format!("kernel {name} is there twice")));
            }
        }
        Ok(())
    }

    /// Loads a function now, for its first launch may be captured, and allows it
    /// all the shared memory that there is.
    fn describe(api: &Api, raw: sys::CUfunction, facts: &Facts) -> Result<Function, Refused> {
        let ask = |attribute| {
            let mut value = 0;
            // SAFETY: it writes one number.
            unsafe { api.cuFuncGetAttribute(&raw mut value, attribute, raw) }?;
            Ok(u32::try_from(value).unwrap_or(0))
        };
        // SAFETY: the function lives.
        unsafe { api.cuFuncLoad(raw) }?;
        let (mut offset, mut args_bytes, mut beyond) = (0, 0, 0);
        // SAFETY: it writes two numbers.
        unsafe { api.cuFuncGetParamInfo(raw, 0, &raw mut offset, &raw mut args_bytes) }?;
        // SAFETY: it writes two numbers, or refuses for there is no second argument.
        if unsafe { api.cuFuncGetParamInfo(raw, 1, &raw mut offset, &raw mut beyond) }.is_ok() {
            args_bytes = 0;
        }
        let static_shared = ask(Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?;
        let dynamic_shared_max = Self::allow_shared(api, raw, facts.shared_bytes_max, static_shared)?;
        Ok(Function {
            raw,
            args_bytes,
            threads_max: ask(Attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?,
            dynamic_shared_max,
            // The GPU may be newer than what its code was compiled for.
            is_dependent: ask(Attribute::CU_FUNC_ATTRIBUTE_PTX_VERSION)? >= 90,
        })
    }

    /// Allows a function all the shared memory that there is beside its own.
    ///
    /// CUDA keeps 1 KiB of a block's to itself on GPUs since Ampere, and versions
    /// differ in whether that counts as the function's own: the most is what it takes.
    fn allow_shared(api: &Api, raw: sys::CUfunction, all: u32, own: u32) -> Result<u32, Refused> {
        const KEPT_BYTES: u32 = 1024;
        let attribute = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let rest = all.saturating_sub(own);
        let mut outcome = Ok(0);
        for most in [rest + own.min(KEPT_BYTES), rest, rest.saturating_sub(KEPT_BYTES)] {
            // SAFETY: the function lives.
            outcome = unsafe { api.cuFuncSetAttribute(raw, attribute, most.cast_signed()) }.map(|()| most);
            if outcome.is_ok() {
                break;
            }
        }
        // The first-level cache gets what is left: blocks are to have company on
        // their SM. It is a hint, and may be refused.
        let share = Attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
        // SAFETY: the function lives.
        let _ = unsafe { api.cuFuncSetAttribute(raw, share, 100) };
        outcome
    }
}

impl Drop for Functions {
    fn drop(&mut self) {
        for &module in &self.modules {
            // SAFETY: nothing that it holds is launched any more.
            self.context.discard(|api| unsafe { api.cuModuleUnload(module) });
        }
    }
}
