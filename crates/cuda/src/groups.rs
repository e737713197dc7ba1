//! Rows grouped by local expert, on the GPU.
//!
//! A slot is a choice of a row; the kernels of the experts work on tiles of
//! slots that go to one expert. Few slots are not sorted at all: each block of
//! those kernels finds its tile from the choices, which saves a launch in every
//! layer of a small step.

use crate::experts::NOT_LOCAL;
use crate::gpu::GpuError;
use crate::launch::Kernel;
use crate::memory::Memory;
use crate::route::Routing;
use crate::stream::Stream;
use bytemuck::{Pod, Zeroable};
use chorale_device::Choice;
use std::sync::Arc;

/// So many slots a warp looks at without a sort.
pub(crate) const SMALL_SLOTS: usize = 32;
/// Slots of a tile that is found without a sort, and the least of a sorted one.
pub(crate) const SMALL_TILE: usize = 8;
/// The most slots of a tile.
pub(crate) const LARGEST_TILE: usize = 128;
/// A block of the sort has so many slots, and a thread for each expert.
const BLOCK_SLOTS: usize = 4096;
const SORT_THREADS: u32 = 512;
const SORT_WARPS: usize = SORT_THREADS as usize / 32;

const COUNT: Kernel = Kernel { name: "group_count", threads: SORT_THREADS };
const PLACE: Kernel = Kernel { name: "group_place", threads: SORT_THREADS };

/// Word for word `GroupArgs`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct GroupArgs {
    choices: u64,
    local: u64,
    counts: u64,
    tiles: u64,
    sorted: u64,
    num_tiles: u64,
    num_known: u32,
    num_slots: u32,
    num_experts: u32,
    tile_slots: u32,
    max_tiles: u32,
    pad: u32,
}

/// Rows grouped by local expert.
pub struct Groups {
    num_experts: usize,
    /// The local index of each expert of the model, as far as any is local.
    local: Vec<u32>,
    /// The same on the GPU; none if each is its own number.
    local_memory: Option<Memory>,
    /// Rows, then experts, of choices that came as a list.
    list: Option<Memory>,
    /// What the sort writes.
    sorted: Option<Memory>,
    /// The routing's choices, which `grouped` may point to until the experts run.
    routed: Option<Arc<Memory>>,
    pub(crate) grouped: Grouped,
}

/// What is grouped now; addresses are 0 where there is nothing to be told.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Grouped {
    /// Expert of the model that each slot goes to.
    pub(crate) choices: u64,
    /// Row of each slot; 0 if it is the slot divided by `top_k`.
    pub(crate) choice_rows: u64,
    pub(crate) local: u64,
    pub(crate) num_known: u32,
    pub(crate) tiles: u64,
    pub(crate) sorted: u64,
    pub(crate) num_tiles: u64,
    pub(crate) num_slots: usize,
    pub(crate) top_k: usize,
    /// The most slots of a tile.
    pub(crate) tile_slots: usize,
    /// No routing has more tiles than this.
    pub(crate) max_tiles: usize,
    /// The least number of rows that there must be.
    pub(crate) min_rows: usize,
    /// The most slots that may go to one expert.
    pub(crate) most_together: usize,
}

impl Groups {
    pub(crate) fn new(stream: &mut Stream, local: &[u32]) -> Result<Self, GpuError> {
        assert!(local.len() <= SORT_THREADS as usize, "at most {SORT_THREADS} local experts");
        let num_known = local.iter().max().map_or(0, |&last| last as usize + 1);
        let mut index = vec![NOT_LOCAL; num_known];
        for (position, &expert) in local.iter().enumerate() {
            index[expert as usize] = position as u32;
        }
        let is_identity = (0..).zip(&index).all(|(expert, &position)| position == expert);
        let mut local_memory = None;
        if !is_identity {
            let memory = stream.alloc(size_of_val(&index[..]))?;
            stream.upload(bytemuck::cast_slice(&index), &memory, 0)?;
            local_memory = Some(memory);
        }
        let grouped = Grouped::default();
        Ok(Self {
            num_experts: local.len(),
            local: index,
            local_memory,
            list: None,
            sorted: None,
            routed: None,
            grouped,
        })
    }

    /// Local experts.
    pub(crate) fn num_experts(&self) -> usize {
        self.num_experts
    }

    /// Groups the rows of a routing; slots are its choices. If they are few,
    /// the experts read the routing itself when they run: it changes after that.
    pub(crate) fn sort(&mut self, stream: &mut Stream, routing: &Routing) -> Result<(), GpuError> {
        let grouped = Grouped {
            choices: routing.experts.address(),
            num_slots: routing.rows * routing.top_k,
            top_k: routing.top_k,
            min_rows: routing.rows,
            // A row's choices are distinct.
            most_together: routing.rows,
            ..Grouped::default()
        };
        self.routed = Some(Arc::clone(&routing.experts));
        self.sort_slots(stream, grouped)
    }

    /// Groups the rows of a list; slots are its places.
    pub(crate) fn sort_choices(&mut self, stream: &mut Stream, choices: &[Choice]) -> Result<(), GpuError> {
        let is_local = |choice: &Choice| {
            self.local.get(choice.expert as usize).is_some_and(|&position| position != NOT_LOCAL)
        };
        assert!(choices.iter().all(is_local), "every chosen expert is here");
        let rows = choices.iter().map(|choice| choice.row);
        let words: Vec<u32> = rows.chain(choices.iter().map(|choice| choice.expert)).collect();
        let bytes: &[u8] = bytemuck::cast_slice(&words);
        let choice_rows = stream.grow(&mut self.list, bytes.len().max(1))?;
        if let Some(list) = &self.list {
            stream.upload(bytes, list, 0)?;
        }
        let last = choices.iter().map(|choice| choice.row as usize).max();
        let grouped = Grouped {
            choices: choice_rows + (choices.len() * size_of::<u32>()) as u64,
            choice_rows,
            num_slots: choices.len(),
            top_k: 1,
            min_rows: last.map_or(0, |last| last + 1),
            most_together: choices.len(),
            ..Grouped::default()
        };
        self.sort_slots(stream, grouped)
    }

    /// Fills in the tiles, and queues the sort that makes them.
    fn sort_slots(&mut self, stream: &mut Stream, mut grouped: Grouped) -> Result<(), GpuError> {
        grouped.local = self.local_memory.as_ref().map_or(0, Memory::address);
        grouped.num_known = self.local.len() as u32;
        grouped.tile_slots = self.tile_slots(grouped.num_slots);
        grouped.max_tiles = max_tiles(grouped.num_slots, self.num_experts, grouped.tile_slots);
        if grouped.num_slots > SMALL_SLOTS && self.num_experts > 0 {
            self.launch_sort(stream, &mut grouped)?;
        }
        self.grouped = grouped;
        Ok(())
    }

    fn tile_slots(&self, num_slots: usize) -> usize {
        match num_slots <= SMALL_SLOTS || self.num_experts == 0 {
            true => SMALL_TILE,
            false => sorted_tile_slots(num_slots, self.local.len()),
        }
    }

    fn launch_sort(&mut self, stream: &mut Stream, grouped: &mut Grouped) -> Result<(), GpuError> {
        let num_slots = grouped.num_slots;
        let blocks = num_slots.div_ceil(BLOCK_SLOTS);
        let places = Places::new(num_slots, self.num_experts, grouped.max_tiles);
        let base = stream.grow(&mut self.sorted, places.end)?;
        grouped.num_tiles = base;
        grouped.tiles = base + TILES_AT as u64;
        grouped.sorted = base + places.sorted as u64;
        let args = GroupArgs {
            choices: grouped.choices,
            local: grouped.local,
            counts: base + places.counts as u64,
            tiles: grouped.tiles,
            sorted: grouped.sorted,
            num_tiles: grouped.num_tiles,
            num_known: grouped.num_known,
            num_slots: num_slots as u32,
            num_experts: self.num_experts as u32,
            tile_slots: grouped.tile_slots as u32,
            max_tiles: grouped.max_tiles as u32,
            pad: 0,
        };
        let shared_bytes = (SORT_WARPS * self.num_experts * size_of::<u32>()) as u32;
        let grid = [blocks as u32, 1, 1];
        if blocks > 1 {
            stream.launch(COUNT, grid, shared_bytes, &args);
        }
        stream.launch(PLACE, grid, shared_bytes, &args);
        Ok(())
    }
}

/// Where the parts of what a sort writes lie, behind the number of its tiles.
struct Places {
    sorted: usize,
    counts: usize,
    end: usize,
}

const TILES_AT: usize = 16;

impl Places {
    fn new(num_slots: usize, num_experts: usize, max_tiles: usize) -> Self {
        let sorted = TILES_AT + max_tiles * 16;
        let counts = sorted + num_slots * size_of::<u32>();
        let end = counts + num_slots.div_ceil(BLOCK_SLOTS) * num_experts * size_of::<u32>();
        Self { sorted, counts, end }
    }
}

/// So many that most experts have one tile, and read their weights once.
fn sorted_tile_slots(num_slots: usize, num_known: usize) -> usize {
    // Where some experts are elsewhere, so are their slots.
    let each = num_slots.div_ceil(num_known);
    (2 * each).next_power_of_two().clamp(SMALL_TILE, LARGEST_TILE)
}

/// Bytes that the groups of a layer come to take, for up to `num_choices` of a rank
/// that has `num_experts`, the last of which is number `num_known - 1`.
pub fn groups_bytes(num_choices: usize, num_experts: usize, num_known: usize) -> usize {
    if num_choices <= SMALL_SLOTS || num_experts == 0 {
        return 0;
    }
    let tile_slots = sorted_tile_slots(num_choices, num_known);
    let max_tiles = max_tiles(num_choices, num_experts, tile_slots);
    Places::new(num_choices, num_experts, max_tiles).end.next_power_of_two()
}

/// Each expert that has slots has at most one tile that is not full.
fn max_tiles(num_slots: usize, num_experts: usize, tile_slots: usize) -> usize {
    let num_used = num_slots.min(num_experts);
    (num_slots + num_used * (tile_slots - 1)) / tile_slots
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_suffice_however_slots_are_spread() {
        // One slot for each of all but one expert, and the rest for that one.
        for (num_slots, num_experts, tile_slots) in
            [(1, 1, 8), (40, 5, 8), (33, 128, 8), (1000, 7, 64), (129, 2, 128)]
        {
            for used in 1..=num_experts.min(num_slots) {
                let rest: usize = num_slots - (used - 1);
                let tiles = used - 1 + rest.div_ceil(tile_slots);
                assert!(tiles <= max_tiles(num_slots, num_experts, tile_slots));
            }
        }
        assert_eq!(max_tiles(4, 128, 8), 4);
    }
}
