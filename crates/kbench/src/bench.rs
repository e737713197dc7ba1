//! How fast a GPU computes: whole steps of a model of gpt-oss's kind, and each
//! operation. A small geometry on an emulated GPU tests that all of it runs,
//! which says nothing about time.

mod bus;
mod geometry;
pub mod launches;
mod limits;
mod machine;
mod meter;
mod offload;
mod operations;
mod steps;

pub use crate::report::Measurement;
pub use geometry::{Extent, Geometry};
pub use limits::Limits;
pub use machine::Machine;

use crate::failure::Outcome;
use crate::report::Report;
use chorale_device::DenseDtype;
use operations::Group;
use std::time::Duration;
use steps::Model;

/// What takes longer is ended: the model is loaded within the first of the steps.
const LIMITS_WITHIN: Duration = Duration::from_secs(90);
const STEPS_WITHIN: Duration = Duration::from_secs(300);
const OPERATIONS_WITHIN: Duration = Duration::from_secs(180);

/// Something that is measured on its own.
pub struct Part {
    /// What names it.
    pub name: String,
    /// How long it may take.
    pub within: Duration,
    task: Task,
}

enum Task {
    Limits,
    Decode { num_sequences: usize, dense: DenseDtype },
    Prompt { rows: usize },
    Offload { percent: usize },
    Operations(Group),
}

/// All parts that are wanted, what counts most first.
pub fn parts(extent: &Extent) -> Vec<Part> {
    let steps = |name: String, task| Part { name, within: STEPS_WITHIN, task };
    let decode = |dense: DenseDtype, num_sequences: usize| {
        let name = match dense {
            DenseDtype::Bf16 => format!("whole steps: decode step of {num_sequences}"),
            DenseDtype::Int8 => format!("whole steps: decode step of {num_sequences}, int8"),
        };
        steps(name, Task::Decode { num_sequences, dense })
    };
    let mut parts: Vec<Part> = Vec::new();
    parts.extend(extent.decodes.iter().map(|&sequences| decode(DenseDtype::Bf16, sequences)));
    parts.extend(
        extent
            .step_prefills
            .iter()
            .map(|&rows| steps(format!("whole steps: prompt of {rows}"), Task::Prompt { rows })),
    );
    parts.extend(extent.decodes.iter().map(|&sequences| decode(DenseDtype::Int8, sequences)));
    parts.extend(extent.offload_percents.iter().map(|&percent| {
        steps(format!("whole steps: {percent} % of the experts on the GPU"), Task::Offload { percent })
    }));
    parts.extend(Group::ALL.map(|group| Part {
        name: group.name().to_owned(),
        within: OPERATIONS_WITHIN,
        task: Task::Operations(group),
    }));
    parts.retain(|part| match part.task {
        Task::Operations(group) => group.covers().iter().any(|what| extent.wants(what)),
        _ => extent.wants(&part.name),
    });
    if !parts.is_empty() || extent.wants("limits") {
        let limits = Part { name: "limits".to_owned(), within: LIMITS_WITHIN, task: Task::Limits };
        parts.insert(0, limits);
    }
    parts
}

/// Measures parts, and keeps what the next one can use.
pub struct Session<'a> {
    machine: &'a Machine,
    geometry: &'a Geometry,
    extent: &'a Extent,
    limits: Limits,
    are_limits_new: bool,
    /// The whole model.
    model: Option<Model<'a>>,
}

impl<'a> Session<'a> {
    /// Of a machine without limits, so far.
    pub fn new(machine: &'a Machine, geometry: &'a Geometry, extent: &'a Extent) -> Self {
        let limits = Limits::default();
        Self { machine, geometry, extent, limits, are_limits_new: false, model: None }
    }

    /// What was measured before, on the same machine.
    pub(crate) fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Limits that were measured since this was asked last.
    pub(crate) fn new_limits(&mut self) -> Option<Limits> {
        std::mem::take(&mut self.are_limits_new).then_some(self.limits)
    }

    /// Measures a part.
    pub fn run(&mut self, part: &Part, report: &mut Report) -> Outcome {
        let (machine, on) = (self.machine, (self.geometry, self.extent));
        match part.task {
            Task::Limits => {
                self.limits = limits::measure(machine, self.extent, report)?;
                self.are_limits_new = true;
                Ok(())
            }
            Task::Decode { num_sequences, dense } => self.model(report)?.decode(num_sequences, dense, report),
            Task::Prompt { rows } => self.model(report)?.prompt(rows, report),
            Task::Offload { percent } => {
                self.model = None;
                offload::run(machine, on, (self.limits, percent), report)
            }
            Task::Operations(group) => {
                self.model = None;
                operations::run(machine, on, (self.limits, group), report)
            }
        }
    }

    /// The model, loaded when it is first asked for.
    fn model(&mut self, report: &mut Report) -> Result<&mut Model<'a>, crate::Failure> {
        let on = (self.geometry, self.extent);
        let model = match self.model.take() {
            Some(model) if model.is_whole() => model,
            Some(_) | None => Model::fitting(self.machine, on, self.limits, report)?,
        };
        Ok(self.model.insert(model))
    }
}
