//! Experts in the layout of kernels/mxfp4.cuh, in slots of large memories.
//!
//! The driver rounds an allocation up to 2 MiB, so the experts that are made
//! together share one. Regrouping shares the slots of those that stay.

use crate::gpu::GpuError;
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
    bytes: usize,
}

impl Layout {
    pub(super) fn new(source: &ExpertsSource) -> Self {
        let (hidden, intermediate) = (source.down.rows, source.down.cols);
        assert_eq!(source.gate_up.rows, 2 * intermediate, "a gate and an up for each input of down");
        assert_eq!(source.gate_up.cols, hidden, "experts read and write the residual's width");
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

/// Memory for several experts.
struct Slab {
    memory: Memory,
    slot_bytes: usize,
    free: Mutex<Vec<usize>>,
}

/// One expert's place in a slab, free again when it is dropped.
pub(super) struct Slot {
    slab: Arc<Slab>,
    index: usize,
}

impl Slot {
    pub(super) fn address(&self) -> u64 {
        self.slab.memory.address() + (self.index * self.slab.slot_bytes) as u64
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slab.free.lock().unwrap_or_else(PoisonError::into_inner).push(self.index);
    }
}

/// Slots for `count` experts: in what is free beside those that are held, then
/// in a new slab.
pub(super) fn take_slots(
    stream: &Stream,
    layout: &Layout,
    held: &[Arc<Slot>],
    count: usize,
) -> Result<Vec<Arc<Slot>>, GpuError> {
    let mut slots = Vec::with_capacity(count);
    for slab in held.iter().map(|slot| &slot.slab) {
        let mut free = slab.free.lock().unwrap_or_else(PoisonError::into_inner);
        let missing = count - slots.len();
        let start = free.len() - missing.min(free.len());
        slots.extend(free.drain(start..).map(|index| Arc::new(Slot { slab: Arc::clone(slab), index })));
    }
    let missing = count - slots.len();
    if missing > 0 {
        let memory = stream.alloc(missing * layout.bytes)?;
        let slab = Arc::new(Slab { memory, slot_bytes: layout.bytes, free: Mutex::default() });
        slots.extend((0..missing).map(|index| Arc::new(Slot { slab: Arc::clone(&slab), index })));
    }
    Ok(slots)
}

/// Brings the experts of a source into slots, one matrix after the other
/// through one place that has room for the larger.
pub(super) fn pack(
    stream: &mut Stream,
    layout: &Layout,
    source: &ExpertsSource,
    slots: &[Arc<Slot>],
) -> Result<(), GpuError> {
    assert_eq!(source.gate_up.experts.len(), source.down.experts.len(), "two matrices for each expert");
    if slots.is_empty() {
        return Ok(());
    }
    let room = Staged::new(&source.gate_up).bytes.max(Staged::new(&source.down).bytes);
    let staging = stream.alloc(room)?;
    for ((slot, gate_up), down) in slots.iter().zip(&source.gate_up.experts).zip(&source.down.experts) {
        let mut pack = |source, part, matrix, interleaved| {
            Staged::new(source).pack(stream, &staging, part, (slot.address(), matrix, interleaved))
        };
        pack(&source.gate_up, gate_up, layout.gate_up, true)?;
        pack(&source.down, down, layout.down, false)?;
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
