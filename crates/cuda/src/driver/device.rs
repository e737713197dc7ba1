//! A GPU of this machine.

#![expect(unsafe_code, reason = "calls CUDA's driver")]

use super::api::loaded;
use super::arrivals::Arrivals;
use super::aside::Aside;
use super::context::{Context, Event, OUT_OF_MEMORY};
use super::functions::Refused;
use super::graphs::Counters;
use super::kernels::{Functions, Kernels};
use super::launching::Launching;
use super::peers;
use super::probe::find;
use super::staging::Staging;
use crate::gpu::{Arriving, Facts, Gpu, GpuError, Point, TensorMap, Transfer};
use crate::launch::Launches;
use crate::peers::{Exposed, Offer, Reached};
use cudarc::driver::sys;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::path::PathBuf;
use std::ptr::null_mut;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Memory that was given up is kept until there is more of it than this.
const DEAD_BYTES_MAX: usize = 256 << 20;

/// How a GPU is opened.
#[derive(Clone, Debug)]
pub struct Options<'a> {
    /// What it can launch.
    pub kernels: Kernels<'a>,
    /// Where kernels are kept that the first start compiles; `None` compiles
    /// them at each start.
    pub cache: Option<PathBuf>,
    /// Whether lists of launches that come again are replayed as graphs.
    pub with_graphs: bool,
}

impl Default for Options<'static> {
    fn default() -> Self {
        Self { kernels: Kernels::embedded(), cache: None, with_graphs: true }
    }
}

/// A GPU of this machine.
pub struct Driver {
    facts: Facts,
    state: Mutex<State>,
    arrivals: Arrivals,
    functions: Functions,
    // Last: all of the above live in it.
    context: Arc<Context>,
}

/// What changes. Whoever enqueues holds it: what another thread enqueues while a
/// graph is captured would become part of that graph.
struct State {
    launching: Launching,
    staging: Staging,
    aside: Aside,
    /// Memory that is given back when the stream is known to be past it, and never in
    /// a step: CUDA then waits for kernels of all GPUs of the process, and those may
    /// wait for what this thread has still to launch.
    dead: Vec<u64>,
    dead_bytes: usize,
    /// The same of the host.
    dead_of_host: Vec<u64>,
    /// The same of other things.
    dead_things: Vec<Box<dyn Send>>,
}

/// A point in the work of a GPU.
pub struct Mark(Event);

impl Driver {
    /// Opens a GPU, by its number among those that the driver shows, and loads
    /// the kernels.
    pub fn open(ordinal: usize, options: &Options<'_>) -> Result<Arc<Self>, GpuError> {
        let driver = loaded()?;
        let (device, facts) = find(driver, ordinal)?;
        let context = Context::open(driver, device)?;
        let functions = Functions::load(&context, &facts, &options.kernels, options.cache.as_deref())?;
        let state = State {
            launching: Launching::new(&context, options.with_graphs),
            staging: Staging::new(&context)?,
            aside: Aside::new(&context)?,
            dead: Vec::new(),
            dead_bytes: 0,
            dead_of_host: Vec::new(),
            dead_things: Vec::new(),
        };
        Ok(Arc::new(Self {
            facts,
            state: Mutex::new(state),
            arrivals: Arrivals::new(&context)?,
            functions,
            context,
        }))
    }

    /// How many of its kernels may begin while the one before them still runs.
    pub fn num_dependent_kernels(&self) -> usize {
        self.functions.num_dependent()
    }

    /// The names of the kernels that it can launch, in order.
    pub fn kernels(&self) -> Vec<&str> {
        self.functions.names()
    }

    /// Whether lists of launches that come again are replayed as graphs from now on.
    /// For measurements: it forgets those that there are.
    pub fn use_graphs(&self, on: bool) {
        self.state().launching.use_graphs(on);
    }

    /// How launches were made so far.
    pub fn counters(&self) -> Counters {
        self.state().launching.counters()
    }

    /// Marks where the work is that is enqueued now.
    pub fn mark(&self) -> Result<Mark, GpuError> {
        let event = Event::new(&self.context, true)?;
        let _enqueueing = self.state();
        event.record()?;
        Ok(Mark(event))
    }

    /// Waits for the later of two marks; gives the time between them.
    pub fn milliseconds_between(&self, start: &Mark, end: &Mark) -> Result<f32, GpuError> {
        end.0.wait()?;
        start.0.milliseconds_to(&end.0)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for all that is enqueued, after which the dead can be buried. What this
    /// gives is to be dropped without the lock: it may hold another GPU's memory, and
    /// with it that GPU.
    fn wait_and_bury(&self, state: &mut State) -> Result<Vec<Box<dyn Send>>, GpuError> {
        self.context.wait()?;
        state.aside.wait()?;
        state.dead_bytes = 0;
        for address in state.dead.drain(..) {
            // SAFETY: it was allocated, and nothing uses it any more.
            self.context.call(|api| unsafe { api.cuMemFree_v2(address) })?;
        }
        for address in state.dead_of_host.drain(..) {
            // SAFETY: as above.
            self.context.call(|api| unsafe { api.cuMemFreeHost(address as *mut c_void) })?;
        }
        Ok(std::mem::take(&mut state.dead_things))
    }

    /// The same, of whoever has not the lock.
    fn settle(&self) -> Result<(), GpuError> {
        let things = self.wait_and_bury(&mut self.state())?;
        drop(things);
        Ok(())
    }

    fn free_now(&self) -> Result<usize, GpuError> {
        let (mut free, mut all) = (0, 0);
        // SAFETY: it writes two numbers.
        self.context.call(|api| unsafe { api.cuMemGetInfo_v2(&raw mut free, &raw mut all) })?;
        Ok(free)
    }

    /// Memory, or `None` if CUDA has none.
    fn try_alloc(&self, len: usize) -> Result<Option<u64>, GpuError> {
        let mut address = 0;
        // SAFETY: it writes one address.
        match self.context.attempt(|api| unsafe { api.cuMemAlloc_v2(&raw mut address, len) })? {
            Ok(()) => Ok(Some(address)),
            Err(refused) if refused.code == OUT_OF_MEMORY => Ok(None),
            Err(refused) => Err(self.context.fail(refused)),
        }
    }

    /// Memory of the host, or `None` if there is none. Its address is the same for
    /// the GPU, as of all memory that CUDA pins without write-combining.
    fn try_alloc_host(&self, len: usize) -> Result<Option<u64>, GpuError> {
        let mut pointer: *mut c_void = null_mut();
        let flags = sys::CU_MEMHOSTALLOC_PORTABLE | sys::CU_MEMHOSTALLOC_DEVICEMAP;
        // SAFETY: it writes one pointer.
        match self.context.attempt(|api| unsafe { api.cuMemHostAlloc(&raw mut pointer, len, flags) })? {
            Ok(()) => Ok(Some(pointer as u64)),
            Err(refused) if refused.code == OUT_OF_MEMORY => Ok(None),
            Err(refused) => Err(self.context.fail(refused)),
        }
    }
}

impl Gpu for Driver {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn free_bytes(&self) -> Result<usize, GpuError> {
        self.settle()?;
        self.free_now()
    }

    fn alloc(&self, len: usize) -> Result<u64, GpuError> {
        // Whoever allocates has the time.
        if self.state().dead_bytes > DEAD_BYTES_MAX {
            self.settle()?;
        }
        if let Some(address) = self.try_alloc(len)? {
            return Ok(address);
        }
        self.settle()?;
        if let Some(address) = self.try_alloc(len)? {
            return Ok(address);
        }
        // They hold memory, and can be made again.
        self.state().launching.forget_graphs();
        match self.try_alloc(len)? {
            Some(address) => Ok(address),
            None => Err(GpuError::OutOfMemory { bytes: len, free: self.free_now()? }),
        }
    }

    unsafe fn free(&self, address: u64, len: usize) {
        let mut state = self.state();
        state.dead.push(address);
        state.dead_bytes += len;
    }

    unsafe fn upload(&self, bytes: &[u8], to: u64) -> Result<(), GpuError> {
        // SAFETY: the caller's.
        unsafe { self.state().staging.upload(bytes, to) }
    }

    unsafe fn download(&self, from: u64, bytes: &mut [u8]) -> Result<(), GpuError> {
        let _enqueueing = self.state();
        // SAFETY: the caller's.
        unsafe { self.arrivals.download(from, bytes) }
    }

    unsafe fn begin_download(&self, from: u64, len: usize) -> Result<Arriving, GpuError> {
        let _enqueueing = self.state();
        // SAFETY: the caller's.
        unsafe { self.arrivals.begin_download(from, len) }
    }

    unsafe fn copy(&self, from: u64, to: u64, len: usize) -> Result<(), GpuError> {
        let _enqueueing = self.state();
        let stream = self.context.stream();
        // SAFETY: the caller's.
        self.context.call(|api| unsafe { api.cuMemcpyAsync(to, from, len, stream) })
    }

    fn tensor_map(&self, map: &TensorMap) -> Result<[u64; 16], GpuError> {
        assert!(self.facts.is_hopper(), "{} has no tensor maps", self.facts.name);
        assert_eq!(map.box_cols, 64, "a swizzle spans 64 columns");
        assert!(map.address.is_multiple_of(16) && map.row_bytes.is_multiple_of(16), "{map:?} is not aligned");
        assert!((1..=256).contains(&map.box_rows) && map.cols * 2 <= map.row_bytes, "{map:?} does not fit");
        let extents = [map.cols, map.rows];
        let strides = [map.row_bytes];
        let boxes = [map.box_cols, map.box_rows];
        // Whatever CUDA leaves out is the same in equal maps: graphs are found by them.
        let mut made = MaybeUninit::<sys::CUtensorMap>::zeroed();
        self.context.call(|api| {
            // SAFETY: it reads two dimensions and writes one map.
            let code = unsafe {
                (api.cuTensorMapEncodeTiled)(
                    made.as_mut_ptr(),
                    sys::CUtensorMapDataType_enum::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                    2,
                    map.address as *mut _,
                    extents.as_ptr(),
                    strides.as_ptr(),
                    boxes.as_ptr(),
                    [1, 1].as_ptr(),
                    sys::CUtensorMapInterleave_enum::CU_TENSOR_MAP_INTERLEAVE_NONE,
                    sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_128B,
                    sys::CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                    sys::CUtensorMapFloatOOBfill_enum::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
                )
            };
            if code == 0 { Ok(()) } else { Err(Refused { call: "cuTensorMapEncodeTiled", code }) }
        })?;
        // SAFETY: CUDA wrote it.
        Ok(unsafe { made.assume_init() }.opaque)
    }

    unsafe fn run(&self, launches: &Launches) -> Result<(), GpuError> {
        // SAFETY: the caller's.
        unsafe { self.state().launching.run(launches, &self.functions) }
    }

    fn wait(&self) -> Result<(), GpuError> {
        self.settle()
    }

    fn raw_stream(&self) -> u64 {
        self.context.stream() as u64
    }

    fn bind(&self) -> Result<(), GpuError> {
        // Each call does it again; this one tells early whether it can be done.
        self.context.call(|_| Ok(()))
    }

    fn alloc_host(&self, len: usize) -> Result<u64, GpuError> {
        if let Some(address) = self.try_alloc_host(len)? {
            return Ok(address);
        }
        self.settle()?;
        self.try_alloc_host(len)?.ok_or(GpuError::OutOfHostMemory { bytes: len })
    }

    unsafe fn free_host(&self, address: u64, _len: usize) {
        self.state().dead_of_host.push(address);
    }

    fn point(&self) -> Result<Point, GpuError> {
        self.state().aside.point()
    }

    unsafe fn copy_aside(&self, after: Point, copies: &[Transfer]) -> Result<Point, GpuError> {
        // SAFETY: the caller's.
        unsafe { self.state().aside.copy(after, copies) }
    }

    fn follow(&self, point: Point) -> Result<(), GpuError> {
        self.state().aside.follow(point)
    }

    fn is_past(&self, point: Point) -> Result<bool, GpuError> {
        self.state().aside.is_past(point)
    }

    fn expose(&self, address: u64) -> Result<Exposed, GpuError> {
        peers::expose(&self.context, address)
    }

    unsafe fn reach(&self, offer: &Offer) -> Result<Box<dyn Reached>, GpuError> {
        // SAFETY: the caller's.
        unsafe { peers::reach(&self.context, offer) }
    }

    fn drop_later(&self, thing: Box<dyn Send>) {
        self.state().dead_things.push(thing);
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // What fails here failed before.
        let _ = self.settle();
    }
}
