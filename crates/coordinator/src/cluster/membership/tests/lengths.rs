//! How long sequences may be, where nobody says: it depends on how the first ranks
//! keep keys and values.

use super::*;
use crate::cluster::config::{RoomRule, RoomRules};

/// Narrower pages leave room for longer sequences.
fn config() -> ClusterConfig {
    let config = test_config(1, 1);
    let rule = |max_sequence_tokens| RoomRule {
        max_sequence_tokens,
        min_full_blocks: max_sequence_tokens / 4,
        ..config.rooms.f32
    };
    ClusterConfig { rooms: RoomRules { f32: rule(16), bf16: rule(32), fp8: rule(64) }, ..config }
}

fn worker(session: u64, kv_dtypes: &[KvFormat]) -> Offer {
    Offer { kv_dtypes: kv_dtypes.to_vec(), ..offer(session) }
}

/// What the engine is told of the last world: the longest sequence, and its pages.
fn served(table: &Table) -> (u32, u32) {
    let mut worlds = table.actions.iter().filter_map(|action| match action {
        Action::Serve(world) => Some((world.max_sequence_tokens, world.homes[0].num_full_blocks)),
        _ => None,
    });
    worlds.next_back().unwrap()
}

#[test]
fn it_is_as_long_as_the_first_ranks_pages_allow() {
    for (kept, expected) in [
        (&[KvFormat::Bf16, KvFormat::Fp8][..], 32),
        (&[KvFormat::F32, KvFormat::Bf16][..], 16),
        (&[KvFormat::Fp8][..], 64),
    ] {
        let mut table = Table::new(config());
        table.join(worker(1, kept));
        table.all_ready();
        let (tokens, pages) = served(&table);
        assert_eq!(tokens, expected, "{kept:?}");
        assert!(pages >= expected / 4, "{pages} pages");
        assert_eq!(table.membership.status().members[0].kv_dtype, Some(kept[0]));
    }
}

#[test]
fn it_stays_so_whoever_comes_later() {
    let mut table = Table::new(config());
    table.join(worker(1, &[KvFormat::Bf16]));
    table.all_ready();
    table.join(worker(2, &[KvFormat::F32]));
    table.broke(1);
    table.all_ready();
    let (tokens, pages) = served(&table);
    assert_eq!(tokens, 32, "a GPU was promised so much, and a CPU keeps the promise");
    assert!(pages >= 8, "{pages} pages");
    table.join(worker(3, &[KvFormat::Fp8]));
    table.broke(2);
    table.all_ready();
    assert_eq!(served(&table).0, 32);
}
