//! The experts: MXFP4 in the tensor cores' own layout.
//!
//! Two launches run a layer: gate and up with the SwiGLU, then down. Between
//! them the activations are bf16, and lie by slot.

mod counting;
mod packed;
mod plan;
mod policy;
mod residency;
mod ring;
mod room;
mod table;
mod traffic;

use crate::gpu::GpuError;
use crate::groups::Groups;
use crate::matrix::Matrix;
use crate::memory::Memory;
use crate::stream::Stream;
use chorale_device::{ExpertOrigin, ExpertsSource, Needs};
use packed::{Layout, Slot};
use plan::Product;
use std::sync::Arc;
use table::{Expert, Table};

pub(crate) use residency::Residency;
pub use room::{ExpertFill, ExpertRoom};
pub use traffic::{ExpertCounts, ExpertTraffic};

/// In place of a local index: the expert is elsewhere.
pub(crate) const NOT_LOCAL: u32 = u32::MAX;

/// Bytes of an expert as it lies packed.
pub fn packed_expert_bytes(hidden: usize, intermediate: usize) -> usize {
    Layout::of(hidden, intermediate).bytes
}

/// The experts of one layer, in the order of the rank's local experts.
pub struct Experts {
    layout: Layout,
    limit: f32,
    table: Arc<Table>,
}

/// Buffers that keep their capacity between calls.
#[derive(Default)]
pub(crate) struct Scratch {
    /// bf16 `[slots, intermediate]`.
    activations: Option<Memory>,
}

impl Scratch {
    /// Room for what lies between the matrices of the experts.
    pub(crate) fn reserve(&mut self, stream: &Stream, needs: &Needs<'_>) -> Result<(), GpuError> {
        let bytes = needs.num_choices * needs.intermediate_size * size_of::<u16>();
        stream.reserve(&mut self.activations, bytes)
    }
}

impl Experts {
    /// Packs experts: all on the GPU, or where there is room for them.
    pub(crate) fn new(
        stream: &mut Stream,
        residency: Option<&mut Residency>,
        source: ExpertsSource,
    ) -> Result<Self, GpuError> {
        let layout = Layout::new(&source);
        Self::make(stream, residency, (layout, source), None, |fresh| fresh.to_vec())
    }

    /// Some of these and some that are added, in a given order; those that stay
    /// are shared, not copied.
    pub(crate) fn regroup(
        &self,
        stream: &mut Stream,
        residency: Option<&mut Residency>,
        order: &[ExpertOrigin],
        added: ExpertsSource,
    ) -> Result<Self, GpuError> {
        assert_eq!(self.layout, Layout::new(&added), "experts of one layer");
        Self::make(stream, residency, (self.layout, added), Some(&self.table), |fresh| {
            let experts = order.iter().map(|origin| match *origin {
                ExpertOrigin::Held(index) => Arc::clone(&self.table.experts[index]),
                ExpertOrigin::Added(index) => Arc::clone(&fresh[index]),
            });
            experts.collect()
        })
    }

    fn make(
        stream: &mut Stream,
        mut residency: Option<&mut Residency>,
        (layout, source): (Layout, ExpertsSource),
        held: Option<&Table>,
        join: impl FnOnce(&[Arc<Expert>]) -> Vec<Arc<Expert>>,
    ) -> Result<Self, GpuError> {
        let count = source.down.experts.len();
        let slots: Vec<Slot> = match &mut residency {
            Some(residency) => residency.take_slots(stream, &layout, held, count)?,
            None => packed::take_slots(stream, &layout, held, count)?,
        };
        packed::pack(stream, &layout, &source, &slots)?;
        let fresh: Vec<Arc<Expert>> = slots.into_iter().map(Expert::new).collect();
        let experts = join(&fresh);
        let table = match residency {
            Some(residency) => residency.table(stream, experts, held)?,
            None => Table::new(stream, experts, None)?,
        };
        Ok(Self { layout, limit: source.swiglu_limit, table })
    }

    /// `outputs[slot]` for each row in `groups`.
    pub(crate) fn run(
        &self,
        stream: &mut Stream,
        (scratch, residency): (&mut Scratch, Option<&mut Residency>),
        rows: &Matrix,
        groups: &Groups,
        outputs: &mut Matrix,
    ) -> Result<(), GpuError> {
        let Layout { hidden, intermediate, gate_up, down, .. } = &self.layout;
        let grouped = &groups.grouped;
        assert_eq!(groups.num_experts(), self.table.experts.len(), "run_experts: experts of the groups");
        assert_eq!(rows.cols(), *hidden, "run_experts: columns");
        assert!(grouped.min_rows <= rows.rows(), "run_experts: rows of the groups");
        outputs.set_rows(grouped.num_slots);
        let elements = (rows.rows() * rows.stride()).max(grouped.num_slots * intermediate);
        assert!(u32::try_from(elements).is_ok(), "run_experts: kernels count 2^32 elements");
        if grouped.num_slots == 0 || self.table.experts.is_empty() {
            return Ok(());
        }
        let activations =
            stream.grow(&mut scratch.activations, grouped.num_slots * intermediate * size_of::<u16>())?;
        let activations = (activations, *intermediate);
        // Weights that were loaded before there was a residency stay where they are.
        let mut moving = residency.zip(self.table.counted.as_ref());
        let call = match &mut moving {
            Some((residency, counted)) => Some(residency.enter(stream, &self.table, counted, grouped)?),
            None => None,
        };
        let up = Product {
            experts: call.as_ref().map_or_else(|| self.table.address(), |call| call.table),
            weights: gate_up,
            input: (rows.address(), rows.stride()),
            output: activations,
            limit: Some(self.limit),
        };
        up.launch(stream, grouped);
        let output = (outputs.address(), outputs.stride());
        Product { weights: down, input: activations, output, limit: None, ..up }.launch(stream, grouped);
        if let (Some((residency, counted)), Some(call)) = (moving, call) {
            residency.leave(stream, counted, &call)?;
        }
        Ok(())
    }
}
