//! The experts: MXFP4 in the tensor cores' own layout.
//!
//! Two launches run a layer: gate and up with the SwiGLU, then down. Between
//! them the activations are bf16, and lie by slot.

mod packed;
mod plan;

use crate::gpu::GpuError;
use crate::groups::Groups;
use crate::matrix::Matrix;
use crate::memory::Memory;
use crate::stream::Stream;
use chorale_device::{ExpertOrigin, ExpertsSource};
use packed::{Layout, Slot};
use plan::Product;
use std::sync::Arc;

/// In place of a local index: the expert is elsewhere.
pub(crate) const NOT_LOCAL: u32 = u32::MAX;

/// The experts of one layer, in the order of the rank's local experts.
pub struct Experts {
    layout: Layout,
    limit: f32,
    slots: Vec<Arc<Slot>>,
    /// The address of each slot, for the kernels.
    table: Memory,
}

/// Buffers that keep their capacity between calls.
#[derive(Default)]
pub(crate) struct Scratch {
    /// bf16 `[slots, intermediate]`.
    activations: Option<Memory>,
}

impl Experts {
    pub(crate) fn new(stream: &mut Stream, source: ExpertsSource) -> Result<Self, GpuError> {
        let layout = Layout::new(&source);
        let slots = packed::take_slots(stream, &layout, &[], source.down.experts.len())?;
        packed::pack(stream, &layout, &source, &slots)?;
        Self::of_slots(stream, layout, source.swiglu_limit, slots)
    }

    /// Some of these and some that are added, in a given order; those that stay
    /// are shared, not copied.
    pub(crate) fn regroup(
        &self,
        stream: &mut Stream,
        order: &[ExpertOrigin],
        added: ExpertsSource,
    ) -> Result<Self, GpuError> {
        assert_eq!(self.layout, Layout::new(&added), "experts of one layer");
        let fresh = packed::take_slots(stream, &self.layout, &self.slots, added.down.experts.len())?;
        packed::pack(stream, &self.layout, &added, &fresh)?;
        let slots = order.iter().map(|origin| match *origin {
            ExpertOrigin::Held(index) => Arc::clone(&self.slots[index]),
            ExpertOrigin::Added(index) => Arc::clone(&fresh[index]),
        });
        Self::of_slots(stream, self.layout, added.swiglu_limit, slots.collect())
    }

    fn of_slots(
        stream: &mut Stream,
        layout: Layout,
        limit: f32,
        slots: Vec<Arc<Slot>>,
    ) -> Result<Self, GpuError> {
        let addresses: Vec<u64> = slots.iter().map(|slot| slot.address()).collect();
        let table = stream.alloc(size_of_val(&addresses[..]))?;
        stream.upload(bytemuck::cast_slice(&addresses), &table, 0)?;
        Ok(Self { layout, limit, slots, table })
    }

    /// `outputs[slot]` for each row in `groups`.
    pub(crate) fn run(
        &self,
        stream: &mut Stream,
        scratch: &mut Scratch,
        rows: &Matrix,
        groups: &Groups,
        outputs: &mut Matrix,
    ) -> Result<(), GpuError> {
        let Layout { hidden, intermediate, gate_up, down, .. } = &self.layout;
        let grouped = &groups.grouped;
        assert_eq!(groups.num_experts(), self.slots.len(), "run_experts: experts of the groups");
        assert_eq!(rows.cols(), *hidden, "run_experts: columns");
        assert!(grouped.min_rows <= rows.rows(), "run_experts: rows of the groups");
        outputs.set_rows(grouped.num_slots);
        let elements = (rows.rows() * rows.stride()).max(grouped.num_slots * intermediate);
        assert!(u32::try_from(elements).is_ok(), "run_experts: kernels count 2^32 elements");
        if grouped.num_slots == 0 || self.slots.is_empty() {
            return Ok(());
        }
        let activations =
            stream.grow(&mut scratch.activations, grouped.num_slots * intermediate * size_of::<u16>())?;
        let activations = (activations, *intermediate);
        let up = Product {
            experts: self.table.address(),
            weights: gate_up,
            input: (rows.address(), rows.stride()),
            output: activations,
            limit: Some(self.limit),
        };
        up.launch(stream, grouped);
        let output = (outputs.address(), outputs.stride());
        Product { weights: down, input: activations, output, limit: None, ..up }.launch(stream, grouped);
        Ok(())
    }
}
