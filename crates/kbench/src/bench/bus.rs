//! How fast what lies with the host comes to the GPU: by its copy engine, and by
//! kernels that read it where it lies.

#![expect(unsafe_code, reason = "copies and reads memory that it allocated")]

use super::geometry::Extent;
use super::machine::Machine;
use bytemuck::{Pod, Zeroable};
use chorale_cuda::{GpuError, Kernel, Launches};

const ROUNDS: usize = 4;
const THREADS: u32 = 64;

/// Seconds to bring as much as is measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bus {
    pub(super) bytes: usize,
    pub(super) by_copy: f64,
    pub(super) by_kernels: f64,
}

/// Arguments of `selftest_chain`, which writes a word for each that it reads.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct ChainArgs {
    input: u64,
    output: u64,
    count: u32,
    pad: u32,
}

/// Times the way from pinned memory.
pub(super) fn measure(machine: &Machine, extent: &Extent) -> Result<Bus, GpuError> {
    let (gpu, bytes) = (machine.gpu(), extent.rotated_bytes);
    let (from, to) = (gpu.alloc_host(bytes)?, gpu.alloc(bytes)?);
    // SAFETY: both were allocated with this length.
    let found = unsafe { times(machine, (from, to), bytes) };
    let done = gpu.wait();
    // SAFETY: they were allocated with this length, and nothing uses them any more.
    unsafe {
        gpu.free(to, bytes);
        gpu.free_host(from, bytes);
    }
    done.and(found)
}

/// # Safety
/// `from` is memory of the host and `to` of the GPU, each of so many bytes.
unsafe fn times(machine: &Machine, (from, to): (u64, u64), bytes: usize) -> Result<Bus, GpuError> {
    let gpu = machine.gpu();
    // SAFETY: the caller's. What the host's memory held is unspecified, so it is written.
    unsafe { gpu.copy(to, from, bytes) }?;
    let best = |work: &dyn Fn() -> Result<(), GpuError>| {
        let mut best = f64::INFINITY;
        for _ in 0..ROUNDS {
            let start = machine.mark()?;
            work()?;
            let end = machine.mark()?;
            best = best.min(machine.seconds(&start, &end)?);
        }
        Ok::<f64, GpuError>(best)
    };
    // SAFETY: the caller's.
    let by_copy = best(&|| unsafe { gpu.copy(from, to, bytes) })?;
    let count = (bytes / size_of::<u32>()) as u32;
    let mut launches = Launches::default();
    let kernel = Kernel { name: "selftest_chain", threads: THREADS };
    let args = ChainArgs { input: from, output: to, count, pad: 0 };
    launches.push(kernel, [count.div_ceil(THREADS), 1, 1], 0, &args);
    // SAFETY: the caller's; each word is read and written once.
    let by_kernels = best(&|| unsafe { gpu.run(&launches) })?;
    Ok(Bus { bytes, by_copy, by_kernels })
}
