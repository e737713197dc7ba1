//! A GPU that remembers what it was told last, so that one that hangs can say in
//! which kernels; and that launches them one by one where one of many fails.

#![expect(unsafe_code, reason = "hands on what it is given")]

use chorale_cuda::{
    Arriving, Exposed, Facts, Gpu, GpuError, Launches, Offer, Point, Reached, TensorMap, Transfer,
};
use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Lists of launches that are remembered.
const LISTS_MAX: usize = 4;
/// Names of kernels that are told of.
const NAMES_MAX: usize = 40;

/// What was handed over and is not known to be done.
#[derive(Default)]
pub struct Ledger {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    lists: VecDeque<Vec<&'static str>>,
    calls: Vec<(u64, &'static str, Instant)>,
    num_calls: u64,
    /// All that ever ran, where somebody wants to know.
    launched: Option<BTreeSet<&'static str>>,
}

impl Ledger {
    /// One that remembers all kernels that ever ran.
    pub fn of_all() -> Arc<Self> {
        let state = State { launched: Some(BTreeSet::new()), ..State::default() };
        Arc::new(Self { state: Mutex::new(state) })
    }

    /// All kernels that ever ran.
    pub fn launched(&self) -> BTreeSet<&'static str> {
        self.state().launched.clone().unwrap_or_default()
    }

    /// Remembers a call as long as it has not come back.
    pub(crate) fn calling(&self, call: &'static str) -> Calling<'_> {
        let mut state = self.state();
        state.num_calls += 1;
        let number = state.num_calls;
        state.calls.push((number, call, Instant::now()));
        Calling { ledger: self, number }
    }

    /// The call that has not come back for longest, and for how long.
    pub(crate) fn oldest_call(&self) -> Option<(&'static str, Duration)> {
        self.state().calls.iter().map(|(_, call, since)| (*call, since.elapsed())).max_by_key(|call| call.1)
    }

    /// Kernels that were handed over since the GPU was known to be done, the last ones
    /// of many.
    pub(crate) fn pending(&self) -> String {
        let state = self.state();
        let names: Vec<&str> = state.lists.iter().flatten().copied().collect();
        match names.len() {
            0 => "no kernel".to_owned(),
            many @ NAMES_MAX.. => format!("…, {}", names[many - NAMES_MAX..].join(", ")),
            _ => names.join(", "),
        }
    }

    fn handed_over(&self, launches: &Launches) {
        let mut state = self.state();
        if state.lists.len() == LISTS_MAX {
            state.lists.pop_front();
        }
        let names: Vec<&'static str> = launches.iter().map(|(call, _)| call.kernel.name).collect();
        if let Some(launched) = &mut state.launched {
            launched.extend(&names);
        }
        state.lists.push_back(names);
    }

    fn done(&self) {
        self.state().lists.clear();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call that has not come back.
pub(crate) struct Calling<'a> {
    ledger: &'a Ledger,
    number: u64,
}

impl Drop for Calling<'_> {
    fn drop(&mut self) {
        self.ledger.state().calls.retain(|(number, ..)| *number != self.number);
    }
}

/// A GPU that keeps a ledger.
pub struct Watched {
    gpu: Arc<dyn Gpu>,
    ledger: Arc<Ledger>,
    one_by_one: bool,
}

impl Watched {
    /// Watches a GPU. Where kernels run `one_by_one`, each is waited for, and an error
    /// names the one that it is of.
    pub fn new(gpu: Arc<dyn Gpu>, ledger: &Arc<Ledger>, one_by_one: bool) -> Arc<Self> {
        Arc::new(Self { gpu, ledger: Arc::clone(ledger), one_by_one })
    }
}

impl Gpu for Watched {
    fn facts(&self) -> &Facts {
        self.gpu.facts()
    }

    fn free_bytes(&self) -> Result<usize, GpuError> {
        let _calling = self.ledger.calling("free_bytes");
        self.gpu.free_bytes()
    }

    fn alloc(&self, len: usize) -> Result<u64, GpuError> {
        let _calling = self.ledger.calling("alloc");
        self.gpu.alloc(len)
    }

    unsafe fn free(&self, address: u64, len: usize) {
        // SAFETY: the caller's.
        unsafe { self.gpu.free(address, len) }
    }

    unsafe fn upload(&self, bytes: &[u8], to: u64) -> Result<(), GpuError> {
        let _calling = self.ledger.calling("upload");
        // SAFETY: the caller's.
        unsafe { self.gpu.upload(bytes, to) }
    }

    unsafe fn download(&self, from: u64, bytes: &mut [u8]) -> Result<(), GpuError> {
        let _calling = self.ledger.calling("download");
        // SAFETY: the caller's.
        unsafe { self.gpu.download(from, bytes) }?;
        self.ledger.done();
        Ok(())
    }

    unsafe fn begin_download(&self, from: u64, len: usize) -> Result<Arriving, GpuError> {
        // SAFETY: the caller's.
        let arriving = unsafe { self.gpu.begin_download(from, len) }?;
        let ledger = Arc::clone(&self.ledger);
        Ok(Box::new(move || {
            let _calling = ledger.calling("begin_download");
            arriving()
        }))
    }

    unsafe fn copy(&self, from: u64, to: u64, len: usize) -> Result<(), GpuError> {
        // SAFETY: the caller's.
        unsafe { self.gpu.copy(from, to, len) }
    }

    fn tensor_map(&self, map: &TensorMap) -> Result<[u64; 16], GpuError> {
        self.gpu.tensor_map(map)
    }

    unsafe fn run(&self, launches: &Launches) -> Result<(), GpuError> {
        self.ledger.handed_over(launches);
        if !self.one_by_one {
            let _calling = self.ledger.calling("run");
            // SAFETY: the caller's.
            return unsafe { self.gpu.run(launches) };
        }
        for alone in launches.apart() {
            self.ledger.done();
            self.ledger.handed_over(&alone);
            let _calling = self.ledger.calling("run");
            // SAFETY: the caller's.
            unsafe { self.gpu.run(&alone) }.and_then(|()| self.gpu.wait()).map_err(|error| {
                let what = alone.iter().map(|(call, args)| {
                    let words = args.chunks(8).map(|word| {
                        word.iter().rev().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
                    });
                    let words: Vec<String> = words.collect();
                    let (kernel, grid, shared) = (call.kernel.name, call.grid, call.shared_bytes);
                    format!("kernel {kernel}, grid {grid:?}, {shared} bytes shared, arguments {words:?}")
                });
                let reason = format!("{error}; it was {}", what.collect::<String>());
                GpuError::Driver { call: "one kernel alone", reason }
            })?;
        }
        Ok(())
    }

    fn wait(&self) -> Result<(), GpuError> {
        let _calling = self.ledger.calling("wait");
        self.gpu.wait()?;
        self.ledger.done();
        Ok(())
    }

    fn raw_stream(&self) -> u64 {
        self.gpu.raw_stream()
    }

    fn bind(&self) -> Result<(), GpuError> {
        self.gpu.bind()
    }

    fn alloc_host(&self, len: usize) -> Result<u64, GpuError> {
        self.gpu.alloc_host(len)
    }

    unsafe fn free_host(&self, address: u64, len: usize) {
        // SAFETY: the caller's.
        unsafe { self.gpu.free_host(address, len) }
    }

    fn point(&self) -> Result<Point, GpuError> {
        self.gpu.point()
    }

    unsafe fn copy_aside(&self, after: Point, copies: &[Transfer]) -> Result<Point, GpuError> {
        // SAFETY: the caller's.
        unsafe { self.gpu.copy_aside(after, copies) }
    }

    fn follow(&self, point: Point) -> Result<(), GpuError> {
        self.gpu.follow(point)
    }

    fn is_past(&self, point: Point) -> Result<bool, GpuError> {
        self.gpu.is_past(point)
    }

    fn expose(&self, address: u64) -> Result<Exposed, GpuError> {
        self.gpu.expose(address)
    }

    unsafe fn reach(&self, offer: &Offer) -> Result<Box<dyn Reached>, GpuError> {
        // SAFETY: the caller's.
        unsafe { self.gpu.reach(offer) }
    }

    fn drop_later(&self, thing: Box<dyn Send>) {
        self.gpu.drop_later(thing);
    }
}
