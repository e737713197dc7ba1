//! Counts on the GPU which experts a call reads, and where they lie.

use super::table::{Counted, Table};
use crate::groups::Grouped;
use crate::launch::Kernel;
use crate::stream::Stream;
use bytemuck::{Pod, Zeroable};

/// Local experts of a layer, at most, as of the kernel that counts.
pub(super) const EXPERTS_MAX: usize = 512;

const COUNT: Kernel = Kernel { name: "count_experts", threads: 512 };

/// Word for word `CountArgs`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct CountArgs {
    choices: u64,
    local: u64,
    kinds: u64,
    counts: u64,
    num_known: u32,
    num_slots: u32,
    num_experts: u32,
    pad: u32,
}

/// Queues the count of a call whose table lies at an address.
pub(super) fn launch(
    stream: &mut Stream,
    (table, counted): (&Table, &Counted),
    address: u64,
    grouped: &Grouped,
) {
    let num_experts = table.experts.len();
    assert!(num_experts <= EXPERTS_MAX, "a thread for each expert");
    let args = CountArgs {
        choices: grouped.choices,
        local: grouped.local,
        kinds: address + (num_experts * size_of::<u64>()) as u64,
        counts: counted.counts.address(),
        num_known: grouped.num_known,
        num_slots: grouped.num_slots as u32,
        num_experts: num_experts as u32,
        pad: 0,
    };
    stream.launch(COUNT, [1, 1, 1], 0, &args);
}
