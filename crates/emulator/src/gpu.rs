//! The emulator as a GPU: its memory, and launches in order.

#![expect(unsafe_code, reason = "addresses of the emulated memory are trusted by kernels")]

use crate::native::{self, Machine};
use chorale_cuda::{Arriving, Facts, Gpu, GpuError, Launches, TensorMap};
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
}

impl Default for Options {
    fn default() -> Self {
        Self { seed: 1, capability: (8, 0), num_sms: 4, memory_bytes: 4 << 30 }
    }
}

/// A GPU whose kernels run on the calling thread when they are enqueued.
#[derive(Debug)]
pub struct Emulator {
    facts: Facts,
    seed: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The length of each allocation in use, by its address.
    allocations: BTreeMap<u64, usize>,
    used_bytes: usize,
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
        Ok(Arc::new(Self { facts, seed: options.seed, state: Mutex::default() }))
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
        let found = self.allocations.range(..=address).next_back();
        let fits = found.is_some_and(|(&start, &size)| {
            address - start <= size as u64 && len as u64 <= size as u64 - (address - start)
        });
        assert!(
            fits || len == 0,
            "{what}: {len} bytes at {address:#x} are not allocated; nearest: {found:x?}"
        );
    }
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
        // SAFETY: it was allocated, and is forgotten now; nobody else uses it as
        // the caller promises.
        unsafe { native::free(address) }
    }

    unsafe fn upload(&self, bytes: &[u8], to: u64) -> Result<(), GpuError> {
        self.state().check("upload", to, bytes.len());
        // SAFETY: the range is allocated, and host memory is not among it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, bytes.len()) }
        Ok(())
    }

    unsafe fn download(&self, from: u64, bytes: &mut [u8]) -> Result<(), GpuError> {
        self.state().check("download", from, bytes.len());
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
        state.check("copy from", from, len);
        state.check("copy to", to, len);
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
        Ok(())
    }

    fn bind(&self) -> Result<(), GpuError> {
        Ok(())
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        for &address in state.allocations.keys() {
            // SAFETY: it was allocated; whoever held it has let go of this GPU.
            unsafe { native::free(address) }
        }
    }
}
