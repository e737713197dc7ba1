//! What ranks hold: together everything, each its own part.

use crate::opens::contents;
use crate::support::fixture;
use crate::writer::Geometry;
use chorale_device::DenseDtype;
use chorale_model::checkpoint::{Checkpoint, CheckpointError};
use chorale_model::shard::{ShardSpec, Split};
use std::collections::BTreeMap;

/// Views that every rank with attention holds whole.
const WHOLE: [&str; 6] =
    ["input_norm", "post_norm", "router.weight", "router.bias", "embedding", "final_norm"];

/// Checks that the parts of `count` ranks, joined in rank order, are the whole.
pub(crate) fn check_parts_make_the_whole(checkpoint: &Checkpoint, count: usize) {
    let config = checkpoint.config();
    let all = ShardSpec::whole(config);
    let whole = contents(checkpoint, &all);
    let mut joined: BTreeMap<(String, usize), Vec<u8>> = BTreeMap::new();
    for index in 0..count {
        // Experts are dealt out like cards, so that a rank's are not contiguous.
        let deal = |experts: &Vec<u32>| experts.iter().copied().skip(index).step_by(count).collect();
        let experts = all.experts.iter().map(deal).collect();
        let spec = ShardSpec {
            group: Split { index, count },
            experts,
            attention: true,
            dense_dtype: DenseDtype::Bf16,
        };
        let mut seen = BTreeMap::new();
        let part = contents(checkpoint, &spec);
        let size = checkpoint.shard_size(&spec).unwrap();
        assert_eq!(size.num_views, part.len());
        assert_eq!(size.num_bytes, part.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>());
        for (name, bytes) in part {
            let place = *seen.entry(name.clone()).and_modify(|n| *n += 1).or_insert(0);
            let short = name.split_once('.').map_or(name.as_str(), |(_, short)| short);
            if WHOLE.contains(&short) || WHOLE.contains(&name.as_str()) {
                joined.insert((name, place), bytes);
            } else if short.starts_with("gate_up") || short.starts_with("down") {
                joined.insert((name, spec.experts[0][place] as usize), bytes);
            } else {
                joined.entry((name, place)).or_default().extend(bytes);
            }
        }
    }
    let mut seen = BTreeMap::new();
    assert_eq!(whole.len(), joined.len());
    for (name, bytes) in whole {
        let place = *seen.entry(name.clone()).and_modify(|n| *n += 1).or_insert(0);
        assert!(joined[&(name.clone(), place)] == bytes, "{name} {place} of {count} ranks");
    }
}

#[test]
fn parts_make_the_whole() {
    for name in ["a-small", "a-small/original", "b-awkward", "c-ratio"] {
        let checkpoint = Checkpoint::open(&fixture(name)).unwrap();
        for count in 1..=checkpoint.config().num_key_value_heads {
            check_parts_make_the_whole(&checkpoint, count);
        }
    }
}

#[test]
fn uneven_runs_follow_the_key_value_heads() {
    let (_dir, checkpoint) = Geometry { kv_heads: 5, vocab: 23, ..Geometry::SMALL }.hugging_face();
    let config = checkpoint.config();
    let experts = vec![vec![4, 1]; config.num_layers()];
    let spec = |index| ShardSpec {
        group: Split { index, count: 3 },
        experts: experts.clone(),
        attention: true,
        dense_dtype: DenseDtype::Bf16,
    };
    let ranges = |index| {
        let spec = spec(index);
        (
            spec.key_value_heads(config),
            spec.query_heads(config),
            spec.output_rows(config),
            spec.vocab_rows(config),
        )
    };
    assert_eq!(ranges(0), (0..2, 0..4, 0..11, 0..8));
    assert_eq!(ranges(1), (2..4, 4..8, 11..22, 8..16));
    assert_eq!(ranges(2), (4..5, 8..10, 22..32, 16..23));

    let layer = checkpoint.layer(1, &spec(2)).unwrap();
    let rows: Vec<usize> = layer.qkv.parts.iter().map(|part| part.rows).collect();
    assert_eq!(rows, [2 * 6, 6, 6]);
    assert_eq!((layer.qkv.cols, layer.output.cols, layer.output.rows()), (32, 60, 10));
    assert_eq!(layer.sinks.len(), 2 * 2);
    assert_eq!((layer.router.rows(), layer.router.cols), (5, 32));
    let gate_up = &layer.experts.gate_up;
    assert_eq!((gate_up.rows, gate_up.cols, gate_up.experts.len()), (128, 32, 2));
    assert_eq!((layer.experts.down.rows, layer.experts.down.cols), (32, 64));
    assert_eq!(layer.num_bytes(), layer.views().iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>());
    check_parts_make_the_whole(&checkpoint, 3);
}

#[test]
fn experts_come_in_the_order_that_is_asked_for() {
    let (_dir, checkpoint) = Geometry::SMALL.hugging_face();
    let whole = checkpoint.experts(0, &[0, 1, 2, 3, 4]).unwrap();
    let spec = ShardSpec {
        group: Split::WHOLE,
        experts: vec![vec![3, 0], vec![1]],
        attention: false,
        dense_dtype: DenseDtype::Bf16,
    };
    let some = checkpoint.experts(0, &spec.experts[0]).unwrap();
    for (local, global) in [3, 0].into_iter().enumerate() {
        assert_eq!(some.gate_up.experts[local].blocks, whole.gate_up.experts[global].blocks);
        assert_eq!(some.down.experts[local].scales, whole.down.experts[global].scales);
        assert_eq!(some.down.experts[local].bias, whole.down.experts[global].bias);
    }
    let none = ShardSpec { experts: vec![Vec::new(); 2], ..spec.clone() };
    assert_eq!(checkpoint.shard_size(&none).unwrap(), Default::default());
    assert_eq!(checkpoint.shard_size(&spec).unwrap().num_views, (2 + 1) * 2 * 3);
}

#[test]
fn impossible_shards_are_refused_with_the_reason() {
    let (_dir, checkpoint) = Geometry::SMALL.hugging_face();
    let whole = ShardSpec::whole(checkpoint.config());
    let group = |index, count| ShardSpec { group: Split { index, count }, ..whole.clone() };
    let experts = |experts: &[u32]| ShardSpec { experts: vec![experts.to_vec(); 2], ..whole.clone() };
    for (spec, says) in [
        (group(0, 4), "a group of 4 ranks is too large: the model has 3 key-value heads"),
        (group(3, 3), "rank 3 is outside of its group of 3"),
        (group(0, 0), "rank 0 is outside of its group of 0"),
        (experts(&[5]), "expert 5 is asked for, the model has 5"),
        (experts(&[u32::MAX]), "expert 4294967295 is asked for"),
        (experts(&[1, 2, 1]), "expert 1 is asked for twice"),
        (ShardSpec { experts: vec![vec![0]], ..whole.clone() }, "experts of 1 layers are asked for"),
        (ShardSpec { attention: false, ..whole.clone() }, "a rank without attention holds experts only"),
    ] {
        let error = checkpoint.layer(0, &spec).unwrap_err();
        assert!(
            matches!(error, CheckpointError::Shard { .. }) && error.to_string().contains(says),
            "{error}"
        );
    }
    let error = checkpoint.layer(2, &whole).unwrap_err();
    assert!(error.to_string().contains("layer 2 is asked for, the model has 2"), "{error}");
}
