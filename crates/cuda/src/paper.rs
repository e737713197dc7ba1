//! A GPU on paper: it counts the memory that is asked of it and computes nothing.
//! What is made on it takes as many bytes as on a real one, so a plan is made by
//! the code that later does what was planned.

#![expect(unsafe_code, reason = "implements what a GPU does with addresses, and touches none")]

use crate::gpu::{Arriving, Facts, Gpu, GpuError, Point, TensorMap, Transfer};
use crate::launch::Launches;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What every address is a multiple of.
const ALIGNMENT: u64 = 256;

/// Memory that the driver gives out at a time: what is large has its own, what is
/// small shares.
const CHUNK_BYTES: u64 = 2 << 20;
/// From here on an allocation is large.
const LARGE_BYTES: u64 = 1 << 20;
/// What a small one is rounded up to.
const SMALL_BYTES: u64 = 512;

/// A GPU that only counts.
pub struct Paper {
    facts: Facts,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: u64,
    /// The length of each allocation in use, by its address.
    allocations: BTreeMap<u64, u64>,
    points: u64,
    host_bytes: u64,
    /// What would have been launched, where somebody wants to know.
    launches: Option<Vec<Launches>>,
}

impl Paper {
    /// A GPU of this kind, without a limit.
    pub fn new(facts: Facts) -> Arc<Self> {
        Arc::new(Self { facts, state: Mutex::default() })
    }

    /// A Hopper GPU: what others allocate is not more.
    pub fn hopper() -> Arc<Self> {
        Self::new(Facts {
            name: "paper".to_owned(),
            capability: (9, 0),
            num_sms: 132,
            shared_bytes_max: 227 * 1024,
            memory_bytes: usize::MAX,
            memory_bytes_per_s: 3_350_000_000_000,
            driver: 13_000,
        })
    }

    /// Bytes that are in use, as they were asked for.
    pub fn asked_bytes(&self) -> u64 {
        self.state().allocations.values().sum()
    }

    /// What the driver takes for them.
    pub fn taken_bytes(&self) -> u64 {
        let state = self.state();
        let (large, small): (Vec<u64>, Vec<u64>) =
            state.allocations.values().partition(|&&len| len >= LARGE_BYTES);
        let large: u64 = large.into_iter().map(|len| len.next_multiple_of(CHUNK_BYTES)).sum();
        let small: u64 = small.into_iter().map(|len| len.next_multiple_of(SMALL_BYTES)).sum();
        large + small.next_multiple_of(CHUNK_BYTES)
    }

    /// Bytes of the host that are in use.
    pub fn host_bytes(&self) -> u64 {
        self.state().host_bytes
    }

    /// The lists that were handed over since the call before this one, which is when
    /// they began to be kept.
    pub fn take_launches(&self) -> Vec<Launches> {
        self.state().launches.replace(Vec::new()).unwrap_or_default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// An address that nothing else has.
    fn address(&mut self, len: usize) -> u64 {
        let address = self.next.max(ALIGNMENT);
        self.next = address + (len as u64).next_multiple_of(ALIGNMENT);
        address
    }

    fn point(&mut self) -> Point {
        self.points += 1;
        Point(self.points)
    }
}

impl Gpu for Paper {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn free_bytes(&self) -> Result<usize, GpuError> {
        Ok(self.facts.memory_bytes.saturating_sub(self.asked_bytes() as usize))
    }

    fn alloc(&self, len: usize) -> Result<u64, GpuError> {
        let mut state = self.state();
        let address = state.address(len);
        state.allocations.insert(address, len as u64);
        Ok(address)
    }

    unsafe fn free(&self, address: u64, _len: usize) {
        self.state().allocations.remove(&address);
    }

    unsafe fn upload(&self, _bytes: &[u8], _to: u64) -> Result<(), GpuError> {
        Ok(())
    }

    unsafe fn download(&self, _from: u64, bytes: &mut [u8]) -> Result<(), GpuError> {
        bytes.fill(0);
        Ok(())
    }

    unsafe fn begin_download(&self, _from: u64, len: usize) -> Result<Arriving, GpuError> {
        Ok(Box::new(move || Ok(vec![0; len])))
    }

    unsafe fn copy(&self, _from: u64, _to: u64, _len: usize) -> Result<(), GpuError> {
        Ok(())
    }

    fn tensor_map(&self, _map: &TensorMap) -> Result<[u64; 16], GpuError> {
        Ok([0; 16])
    }

    unsafe fn run(&self, launches: &Launches) -> Result<(), GpuError> {
        if let Some(kept) = &mut self.state().launches {
            kept.push(launches.clone());
        }
        Ok(())
    }

    fn wait(&self) -> Result<(), GpuError> {
        Ok(())
    }

    fn bind(&self) -> Result<(), GpuError> {
        Ok(())
    }

    fn alloc_host(&self, len: usize) -> Result<u64, GpuError> {
        let mut state = self.state();
        state.host_bytes += len as u64;
        Ok(state.address(len))
    }

    unsafe fn free_host(&self, _address: u64, len: usize) {
        self.state().host_bytes -= len as u64;
    }

    fn point(&self) -> Result<Point, GpuError> {
        Ok(self.state().point())
    }

    unsafe fn copy_aside(&self, _after: Point, _copies: &[Transfer]) -> Result<Point, GpuError> {
        Ok(self.state().point())
    }

    fn follow(&self, _point: Point) -> Result<(), GpuError> {
        Ok(())
    }

    fn is_past(&self, _point: Point) -> Result<bool, GpuError> {
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_counted_as_asked_for_and_as_the_driver_takes_it() {
        let paper = Paper::hopper();
        let first = paper.alloc(3 << 20).unwrap_or(0);
        let second = paper.alloc(1).unwrap_or(0);
        assert!(first > 0 && second >= first + (3 << 20) && second.is_multiple_of(ALIGNMENT));
        assert_eq!(paper.asked_bytes(), (3 << 20) + 1);
        assert_eq!(paper.taken_bytes(), (4 << 20) + (2 << 20));
        // SAFETY: nothing is touched on paper.
        unsafe { paper.free(first, 3 << 20) }
        assert_eq!((paper.asked_bytes(), paper.taken_bytes()), (1, 2 << 20));
    }
}
