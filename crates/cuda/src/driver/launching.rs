//! Kernels are launched one by one, or as a graph that CUDA captured.

#![expect(unsafe_code, reason = "calls CUDA's driver")]

use super::api::Api;
use super::context::{Context, OUT_OF_MEMORY};
use super::functions::Refused;
use super::graphs::{Counters, Decision, Graphs};
use super::kernels::{Function, Functions};
use crate::gpu::GpuError;
use crate::launch::{Call, Launches};
use cudarc::driver::sys;
use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::Arc;

/// A graph that can be launched.
struct Graph {
    context: Arc<Context>,
    raw: sys::CUgraphExec,
}

// SAFETY: CUDA's handles may be used on every thread that the context is bound to.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        // One that runs is freed when it is done.
        // SAFETY: nobody else has it.
        self.context.discard(|api| unsafe { api.cuGraphExecDestroy(self.raw) });
    }
}

/// Launches a graph; false if there is no memory for it, and nothing is launched.
///
/// # Safety
/// What its launches point to is memory of the GPU, and large enough.
unsafe fn replay(context: &Context, graph: &Graph) -> Result<bool, GpuError> {
    // SAFETY: both live. The rest is the caller's.
    match context.attempt(|api| unsafe { api.cuGraphLaunch(graph.raw, context.stream()) })? {
        Ok(()) => Ok(true),
        Err(refused) if refused.code == OUT_OF_MEMORY => {
            tracing::warn!("CUDA has no memory to launch a graph of a step: kernels are launched one by one");
            Ok(false)
        }
        Err(refused) => Err(context.fail(refused)),
    }
}

/// Launches lists of kernels.
pub(super) struct Launching {
    context: Arc<Context>,
    /// None if all is to be launched one by one.
    graphs: Option<Graphs<Graph>>,
    counters: Counters,
}

/// A launch, and the kernel that it was found to be of.
type Bound<'a> = (&'a Function, &'a Call, &'a [u8]);

impl Launching {
    pub(super) fn new(context: &Arc<Context>, with_graphs: bool) -> Self {
        let graphs = with_graphs.then(Graphs::new);
        Self { context: Arc::clone(context), graphs, counters: Counters::default() }
    }

    pub(super) fn use_graphs(&mut self, on: bool) {
        self.graphs = on.then(Graphs::new);
    }

    pub(super) fn counters(&self) -> Counters {
        self.counters
    }

    /// Gives back what memory graphs hold.
    pub(super) fn forget_graphs(&mut self) {
        if let Some(graphs) = &mut self.graphs {
            graphs.clear();
        }
    }

    /// Enqueues launches.
    ///
    /// # Safety
    /// What their arguments point to is memory of the GPU, and large enough.
    pub(super) unsafe fn run(&mut self, launches: &Launches, functions: &Functions) -> Result<(), GpuError> {
        let decision = self.graphs.as_mut().map_or(Decision::Eager, |graphs| graphs.decide(launches));
        let is_new = matches!(decision, Decision::Make);
        if let Decision::Replay(graph) = decision {
            // SAFETY: the caller's.
            if unsafe { replay(&self.context, graph) }? {
                self.counters.graphs_replayed += 1;
                return Ok(());
            }
            self.refuse(launches);
        }
        // All are looked at before the first is launched.
        let bind = |(call, args)| Ok((functions.of(call, args)?, call, args));
        let bound = launches.iter().map(bind).collect::<Result<Vec<Bound<'_>>, GpuError>>()?;
        if is_new {
            // SAFETY: the caller's.
            let graph = unsafe { self.make(&bound) }?;
            match graph {
                // SAFETY: the caller's.
                Some(graph) if unsafe { replay(&self.context, &graph) }? => {
                    self.counters.graphs_made += 1;
                    if let Some(graphs) = &mut self.graphs {
                        graphs.keep(launches, Some(graph));
                    }
                    return Ok(());
                }
                Some(_) | None => self.refuse(launches),
            }
        }
        self.counters.eager_launches += bound.len() as u64;
        for (function, call, args) in bound {
            // SAFETY: the caller's.
            let launched = self.context.attempt(|api| unsafe { self.launch(api, function, call, args) })?;
            launched.map_err(|refused| {
                let reason =
                    format!("{}, at kernel {} or before", self.context.text(refused.code), call.kernel.name);
                self.context.fail_with(GpuError::Driver { call: refused.call, reason })
            })?;
        }
        Ok(())
    }

    /// Launches a list one by one from now on.
    fn refuse(&mut self, launches: &Launches) {
        self.counters.graphs_refused += 1;
        if let Some(graphs) = &mut self.graphs {
            graphs.keep(launches, None);
        }
    }

    /// Makes a graph of launches, or tells the log why CUDA would not: then they
    /// are launched one by one, which gives the same and takes longer.
    ///
    /// # Safety
    /// As of [`Self::run`].
    unsafe fn make(&self, bound: &[Bound<'_>]) -> Result<Option<Graph>, GpuError> {
        // CUDA takes memory for it, and may wait for kernels meanwhile with a lock that
        // another GPU's thread needs to launch what those wait for. Nothing runs now.
        self.context.wait()?;
        // SAFETY: the caller's.
        let made = self.context.attempt(|api| unsafe { self.capture(api, bound) })?;
        let made = made.and_then(|raw| {
            let graph = Graph { context: Arc::clone(&self.context), raw };
            let uploaded = self.context.attempt(|api| {
                // SAFETY: both live.
                unsafe { api.cuGraphUpload(graph.raw, self.context.stream()) }
            });
            uploaded.unwrap_or(Ok(())).map(|()| graph)
        });
        if let Err(refused) = made {
            let reason = self.context.text(refused.code);
            tracing::warn!(
                call = refused.call,
                reason,
                "CUDA makes no graph of a step: kernels are launched one by one"
            );
        }
        Ok(made.ok())
    }

    /// # Safety
    /// As of [`Self::run`].
    unsafe fn capture(&self, api: &Api, bound: &[Bound<'_>]) -> Result<sys::CUgraphExec, Refused> {
        let stream = self.context.stream();
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives.
        unsafe { api.cuStreamBeginCapture_v2(stream, mode) }?;
        let captured = bound.iter().try_for_each(|(function, call, args)| {
            // SAFETY: the caller's.
            unsafe { self.launch(api, function, call, args) }
        });
        // The stream must leave the mode, whatever happened in it.
        let mut graph = null_mut();
        // SAFETY: it writes one handle.
        let ended = unsafe { api.cuStreamEndCapture(stream, &raw mut graph) };
        let mut raw = null_mut();
        // SAFETY: the graph lives; it writes one handle.
        let made = captured
            .and(ended)
            .and_then(|()| unsafe { api.cuGraphInstantiateWithFlags(&raw mut raw, graph, 0) });
        if !graph.is_null() {
            // SAFETY: nobody else has it, and what was made of it is its own.
            let _ = unsafe { api.cuGraphDestroy(graph) };
        }
        made.map(|()| raw)
    }

    /// Enqueues one launch.
    ///
    /// # Safety
    /// As of [`Self::run`]; `args` is what the function takes.
    unsafe fn launch(&self, api: &Api, function: &Function, call: &Call, args: &[u8]) -> Result<(), Refused> {
        let value = sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 };
        let id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        let mut attributes = [sys::CUlaunchAttribute { id, pad: [0; 4], value }];
        let [x, y, z] = call.grid;
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: call.kernel.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: call.shared_bytes,
            hStream: self.context.stream(),
            attrs: attributes.as_mut_ptr(),
            numAttrs: u32::from(function.is_dependent),
        };
        let mut arguments: [*mut c_void; 1] = [args.as_ptr().cast_mut().cast()];
        // SAFETY: CUDA copies the one argument, which is as long as the function
        // says. The rest is the caller's.
        unsafe { api.cuLaunchKernelEx(&raw const config, function.raw, arguments.as_mut_ptr(), null_mut()) }
    }
}
