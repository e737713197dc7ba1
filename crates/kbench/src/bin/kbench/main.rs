//! `kbench`: checks and measures the CUDA device on a machine that needs no more
//! than NVIDIA's driver. Ends with 0 if all is well, 1 if a check or a
//! measurement failed, 2 if it was called wrongly, 3 where there is no GPU, 4 if
//! the GPU was lost and no other process goes on.

use chorale_cuda::{Driver, Facts, GpuError, Options, probe};
use chorale_kbench::bench::Machine;
use chorale_kbench::command::{self, Stand};
use std::process::ExitCode;

/// The GPUs that the driver shows.
struct Real;

impl Stand for Real {
    fn list(&self) -> Result<Vec<(Facts, String)>, GpuError> {
        let found = probe().map_err(GpuError::from)?.into_iter();
        let line = |name: &str, bus: &str, uuid: &str| format!("{name} at {bus}, {uuid}");
        Ok(found.map(|one| (one.facts.clone(), line(&one.facts.name, &one.bus, &one.uuid))).collect())
    }

    fn open(&self, ordinal: usize, one_by_one: bool) -> Result<Machine, GpuError> {
        Ok(Machine::real(Driver::open(ordinal, &Options::default())?, one_by_one))
    }
}

fn main() -> ExitCode {
    command::run(&Real, std::env::args_os())
}
