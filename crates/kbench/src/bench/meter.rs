//! Times what is queued on the GPU, by the GPU's own clock.

use super::machine::Machine;
use chorale_cuda::{Cuda, GpuError};

/// Before anything is timed: the first time it is launched, the second it may
/// become a graph, the third that is replayed.
const WARMUPS: usize = 3;

/// A GPU that is measured.
pub(crate) struct Meter<'a> {
    machine: &'a Machine,
    pub(crate) device: Cuda,
    /// The middle one of so many counts.
    rounds: usize,
}

impl<'a> Meter<'a> {
    pub(crate) fn new(machine: &'a Machine, rounds: usize) -> Self {
        Self { machine, device: machine.device(), rounds }
    }

    /// Seconds of what `queue` asks for, each time of the same.
    pub(crate) fn time(
        &mut self,
        mut queue: impl FnMut(&mut Cuda) -> Result<(), GpuError>,
    ) -> Result<f64, GpuError> {
        for _ in 0..WARMUPS {
            queue(&mut self.device)?;
            self.device.flush()?;
        }
        self.device.wait()?;
        let mut times = Vec::with_capacity(self.rounds);
        for _ in 0..self.rounds {
            // Queued work is handed over at once, after the mark.
            queue(&mut self.device)?;
            let start = self.machine.mark()?;
            self.device.flush()?;
            let end = self.machine.mark()?;
            times.push(self.machine.seconds(&start, &end)?);
        }
        times.sort_by(f64::total_cmp);
        Ok(times[times.len() / 2])
    }
}
