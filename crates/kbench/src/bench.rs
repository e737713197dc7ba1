//! How fast a GPU computes: each operation, and whole steps of a model of
//! gpt-oss's kind. A small geometry on an emulated GPU tests that all of it
//! runs, which says nothing about time.

mod geometry;
mod limits;
mod machine;
mod meter;
mod operations;
mod report;
mod steps;

pub use geometry::{Extent, Geometry};
pub use machine::Machine;
pub use report::{Measurement, Report};

/// Measures on; what one part cannot do does not keep the others from it.
pub fn run(machine: &Machine, geometry: &Geometry, extent: &Extent, report: &mut Report) {
    let limits = match limits::measure(machine, extent, report) {
        Ok(limits) => limits,
        Err(error) => return report.fail("limits", error.to_string()),
    };
    if let Err(error) = operations::run(machine, (geometry, extent), limits, report) {
        report.fail("operations", error.to_string());
    }
    if let Err(error) = steps::run(machine, (geometry, extent), limits, report) {
        report.fail("whole steps", error.to_string());
    }
}
