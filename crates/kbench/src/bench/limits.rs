//! What this GPU can do at best, measured in the same run: how fast its memory
//! is copied, and how fast its tensor cores multiply in our own best kernel.

#![expect(unsafe_code, reason = "copies memory that it allocated")]

use super::bus;
use super::geometry::Extent;
use super::machine::Machine;
use super::meter::Meter;
use crate::noise;
use crate::reference::Random;
use crate::report::{Measurement, Report};
use chorale_cuda::GpuError;
use chorale_device::Precision::Half;
use chorale_device::{DenseDtype, Device};
use serde::{Deserialize, Serialize};

const COPIES: usize = 8;

/// Bytes and operations a second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    pub(crate) bytes_per_s: f64,
    pub(crate) flop_per_s: f64,
    /// From the host's memory, by copies.
    pub(crate) copied_bytes_per_s: f64,
    /// From the host's memory, by kernels that read it there.
    pub(crate) read_bytes_per_s: f64,
}

/// Where nothing was measured there are none.
impl Default for Limits {
    fn default() -> Self {
        let none = f64::INFINITY;
        Self { bytes_per_s: none, flop_per_s: none, copied_bytes_per_s: none, read_bytes_per_s: none }
    }
}

impl Limits {
    /// A measurement of something that moves and computes so much in a time.
    pub(crate) fn measurement(&self, what: &str, of: String, seconds: f64, work: Work) -> Measurement {
        let (bytes, flop) = (work.bytes as f64, work.flop as f64);
        let floor = (bytes / self.bytes_per_s).max(flop / self.flop_per_s);
        Measurement {
            what: what.to_owned(),
            of,
            microseconds: seconds * 1e6,
            gb_per_s: (work.bytes > 0).then_some(bytes / seconds / 1e9),
            tflop_per_s: (work.flop > 0).then_some(flop / seconds / 1e12),
            share_of_limit: (floor > 0.0).then_some(floor / seconds),
            ..Measurement::default()
        }
    }
}

/// The least that something has to do.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Work {
    pub(crate) bytes: usize,
    pub(crate) flop: usize,
}

pub(crate) fn measure(machine: &Machine, extent: &Extent, report: &mut Report) -> Result<Limits, GpuError> {
    // Each byte is read and written.
    let bytes = 2 * extent.rotated_bytes;
    let seconds = copy(machine, extent)?;
    let written = machine.gpu().facts().memory_bytes_per_s as f64;
    report.measured(Measurement {
        what: "limit: copying memory".to_owned(),
        of: format!("{} MiB", extent.rotated_bytes >> 20),
        microseconds: seconds * 1e6,
        gb_per_s: Some(bytes as f64 / seconds / 1e9),
        note: format!("{:.0} GB/s by the memory's clock", written / 1e9),
        ..Measurement::default()
    });
    let size = extent.product;
    let flop = 2 * size * size * size;
    let product_seconds = multiply(machine, extent)?;
    let bus = bus::measure(machine, extent)?;
    let limits = Limits {
        bytes_per_s: bytes as f64 / seconds,
        flop_per_s: flop as f64 / product_seconds,
        copied_bytes_per_s: bus.bytes as f64 / bus.by_copy,
        read_bytes_per_s: bus.bytes as f64 / bus.by_kernels,
    };
    let of = format!("{size} × {size} × {size}");
    report.measured(limits.measurement("limit: bf16 product", of, product_seconds, Work { bytes: 0, flop }));
    for (what, seconds) in
        [("limit: host to GPU, copied", bus.by_copy), ("limit: host to GPU, read by kernels", bus.by_kernels)]
    {
        report.measured(Measurement {
            what: what.to_owned(),
            of: format!("{} MiB of pinned memory", bus.bytes >> 20),
            microseconds: seconds * 1e6,
            gb_per_s: Some(bus.bytes as f64 / seconds / 1e9),
            ..Measurement::default()
        });
    }
    Ok(limits)
}

/// Seconds of one copy.
fn copy(machine: &Machine, extent: &Extent) -> Result<f64, GpuError> {
    let (gpu, len) = (machine.gpu(), extent.rotated_bytes);
    let (from, to) = (gpu.alloc(len)?, gpu.alloc(len)?);
    let mut best = f64::INFINITY;
    for _ in 0..4 {
        let start = machine.mark()?;
        for _ in 0..COPIES {
            // SAFETY: both were allocated with this length, and are two.
            unsafe { gpu.copy(from, to, len) }?;
        }
        let end = machine.mark()?;
        best = best.min(machine.seconds(&start, &end)? / COPIES as f64);
    }
    gpu.wait()?;
    for address in [from, to] {
        // SAFETY: it was allocated with this length, and all copies are done.
        unsafe { gpu.free(address, len) };
    }
    Ok(best)
}

/// Seconds of one product.
fn multiply(machine: &Machine, extent: &Extent) -> Result<f64, GpuError> {
    let size = extent.product;
    let mut meter = Meter::new(machine, extent.rounds);
    let device = &mut meter.device;
    let weights = device.linear(noise::dense(&mut Random(1), size, size, false), DenseDtype::Bf16)?;
    let mut rows = device.matrix(size, size, Half)?;
    device.write(&noise::activations(&mut Random(2), size * size), &mut rows)?;
    let mut out = device.matrix(size, size, Half)?;
    meter.time(|device| device.project(&rows, &weights, &mut out))
}
