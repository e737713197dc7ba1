//! A step's attention, cut into pieces for the GPU's processors.
//!
//! The tokens of a slice become tiles, as many as a kernel takes at once; where
//! there are few, their keys are split among several blocks, whose results are
//! merged in a fixed order. How a slice is cut follows from the slice alone, so
//! that its rows get the same whatever else is in the step.
//!
//! A batch-invariant device gives its rows the same however the sequence is cut
//! into slices: the kernel for many rows takes them all, and where keys are cut,
//! into tiles and splits, is a matter of their positions. It reads for few rows
//! what the other one would, and multiplies more, which hides behind the reading;
//! what long prompts are split for is where it costs time.

use crate::batch::{Descriptor, SliceRecord};
use crate::options::CudaOptions;
use bytemuck::{Pod, Zeroable};
use chorale_device::{BatchLimits, Columns, KvShape, Table};
use std::cmp::Reverse;

/// Rows of the decode kernel's tile: query tokens times the heads of a group.
pub(super) const DECODE_ROWS: u32 = 16;
/// Rows of the prefill kernel's tile.
const PREFILL_ROWS: u32 = 128;
/// Keys that both take at once.
const KEY_TILE: u32 = 64;
/// A tile's keys are split in at most so many.
pub(super) const SPLITS_MAX: u32 = 32;
/// Fewer keys than this take longer to merge than to read.
const DECODE_SPLIT_KEYS_MIN: u32 = 256;
/// A long slice is split only as far as is needed for so many blocks to have work.
const PREFILL_UNITS_MIN: u32 = 128;
const PREFILL_SPLIT_KEYS_MIN: u32 = 1024;
const PREFILL_SPLITS_MAX: u32 = 8;
/// Keys of a batch-invariant split, at the least: in fewer blocks one sequence
/// would not keep a GPU busy, in more a prompt's partial results would.
const INVARIANT_SPLIT_KEYS_MIN: u32 = 512;
/// A unit is a tile's number and this many bits of a split's.
const SPLIT_BITS: u32 = 8;

/// Where the work of one launch is, word for word `AttentionWork`.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
struct Work {
    tiles: u32,
    decode_units: u32,
    num_decode_units: u32,
    prefill_units: u32,
    num_prefill_units: u32,
    pad: [u32; 3],
}

/// Consecutive tokens of a slice, word for word `AttentionTile`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct Tile {
    row: u32,
    num_tokens: u32,
    position: u32,
    begin: u32,
    end: u32,
    split_keys: u32,
    num_splits: u32,
    table: u32,
    table_first: u32,
    partial: u32,
    counter: u32,
    first: u32,
}

/// The work on layers of one kind, and what else follows from the step.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    /// Work on layers without a window.
    pub(super) full: Vec<Round>,
    /// Work on layers with one.
    pub(super) sliding: Vec<Round>,
    /// Rows of partial results at a time.
    pub(super) num_partials: u32,
    /// Counters of splits at a time.
    pub(super) num_counters: u32,
    pub(super) options: CudaOptions,
    /// Heads, positions of a page, and the window: what it was made for.
    pub(super) shape: Shape,
}

/// What a plan needs to know of a cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) num_kv_heads: u32,
    /// Query heads that share a key and value head.
    pub(super) group: u32,
    pub(super) block_size: u32,
    /// The window of layers that have one.
    pub(super) window: Option<u32>,
    has_full: bool,
}

/// What one launch of each kernel does. There are several only if partial
/// results would take more room than one launch may have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Round {
    /// The address of its `Work`.
    pub(super) work: u64,
    pub(super) has_decode: bool,
    pub(super) has_prefill: bool,
}

/// Work that is being gathered.
#[derive(Default)]
struct Gathered {
    tiles: Vec<Tile>,
    decode: Vec<u32>,
    prefill: Vec<u32>,
    num_partials: u32,
    num_counters: u32,
}

/// A slice on layers of one kind.
struct Span<'a> {
    record: &'a SliceRecord,
    /// Its page numbers' place in the descriptor, and the first one's number.
    table: u32,
    table_first: u32,
    window: Option<u32>,
}

/// Room for the work of the first round of each kind, at a fixed place.
pub(crate) const ROOM: [[u32; 8]; 2] = [[0; 8]; 2];

impl Shape {
    pub(super) fn of(kv: &KvShape) -> Self {
        assert!(kv.num_kv_heads > 0 && kv.num_query_heads.is_multiple_of(kv.num_kv_heads), "{kv:?}");
        let group = kv.num_query_heads / kv.num_kv_heads;
        assert!(
            group <= DECODE_ROWS as usize,
            "at most {DECODE_ROWS} query heads share a key and value head"
        );
        let mut windows = kv.windows.iter().flatten();
        let window = windows.next().copied();
        assert!(windows.all(|&other| Some(other) == window), "windows are of one size");
        assert_ne!(window, Some(0), "a query sees its own key");
        Self {
            num_kv_heads: kv.num_kv_heads as u32,
            group: group as u32,
            block_size: kv.block_size as u32,
            window,
            has_full: kv.windows.contains(&None),
        }
    }
}

impl Plan {
    /// Cuts the step's work, and puts it into the descriptor. `room` is where
    /// [`ROOM`] was put there.
    pub(crate) fn new(
        columns: &Columns,
        records: &[SliceRecord],
        (kv, options): (&KvShape, CudaOptions),
        room: u32,
        descriptor: &mut Descriptor,
    ) -> Self {
        let shape = Shape::of(kv);
        let mut plan = Self { shape, options, ..Self::default() };
        if shape.has_full {
            let spans = columns.slices.iter().zip(records).map(|(slice, record)| {
                let span =
                    Span { record, table: record.full_pages, table_first: record.full_first, window: None };
                span.check(&slice.full, kv.block_size, kv.num_full_blocks);
                span
            });
            plan.full = plan.rounds(spans, room, descriptor);
        }
        if let Some(window) = shape.window {
            let spans = columns.slices.iter().zip(records).map(|(slice, record)| {
                let (table, table_first) = (record.sliding_pages, record.sliding_first);
                let span = Span { record, table, table_first, window: Some(window) };
                span.check(&slice.sliding, kv.block_size, kv.num_sliding_blocks);
                span
            });
            let room = room + (size_of::<Work>() / size_of::<u32>()) as u32;
            plan.sliding = plan.rounds(spans, room, descriptor);
        }
        plan
    }

    /// The same with places in the descriptor as addresses.
    pub(crate) fn placed(mut self, at: impl Fn(u32) -> u64) -> Self {
        for round in self.full.iter_mut().chain(&mut self.sliding) {
            round.work = at(round.work as u32);
        }
        self
    }

    fn rounds<'a>(
        &mut self,
        spans: impl Iterator<Item = Span<'a>>,
        room: u32,
        descriptor: &mut Descriptor,
    ) -> Vec<Round> {
        let shape = self.shape;
        let mut rounds = Vec::new();
        let mut gathered = Gathered::default();
        for span in spans {
            for (tile, is_decode) in span.tiles(&shape, self.options.batch_invariant) {
                let partials = tile.num_partials(&shape);
                let is_full = gathered.num_partials + partials > self.options.partial_rows_max;
                if is_full && !gathered.tiles.is_empty() {
                    let full = std::mem::take(&mut gathered);
                    rounds.push(self.close(full, room, rounds.is_empty(), descriptor));
                }
                gathered.add(tile, is_decode, &shape);
            }
        }
        if !gathered.tiles.is_empty() {
            rounds.push(self.close(gathered, room, rounds.is_empty(), descriptor));
        }
        rounds
    }

    /// Puts a round into the descriptor; the first one's work goes where there
    /// is room for it.
    fn close(
        &mut self,
        mut gathered: Gathered,
        room: u32,
        is_first: bool,
        descriptor: &mut Descriptor,
    ) -> Round {
        self.num_partials = self.num_partials.max(gathered.num_partials);
        self.num_counters = self.num_counters.max(gathered.num_counters);
        let (decode, prefill) = (gathered.units(true), gathered.units(false));
        let work = Work {
            tiles: descriptor.push(&gathered.tiles),
            decode_units: descriptor.push(&decode),
            num_decode_units: decode.len() as u32,
            prefill_units: descriptor.push(&prefill),
            num_prefill_units: prefill.len() as u32,
            pad: [0; 3],
        };
        let place = if is_first { room } else { descriptor.push(&[work]) };
        descriptor.set(place, &[work]);
        Round { work: place.into(), has_decode: !decode.is_empty(), has_prefill: !prefill.is_empty() }
    }
}

impl Span<'_> {
    /// Panics unless the table holds the pages that the slice sees.
    fn check(&self, table: &Table, block_size: usize, num_blocks: usize) {
        let (first, end) = (self.record.first_position, self.record.first_position + self.record.num_rows);
        let held = table.first as usize..table.first as usize + table.pages.len();
        let seen = oldest(first, self.window) as usize / block_size..(end as usize).div_ceil(block_size);
        assert!(held.start <= seen.start && seen.end <= held.end, "pages {held:?} of {seen:?} are held");
        debug_assert!(table.pages.iter().all(|&page| (page as usize) < num_blocks), "pages of the pool");
    }

    /// The slice's tiles, and whether they are the decode kernel's.
    fn tiles(&self, shape: &Shape, is_invariant: bool) -> Vec<(Tile, bool)> {
        let record = self.record;
        let is_decode = !is_invariant && record.num_rows * shape.group <= DECODE_ROWS;
        let tile_tokens = if is_decode { DECODE_ROWS } else { PREFILL_ROWS } / shape.group;
        let num_units = record.num_rows.div_ceil(tile_tokens) * shape.num_kv_heads;
        let mut tiles = Vec::with_capacity(record.num_rows.div_ceil(tile_tokens) as usize);
        let mut token = 0;
        while token < record.num_rows {
            let position = record.first_position + token;
            let mut num_tokens = tile_tokens.min(record.num_rows - token);
            if is_invariant && self.window.is_none() {
                num_tokens = num_tokens.min(invariant_split(position).1 - position);
            }
            let (first, end) = (oldest(position, self.window), position + num_tokens);
            let begin = if is_invariant { first / KEY_TILE * KEY_TILE } else { first };
            let split_keys = match (is_invariant, is_decode) {
                (true, _) if self.window.is_some() => (end - begin).next_multiple_of(KEY_TILE),
                (true, _) => invariant_split(position).0,
                (false, true) => decode_split(end - begin),
                (false, false) => prefill_split(end - begin, num_units),
            };
            let tile = Tile {
                row: record.first_row + token,
                num_tokens,
                position,
                begin,
                end,
                split_keys,
                num_splits: (end - begin).div_ceil(split_keys),
                table: self.table,
                table_first: self.table_first,
                partial: 0,
                counter: 0,
                first,
            };
            tiles.push((tile, is_decode));
            token += num_tokens;
        }
        tiles
    }
}

/// The keys of a split for a query at this position of a layer without a window,
/// and the first position for which it is not so: there tiles end, too. The first
/// positions have one split, and so no partial results; the others up to
/// `SPLITS_MAX`. Layers with a window are not split, for theirs would be at places
/// that depend on the slice.
fn invariant_split(position: u32) -> (u32, u32) {
    let mut split_keys = INVARIANT_SPLIT_KEYS_MIN;
    if position < split_keys {
        return (split_keys, split_keys);
    }
    while position / SPLITS_MAX >= split_keys {
        split_keys *= 2;
    }
    (split_keys, split_keys.saturating_mul(SPLITS_MAX))
}

/// Rows of partial results that a step takes at most.
pub(super) fn partials_max(limits: BatchLimits, kv: &KvShape, options: CudaOptions) -> usize {
    let shape = Shape::of(kv);
    let splits = |keys: usize| keys.div_ceil(DECODE_SPLIT_KEYS_MIN as usize).min(SPLITS_MAX as usize);
    let full = if shape.has_full { splits(kv.num_full_blocks * kv.block_size) } else { 0 };
    let sliding = shape.window.map_or(0, |window| splits(window as usize + PREFILL_ROWS as usize));
    let most = full.max(sliding);
    if most <= 1 {
        return 0;
    }
    // However small the limit, a tile is done at once.
    let (tokens, heads) = (PREFILL_ROWS as usize, shape.num_kv_heads as usize);
    let at_once = (options.partial_rows_max as usize).max(tokens * heads * most);
    (limits.max_rows * shape.group as usize * heads).saturating_mul(most).min(at_once)
}

/// Words of a step's work at most, on layers of both kinds, if it takes one round.
pub(crate) fn work_words_max(limits: BatchLimits, kv: &KvShape) -> usize {
    let shape = Shape::of(kv);
    // A tile for each of the heads' rows that do not fill one, in slices and splits.
    let rows_each = (PREFILL_ROWS / shape.group) as usize;
    let tiles = limits.max_slices + limits.max_rows.div_ceil(rows_each);
    let keys = kv.num_full_blocks.max(kv.num_sliding_blocks) * kv.block_size;
    let splits = keys.div_ceil(DECODE_SPLIT_KEYS_MIN as usize).clamp(1, SPLITS_MAX as usize);
    2 * tiles * (size_of::<Tile>() / size_of::<u32>() + splits)
}

/// The first key that a query sees.
fn oldest(position: u32, window: Option<u32>) -> u32 {
    window.map_or(0, |window| (position + 1).saturating_sub(window))
}

/// Keys of a split where there are few rows.
pub(super) fn decode_split(num_keys: u32) -> u32 {
    num_keys.div_ceil(SPLITS_MAX).next_multiple_of(KEY_TILE).max(DECODE_SPLIT_KEYS_MIN)
}

/// Keys of a split where the slice has `num_units` tiles and heads.
fn prefill_split(num_keys: u32, num_units: u32) -> u32 {
    let num_splits = PREFILL_UNITS_MIN.div_ceil(num_units).min(PREFILL_SPLITS_MAX);
    num_keys.div_ceil(num_splits).next_multiple_of(KEY_TILE).max(PREFILL_SPLIT_KEYS_MIN)
}

impl Tile {
    /// Rows of partial results.
    fn num_partials(&self, shape: &Shape) -> u32 {
        if self.num_splits == 1 {
            return 0;
        }
        self.num_splits * shape.num_kv_heads * self.num_tokens * shape.group
    }
}

impl Gathered {
    fn add(&mut self, mut tile: Tile, is_decode: bool, shape: &Shape) {
        (tile.partial, tile.counter) = (self.num_partials, self.num_counters);
        self.num_partials += tile.num_partials(shape);
        self.num_counters += if tile.num_splits > 1 { shape.num_kv_heads } else { 0 };
        let list = if is_decode { &mut self.decode } else { &mut self.prefill };
        list.push(self.tiles.len() as u32);
        self.tiles.push(tile);
    }

    /// The splits of all tiles of a kernel, those with most keys first.
    fn units(&mut self, is_decode: bool) -> Vec<u32> {
        let Self { tiles, decode, prefill, .. } = self;
        assert!(tiles.len() < 1 << (u32::BITS - SPLIT_BITS));
        let list = if is_decode { decode } else { prefill };
        let tile = |number: u32| &tiles[number as usize];
        list.sort_by_key(|&number| {
            Reverse(tile(number).split_keys.min(tile(number).end - tile(number).begin))
        });
        let num_units = list.iter().map(|&number| tile(number).num_splits as usize).sum();
        let mut units = Vec::with_capacity(num_units);
        for &number in list.iter() {
            units.extend((0..tile(number).num_splits).map(|split| number << SPLIT_BITS | split));
        }
        units
    }
}

#[cfg(test)]
mod tests;
