//! The emulator as a GPU: its memory, and launches in order.

#![expect(unsafe_code, reason = "addresses of the emulated memory are trusted by kernels")]

use crate::aside::Aside;
use crate::native::{self, Machine};
use chorale_cuda::{
    Arriving, Exposed, Facts, Gpu, GpuError, Launches, Offer, Point, Reached, TensorMap, Transfer,
};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How to emulate.
#[derive(Clone, Debug)]
pub struct Options {
    /// What is drawn at random follows from it.
    pub seed: u64,
    /// The compute capability to report; only with `(9, 0)` do kernels run that
    /// use what Hopper alone has.
    pub capability: (u32, u32),
    /// Streaming multiprocessors to report. Few, so that persistent kernels
    /// make several rounds.
    pub num_sms: u32,
    /// Memory that can be allocated.
    pub memory_bytes: usize,
    /// The same of the host, for kernels to read.
    pub host_bytes: usize,
    /// Whether other GPUs of the process may reach its memory.
    pub has_peers: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            seed: 1,
            capability: (8, 0),
            num_sms: 4,
            memory_bytes: 4 << 30,
            host_bytes: 4 << 30,
            has_peers: true,
        }
    }
}

/// A GPU whose kernels run on the calling thread when they are enqueued.
#[derive(Debug)]
pub struct Emulator {
    facts: Facts,
    seed: u64,
    host_bytes: usize,
    has_peers: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The length of each allocation in use, by its address.
    allocations: BTreeMap<u64, usize>,
    used_bytes: usize,
    /// The same of the host.
    host_allocations: BTreeMap<u64, usize>,
    used_host_bytes: usize,
    /// Copies beside the launches.
    aside: Aside,
    /// Lists that have run.
    runs: u64,
}

impl Emulator {
    /// Makes a GPU; an error where the emulator cannot run.
    pub fn new(options: Options) -> Result<Arc<Self>, GpuError> {
        if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            return Err(GpuError::Absent { reason: "the emulator needs Linux on x86-64".to_owned() });
        }
        let facts = Facts {
            name: "emulator".to_owned(),
            capability: options.capability,
            num_sms: options.num_sms,
            shared_bytes_max: shared_bytes_max(options.capability),
            memory_bytes: options.memory_bytes,
            memory_bytes_per_s: 1 << 40,
            driver: 13000,
        };
        let Options { seed, host_bytes, has_peers, .. } = options;
        let state = State { aside: Aside::new(seed), ..State::default() };
        Ok(Arc::new(Self { facts, seed, host_bytes, has_peers, state: Mutex::new(state) }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// As much as each GPU has that a generic kernel must run on, which is less than
/// some have: a test then refuses what another GPU would.
fn shared_bytes_max(capability: (u32, u32)) -> u32 {
    if capability == (9, 0) { 227 * 1024 } else { 99 * 1024 }
}

impl State {
    /// Panics unless `address` and what follows is in use.
    fn check(&self, what: &str, address: u64, len: usize) {
        let found = holder(&self.allocations, address);
        assert!(
            fits(found, address, len),
            "{what}: {len} bytes at {address:#x} are not allocated; nearest: {found:x?}"
        );
    }

    /// The same where it may also be the host's.
    fn check_either(&self, what: &str, address: u64, len: usize) {
        if !fits(holder(&self.host_allocations, address), address, len) {
            self.check(what, address, len);
        }
    }
}

/// The allocation that begins at or last before an address.
fn holder(allocations: &BTreeMap<u64, usize>, address: u64) -> Option<(u64, usize)> {
    allocations.range(..=address).next_back().map(|(&start, &size)| (start, size))
}

fn fits(holder: Option<(u64, usize)>, address: u64, len: usize) -> bool {
    let has_room = holder.is_some_and(|(start, size)| {
        address - start <= size as u64 && len as u64 <= size as u64 - (address - start)
    });
    has_room || len == 0
}

impl Gpu for Emulator {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn free_bytes(&self) -> Result<usize, GpuError> {
        Ok(self.facts.memory_bytes - self.state().used_bytes)
    }

    fn alloc(&self, len: usize) -> Result<u64, GpuError> {
        assert!(len > 0, "an allocation of nothing");
        let mut state = self.state();
        let free = self.facts.memory_bytes - state.used_bytes;
        let refused = GpuError::OutOfMemory { bytes: len, free };
        if len > free {
            return Err(refused);
        }
        let address = native::alloc(len).ok_or(refused)?;
        state.allocations.insert(address, len);
        state.used_bytes += len;
        Ok(address)
    }

    unsafe fn free(&self, address: u64, len: usize) {
        let mut state = self.state();
        let known = state.allocations.remove(&address);
        assert_eq!(known, Some(len), "free: {len} bytes at {address:#x} are not an allocation");
        state.used_bytes -= len;
        state.aside.finish_all();
        // SAFETY: it was allocated, and is forgotten now; nobody else uses it as
        // the caller promises.
        unsafe { native::free(address) }
    }

    unsafe fn upload(&self, bytes: &[u8], to: u64) -> Result<(), GpuError> {
        let state = self.state();
        state.check("upload", to, bytes.len());
        state.aside.check_written("upload", to, bytes.len());
        // SAFETY: the range is allocated, and host memory is not among it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, bytes.len()) }
        Ok(())
    }

    unsafe fn download(&self, from: u64, bytes: &mut [u8]) -> Result<(), GpuError> {
        let state = self.state();
        state.check("download", from, bytes.len());
        state.aside.check_read("download", from, bytes.len());
        // SAFETY: the range is allocated, and host memory is not among it.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, bytes.as_mut_ptr(), bytes.len()) }
        Ok(())
    }

    unsafe fn begin_download(&self, from: u64, len: usize) -> Result<Arriving, GpuError> {
        let mut bytes = vec![0; len];
        // SAFETY: as the caller promises.
        unsafe { self.download(from, &mut bytes)? }
        Ok(Box::new(move || Ok(bytes)))
    }

    unsafe fn copy(&self, from: u64, to: u64, len: usize) -> Result<(), GpuError> {
        let state = self.state();
        state.check_either("copy from", from, len);
        state.check_either("copy to", to, len);
        state.aside.check_read("copy from", from, len);
        state.aside.check_written("copy to", to, len);
        assert!(from.abs_diff(to) >= len as u64, "copy: {len} bytes at {from:#x} and {to:#x} overlap");
        // SAFETY: both ranges are allocated and do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, len) }
        Ok(())
    }

    fn tensor_map(&self, map: &TensorMap) -> Result<[u64; 16], GpuError> {
        let refused = |reason: &str| GpuError::Driver {
            call: "cuTensorMapEncodeTiled",
            reason: format!("{reason}: {map:?}"),
        };
        if !self.facts.is_hopper() {
            return Err(refused("the GPU has no tensor maps"));
        }
        if map.rows == 0 || map.cols == 0 || map.rows > u64::from(u32::MAX) || map.cols > u64::from(u32::MAX)
        {
            return Err(refused("rows and columns are 1 to 2^32 - 1"));
        }
        if !map.address.is_multiple_of(16)
            || !map.row_bytes.is_multiple_of(16)
            || map.row_bytes < map.cols * 2
        {
            return Err(refused("address and row_bytes are multiples of 16, and a row holds its columns"));
        }
        if map.box_cols != 64 || !(1..=256).contains(&map.box_rows) {
            return Err(refused("a box has 64 columns and 1 to 256 rows"));
        }
        let len = (map.rows - 1) * map.row_bytes + map.cols * 2;
        self.state().check("tensor map", map.address, usize::try_from(len).unwrap_or(usize::MAX));
        // As `EmulatedMap` in cpp/emulated_hopper.h.
        let mark = u64::from_be_bytes(*b"PAMROSNT");
        let (box_rows, box_cols) = (u64::from(map.box_rows), u64::from(map.box_cols));
        let fields = [mark, map.address, map.rows, map.cols, map.row_bytes, box_rows, box_cols];
        Ok(std::array::from_fn(|i| fields.get(i).copied().unwrap_or(0)))
    }

    unsafe fn run(&self, launches: &Launches) -> Result<(), GpuError> {
        // Held to the end: launches of one GPU follow each other.
        let mut state = self.state();
        state.runs += 1;
        let machine = Machine {
            seed: self.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(state.runs << 20),
            shared_bytes_max: self.facts.shared_bytes_max,
            is_hopper: u32::from(self.facts.is_hopper()),
        };
        // SAFETY: as the caller promises.
        unsafe { native::run(launches, &machine) }
            .map_err(|reason| GpuError::Driver { call: "cuLaunchKernelEx", reason })
    }

    fn wait(&self) -> Result<(), GpuError> {
        self.state().aside.finish_all();
        Ok(())
    }

    fn bind(&self) -> Result<(), GpuError> {
        Ok(())
    }

    fn alloc_host(&self, len: usize) -> Result<u64, GpuError> {
        assert!(len > 0, "an allocation of nothing");
        let mut state = self.state();
        let refused = GpuError::OutOfHostMemory { bytes: len };
        if len > self.host_bytes - state.used_host_bytes {
            return Err(refused);
        }
        let address = native::alloc(len).ok_or(refused)?;
        state.host_allocations.insert(address, len);
        state.used_host_bytes += len;
        Ok(address)
    }

    unsafe fn free_host(&self, address: u64, len: usize) {
        let mut state = self.state();
        let known = state.host_allocations.remove(&address);
        assert_eq!(known, Some(len), "free_host: {len} bytes at {address:#x} are not an allocation");
        state.used_host_bytes -= len;
        state.aside.finish_all();
        // SAFETY: it was allocated, and is forgotten now; nobody else uses it as
        // the caller promises.
        unsafe { native::free(address) }
    }

    fn point(&self) -> Result<Point, GpuError> {
        Ok(self.state().aside.point())
    }

    unsafe fn copy_aside(&self, after: Point, copies: &[Transfer]) -> Result<Point, GpuError> {
        let mut state = self.state();
        for copy in copies {
            state.check_either("copy aside from", copy.from, copy.len);
            state.check_either("copy aside to", copy.to, copy.len);
        }
        // SAFETY: both ranges of each are allocated. The rest is the caller's.
        Ok(unsafe { state.aside.begin(after, copies) })
    }

    fn follow(&self, point: Point) -> Result<(), GpuError> {
        self.state().aside.finish(point);
        Ok(())
    }

    fn is_past(&self, point: Point) -> Result<bool, GpuError> {
        Ok(self.state().aside.is_past(point))
    }

    fn expose(&self, address: u64) -> Result<Exposed, GpuError> {
        self.state().check("expose", address, 1);
        if !self.has_peers {
            return Err(GpuError::Unreachable { reason: "the GPU has no peers".to_owned() });
        }
        Ok(Exposed { device: [0; 16], ipc: None })
    }

    unsafe fn reach(&self, offer: &Offer) -> Result<Box<dyn Reached>, GpuError> {
        if !self.has_peers || !offer.is_own() {
            return Err(GpuError::Unreachable { reason: "the GPU has no peers".to_owned() });
        }
        Ok(Box::new(Neighbour(offer.address)))
    }
}

/// All emulated memory is the host's.
struct Neighbour(u64);

impl Reached for Neighbour {
    fn address(&self) -> u64 {
        self.0
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        for &address in state.allocations.keys().chain(state.host_allocations.keys()) {
            // SAFETY: it was allocated; whoever held it has let go of this GPU.
            unsafe { native::free(address) }
        }
    }
}
