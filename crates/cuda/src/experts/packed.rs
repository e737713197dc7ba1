//! Experts in the layout of kernels/mxfp4.cuh, in slots of large memories.
//!
//! The driver rounds an allocation up to 2 MiB, so the experts that are made
//! together share one. Regrouping shares the slots of those that stay. A slab
//! may be the host's: kernels read what is there as they read their own memory.

use super::table::Table;
use crate::gpu::{GpuError, Transfer};
use crate::launch::Kernel;
use crate::memory::Memory;
use crate::stream::Stream;
use bytemuck::{Pod, Zeroable};
use bytes::Bytes;
use chorale_device::{BLOCK, ExpertsSource, Mxfp4Part, Mxfp4Source};
use std::sync::{Arc, Mutex, PoisonError};

const TILE_ROWS: usize = 16;
const TILE_COLS: usize = 64;
const TILE_CODES: usize = 512;
const TILE_SCALES: usize = 32;
/// Of a row's multiplier and bias.
const EDGE_BYTES: usize = 8;
/// The parts of an expert begin at multiples of this.
const ALIGNMENT: usize = 256;
/// Warps of a block that packs, each with a row or a tile.
const PACK_WARPS: usize = 8;

const PACK_EDGES: Kernel = Kernel { name: "pack_edges", threads: 256 };
const PACK_TILES: Kernel = Kernel { name: "pack_tiles", threads: 256 };

/// Where the parts of a packed matrix lie, word for word `PackedMatrix`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(super) struct PackedMatrix {
    codes: u32,
    scales: u32,
    edges: u32,
    pub(super) row_tiles: u32,
    pub(super) chunks: u32,
    pub(super) cols: u32,
}

/// Word for word `PackArgs`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct PackArgs {
    blocks: u64,
    scales: u64,
    bias: u64,
    expert: u64,
    matrix: PackedMatrix,
    interleaved: u32,
    pad: u32,
}

/// How an expert lies in its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) hidden: usize,
    pub(super) intermediate: usize,
    pub(super) gate_up: PackedMatrix,
    pub(super) down: PackedMatrix,
    pub(super) bytes: usize,
}

impl Layout {
    pub(super) fn new(source: &ExpertsSource) -> Self {
        let (hidden, intermediate) = (source.down.rows, source.down.cols);
        assert_eq!(source.gate_up.rows, 2 * intermediate, "a gate and an up for each input of down");
        assert_eq!(source.gate_up.cols, hidden, "experts read and write the residual's width");
        Self::of(hidden, intermediate)
    }

    /// An expert of that geometry.
    pub(super) fn of(hidden: usize, intermediate: usize) -> Self {
        assert!(
            hidden.is_multiple_of(BLOCK) && intermediate.is_multiple_of(BLOCK),
            "MXFP4 rows are whole blocks"
        );
        let mut bytes = 0;
        let gate_up = PackedMatrix::new(2 * intermediate, hidden, &mut bytes);
        let down = PackedMatrix::new(hidden, intermediate, &mut bytes);
        assert!(u32::try_from(bytes).is_ok(), "an expert has less than 4 GiB");
        Self { hidden, intermediate, gate_up, down, bytes }
    }
}

impl PackedMatrix {
    /// A matrix that begins at `end`, which moves behind it.
    fn new(rows: usize, cols: usize, end: &mut usize) -> Self {
        let (row_tiles, chunks) = (rows.div_ceil(TILE_ROWS), cols.div_ceil(TILE_COLS));
        let mut place = |bytes: usize| {
            let start = *end;
            *end += bytes.next_multiple_of(ALIGNMENT);
            start as u32
        };
        Self {
            codes: place(row_tiles * chunks * TILE_CODES),
            scales: place(row_tiles * chunks * TILE_SCALES),
            edges: place(row_tiles * TILE_ROWS * EDGE_BYTES),
            row_tiles: row_tiles as u32,
            chunks: chunks as u32,
            cols: cols as u32,
        }
    }
}

/// Memory for several things of one size.
pub(super) struct Slab {
    memory: Memory,
    slot_bytes: usize,
    num_slots: usize,
    free: Mutex<Vec<usize>>,
}

impl Slab {
    /// `memory` in slots, all free.
    pub(super) fn new(memory: Memory, slot_bytes: usize) -> Arc<Self> {
        let num_slots = memory.len() / slot_bytes;
        let free = Mutex::new((0..num_slots).rev().collect());
        Arc::new(Self { memory, slot_bytes, num_slots, free })
    }

    /// A slot that is free.
    pub(super) fn take(self: &Arc<Self>) -> Option<Slot> {
        let index = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
        Some(Slot { slab: Arc::clone(self), index })
    }

    pub(super) fn memory(&self) -> &Memory {
        &self.memory
    }

    pub(super) fn num_slots(&self) -> usize {
        self.num_slots
    }

    pub(super) fn num_free(&self) -> usize {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

/// One thing's place in a slab, free again when it is dropped.
pub(super) struct Slot {
    slab: Arc<Slab>,
    index: usize,
}

impl Slot {
    pub(super) fn address(&self) -> u64 {
        self.slab.memory.address() + self.offset() as u64
    }

    /// From where its slab begins.
    pub(super) fn offset(&self) -> usize {
        self.index * self.slab.slot_bytes
    }

    pub(super) fn slab(&self) -> &Arc<Slab> {
        &self.slab
    }

    pub(super) fn is_on_gpu(&self) -> bool {
        self.slab.memory.is_on_gpu()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slab.free.lock().unwrap_or_else(PoisonError::into_inner).push(self.index);
    }
}

/// Slots on the GPU for `count` experts: in what is free beside those that are
/// held, then in a new slab.
pub(super) fn take_slots(
    stream: &Stream,
    layout: &Layout,
    held: Option<&Table>,
    count: usize,
) -> Result<Vec<Slot>, GpuError> {
    let mut slots = Vec::with_capacity(count);
    for expert in held.map_or(&[][..], |held| &held.experts) {
        let slab = Arc::clone(expert.state().slot.slab());
        slots.extend(std::iter::from_fn(|| slab.take()).take(count - slots.len()));
    }
    let missing = count - slots.len();
    if missing > 0 {
        let slab = Slab::new(stream.alloc(missing * layout.bytes)?, layout.bytes);
        slots.extend(std::iter::from_fn(|| slab.take()));
    }
    Ok(slots)
}

/// Brings the experts of a source into slots, one matrix after the other
/// through one place that has room for the larger.
pub(super) fn pack(
    stream: &mut Stream,
    layout: &Layout,
    source: &ExpertsSource,
    slots: &[Slot],
) -> Result<(), GpuError> {
    assert_eq!(source.gate_up.experts.len(), source.down.experts.len(), "two matrices for each expert");
    if slots.is_empty() {
        return Ok(());
    }
    let room = Staged::new(&source.gate_up).bytes.max(Staged::new(&source.down).bytes);
    let staging = stream.alloc(room)?;
    // What goes to the host is packed here first.
    let bounce = match slots.iter().all(Slot::is_on_gpu) {
        true => None,
        false => Some(stream.alloc(layout.bytes)?),
    };
    for ((slot, gate_up), down) in slots.iter().zip(&source.gate_up.experts).zip(&source.down.experts) {
        let bounce = bounce.as_ref().filter(|_| !slot.is_on_gpu());
        let packed = bounce.map_or(slot.address(), Memory::address);
        let mut pack = |source, part, matrix, interleaved| {
            Staged::new(source).pack(stream, &staging, part, (packed, matrix, interleaved))
        };
        pack(&source.gate_up, gate_up, layout.gate_up, true)?;
        pack(&source.down, down, layout.down, false)?;
        if bounce.is_some() {
            stream.copy(Transfer { from: packed, to: slot.address(), len: layout.bytes })?;
        }
    }
    Ok(())
}

/// Where the parts of a checkpoint's matrix wait until they are packed.
struct Staged {
    blocks_len: usize,
    scales_at: usize,
    scales_len: usize,
    bias_at: usize,
    bias_len: usize,
    bytes: usize,
}

impl Staged {
    fn new(source: &Mxfp4Source) -> Self {
        let blocks_len = source.rows * source.cols / 2;
        let scales_at = blocks_len.next_multiple_of(ALIGNMENT);
        let scales_len = source.rows * source.cols / BLOCK;
        let bias_at = (scales_at + scales_len).next_multiple_of(ALIGNMENT);
        let bias_len = source.rows * 2;
        Self { blocks_len, scales_at, scales_len, bias_at, bias_len, bytes: bias_at + bias_len }
    }

    fn pack(
        &self,
        stream: &mut Stream,
        staging: &Memory,
        part: &Mxfp4Part,
        (expert, matrix, interleaved): (u64, PackedMatrix, bool),
    ) -> Result<(), GpuError> {
        assert_eq!(part.blocks.len(), self.blocks_len, "two elements in a byte");
        assert_eq!(part.scales.len(), self.scales_len, "a scale for each block");
        let bias_len = part.bias.as_ref().map(Bytes::len);
        assert!(bias_len.is_none_or(|len| len == self.bias_len), "a bias for each row");
        stream.upload(&part.blocks, staging, 0)?;
        stream.upload(&part.scales, staging, self.scales_at)?;
        if let Some(bias) = &part.bias {
            stream.upload(bias, staging, self.bias_at)?;
        }
        let at = |offset: usize| staging.address() + offset as u64;
        let args = PackArgs {
            blocks: at(0),
            scales: at(self.scales_at),
            bias: if part.bias.is_some() { at(self.bias_at) } else { 0 },
            expert,
            matrix,
            interleaved: u32::from(interleaved),
            pad: 0,
        };
        let grid = |warps: usize| [warps.div_ceil(PACK_WARPS) as u32, 1, 1];
        stream.launch(PACK_EDGES, grid(matrix.row_tiles as usize * TILE_ROWS), 0, &args);
        stream.launch(PACK_TILES, grid(matrix.row_tiles as usize * matrix.chunks as usize), 0, &args);
        Ok(())
    }
}
