//! What a plan must hold whatever the step is.

use super::*;
use chorale_device::{KvDtype, SliceColumns};

const HEADS: [(u32, u32); 6] = [(1, 1), (1, 8), (2, 3), (3, 2), (8, 8), (16, 1)];
const LENGTHS: [u32; 12] = [1, 2, 16, 63, 128, 255, 256, 257, 2049, 8192, 8193, 131_072];
const ROWS: [u32; 9] = [1, 2, 3, 8, 16, 17, 100, 128, 300];

fn shape(group: u32, num_kv_heads: u32, window: Option<u32>) -> Shape {
    Shape { num_kv_heads, group, block_size: 64, window, has_full: true }
}

fn record(first_row: u32, num_rows: u32, first_position: u32) -> SliceRecord {
    let mut record = SliceRecord::zeroed();
    (record.first_row, record.num_rows, record.first_position) = (first_row, num_rows, first_position);
    record
}

fn tiles(record: &SliceRecord, shape: &Shape, is_invariant: bool) -> Vec<(Tile, bool)> {
    Span { record, table: 0, table_first: 0, window: shape.window }.tiles(shape, is_invariant)
}

/// Each slice on its own: rows, then the position of the first.
fn slices() -> impl Iterator<Item = (u32, u32)> {
    ROWS.into_iter()
        .flat_map(|rows| LENGTHS.into_iter().map(move |length| (rows, length.saturating_sub(rows))))
}

#[test]
fn tiles_hold_each_row_once_and_splits_each_key() {
    for (group, num_kv_heads) in HEADS {
        for window in [None, Some(1), Some(128), Some(5000)] {
            let shape = shape(group, num_kv_heads, window);
            for ((num_rows, first_position), is_invariant) in
                slices().flat_map(|of| [(of, false), (of, true)])
            {
                let mut token = 0;
                for (tile, is_decode) in tiles(&record(7, num_rows, first_position), &shape, is_invariant) {
                    assert_eq!((tile.row, tile.position), (7 + token, first_position + token));
                    assert!(tile.num_tokens * group <= if is_decode { DECODE_ROWS } else { PREFILL_ROWS });
                    assert_eq!(tile.first, oldest(tile.position, window));
                    assert!(tile.begin <= tile.first && tile.first - tile.begin < KEY_TILE);
                    assert!(is_invariant || tile.begin == tile.first);
                    assert_eq!(tile.end, tile.position + tile.num_tokens);
                    assert!(tile.split_keys.is_multiple_of(KEY_TILE));
                    assert!(tile.num_splits <= SPLITS_MAX);
                    let last = tile.begin + (tile.num_splits - 1) * tile.split_keys;
                    assert!(last < tile.end && last + tile.split_keys >= tile.end, "{tile:?}");
                    token += tile.num_tokens;
                }
                assert_eq!(token, num_rows);
            }
        }
    }
}

/// Where the keys of each row are cut is a matter of its position.
#[test]
fn an_invariant_row_has_the_same_splits_in_every_slice() {
    for (group, num_kv_heads) in HEADS {
        for window in [None, Some(1), Some(128), Some(5000)] {
            let shape = shape(group, num_kv_heads, window);
            for (num_rows, first_position) in slices() {
                for (tile, is_decode) in tiles(&record(0, num_rows, first_position), &shape, true) {
                    assert!(!is_decode && tile.begin.is_multiple_of(KEY_TILE));
                    for position in tile.position..tile.end {
                        let [(alone, _)] = tiles(&record(0, 1, position), &shape, true)[..] else { panic!() };
                        assert_eq!(alone.num_splits == 1, tile.num_splits == 1);
                        assert!(tile.num_splits == 1 || alone.split_keys == tile.split_keys);
                        assert!(tile.num_splits == 1 || tile.begin == 0 && alone.begin == 0);
                    }
                }
            }
        }
    }
}

#[test]
fn partial_results_and_counters_do_not_overlap() {
    let shape = shape(8, 8, None);
    let mut gathered = Gathered::default();
    for (num_rows, first_position) in slices() {
        for (tile, is_decode) in tiles(&record(0, num_rows, first_position), &shape, false) {
            gathered.add(tile, is_decode, &shape);
        }
    }
    let (mut partials, mut counters) = (0, 0);
    for tile in &gathered.tiles {
        assert_eq!((tile.partial, tile.counter), (partials, counters));
        if tile.num_splits > 1 {
            partials += tile.num_splits * 8 * tile.num_tokens * 8;
            counters += 8;
        }
    }
    assert_eq!((gathered.num_partials, gathered.num_counters), (partials, counters));
    let mut units = [gathered.units(true), gathered.units(false)].concat();
    let of_tile = |(number, tile): (usize, &Tile)| {
        (0..tile.num_splits).map(move |split| (number as u32) << SPLIT_BITS | split).collect::<Vec<_>>()
    };
    let expected: Vec<u32> = gathered.tiles.iter().enumerate().flat_map(of_tile).collect();
    units.sort_unstable();
    assert_eq!(units, expected);
}

#[test]
fn the_longest_come_first() {
    let shape = shape(8, 1, None);
    let mut gathered = Gathered::default();
    for position in [100, 20_000, 5, 300, 70_000] {
        for (tile, is_decode) in tiles(&record(0, 1, position), &shape, false) {
            gathered.add(tile, is_decode, &shape);
        }
    }
    let units = gathered.units(true);
    let keys = |unit: &u32| {
        let tile = &gathered.tiles[(unit >> SPLIT_BITS) as usize];
        tile.split_keys.min(tile.end - tile.begin)
    };
    assert!(units.is_sorted_by_key(|unit| Reverse(keys(unit))));
    assert_eq!(keys(&units[0]), 70_001u32.div_ceil(32).next_multiple_of(64));
}

/// As many long prompts' tails as make several rounds, and what a plan takes of them.
#[test]
fn partial_results_stay_within_their_room() {
    let kv = KvShape {
        windows: vec![None, Some(128)],
        num_query_heads: 64,
        num_kv_heads: 8,
        head_dim: 64,
        dtype: KvDtype::Bf16,
        block_size: 64,
        num_full_blocks: 1000,
        num_sliding_blocks: 1000,
    };
    let (count, num_rows, length) = (256, 32, 16_384);
    let mut columns = Columns::default();
    let mut records = Vec::new();
    let mut descriptor = Descriptor::default();
    let room = descriptor.push(&ROOM);
    for index in 0..count {
        let table = |first: u32| Table { first, pages: vec![1; (length / 64 - first) as usize] };
        let rows = index * num_rows..(index + 1) * num_rows;
        columns.slices.push(SliceColumns { rows, full: table(0), sliding: table(250) });
        records.push(record(index * num_rows, num_rows, length - num_rows));
        records[index as usize].sliding_first = 250;
    }
    let options = CudaOptions::default();
    let plan = Plan::new(&columns, &records, (&kv, options), room, &mut descriptor);
    assert_eq!(plan.full.len(), 8, "{plan:?}");
    assert_eq!(plan.sliding.len(), 1, "{plan:?}");
    assert!(plan.num_partials <= options.partial_rows_max);
    assert!(plan.full.iter().all(|round| round.has_prefill && !round.has_decode));
    let placed = plan.placed(|word| 4096 + u64::from(word) * 4);
    assert_eq!(placed.full[0].work, 4096 + u64::from(room) * 4);
    assert_eq!(placed.sliding[0].work, 4096 + u64::from(room + 8) * 4);
}
