//! Every way in which a checkpoint has been seen or imagined to be broken: each
//! spoils one thing in a good one and must be refused by name.

mod files;
mod headers;
mod indices;
mod tensors;

use crate::support::Copy;
use chorale_model::checkpoint::CheckpointError::{self, *};
use chorale_model::shard::ShardSpec;
use serde_json::json;

const FIRST: &str = "model-00001-of-00002.safetensors";
const SECOND: &str = "model-00002-of-00002.safetensors";
const ROUTER: &str = "model.layers.0.mlp.router.weight";
const NORM: &str = "model.layers.1.input_layernorm.weight";
const SCALES: &str = "model.layers.1.mlp.experts.gate_up_proj_scales";
const SINKS: &str = "model.layers.0.self_attn.sinks";

/// What is spoiled, how, which error it gives, and what its message names.
type Case = (&'static str, fn(&Copy), fn(&CheckpointError) -> bool, &'static [&'static str]);

/// Refused when the layer is loaded: these take reading weights.
const AT_LOAD: &[Case] = &[
    (
        "a NaN scale",
        // Expert 2, row 5, block 1 of [8, 192, 2].
        |c| c.edit_tensor(FIRST, SCALES, |bytes| bytes[2 * 384 + 5 * 2 + 1] = 255),
        |e| matches!(e, NotFinite { index, .. } if *index == [2, 5, 1]),
        &[FIRST, SCALES, "255", "[2, 5, 1]"],
    ),
    (
        "a NaN in a norm",
        |c| c.edit_tensor(FIRST, NORM, |bytes| bytes[6..8].copy_from_slice(&[0xc0, 0x7f])),
        |e| matches!(e, NotFinite { index, value: "NaN", .. } if *index == [3]),
        &[FIRST, NORM, "[3]"],
    ),
    (
        "an infinite sink",
        |c| c.edit_tensor(FIRST, SINKS, |bytes| bytes[4..6].copy_from_slice(&[0x80, 0xff])),
        |e| matches!(e, NotFinite { index, value: "infinity", .. } if *index == [2]),
        &[FIRST, SINKS, "[2]"],
    ),
    (
        "a NaN in the router",
        |c| c.edit_tensor(FIRST, ROUTER, |bytes| bytes[1022..].copy_from_slice(&[0xff, 0xff])),
        |e| matches!(e, NotFinite { index, .. } if *index == [7, 63]),
        &[FIRST, ROUTER, "[7, 63]"],
    ),
    (
        "a NaN in an expert's bias",
        |c| {
            let bias = "model.layers.3.mlp.experts.down_proj_bias";
            c.edit_tensor(SECOND, bias, |bytes| bytes[..2].copy_from_slice(&[0x81, 0x7f]));
        },
        |e| matches!(e, NotFinite { .. }),
        &[SECOND, "down_proj_bias", "[0, 0]"],
    ),
    (
        "a NaN in a value bias",
        |c| {
            let bias = "model.layers.2.self_attn.v_proj.bias";
            c.edit_tensor(SECOND, bias, |bytes| bytes[254..].copy_from_slice(&[0x81, 0xff]));
        },
        |e| matches!(e, NotFinite { .. }),
        &[SECOND, "v_proj.bias", "[127]"],
    ),
    (
        "a NaN in the last norm",
        |c| c.edit_tensor(SECOND, "model.norm.weight", |bytes| bytes[..2].copy_from_slice(&[0x81, 0x7f])),
        |e| matches!(e, NotFinite { .. }),
        &[SECOND, "model.norm.weight", "[0]"],
    ),
];

fn check((what, spoil, is_right, says): &Case, load: bool) {
    let copy = Copy::of("a-small");
    spoil(&copy);
    let result = copy.open().and_then(|checkpoint| {
        assert!(load, "{what}: opened");
        let spec = ShardSpec::whole(checkpoint.config());
        checkpoint.shard_size(&spec)?;
        (0..checkpoint.config().num_layers())
            .try_for_each(|layer| checkpoint.layer(layer, &spec).map(drop))?;
        checkpoint.final_norm()
    });
    let error = result.expect_err(what);
    let message = error.to_string();
    assert!(is_right(&error), "{what}: {error:?}");
    let dir = copy.path().display().to_string();
    assert!(message.contains(&dir), "{what}: the message names no path: {message}");
    for part in *says {
        assert!(message.contains(part), "{what}: `{part}` is not in: {message}");
    }
    assert!(!message.ends_with('.') && !message.contains('\n'), "{what}: {message}");
}

#[test]
fn broken_checkpoints_are_refused_at_open() {
    for cases in [files::CASES, headers::CASES, indices::CASES, tensors::CASES] {
        cases.iter().for_each(|case| check(case, false));
    }
}

#[test]
fn poisoned_weights_are_refused_at_load() {
    AT_LOAD.iter().for_each(|case| check(case, true));
}

#[test]
fn a_poisoned_expert_hurts_only_the_rank_that_loads_it() {
    let copy = Copy::of("a-small");
    copy.edit_tensor(FIRST, SCALES, |bytes| bytes[2 * 384] = 255);
    let checkpoint = copy.open().unwrap();
    let with = |experts: Vec<u32>| ShardSpec {
        experts: vec![experts; checkpoint.config().num_layers()],
        ..ShardSpec::whole(checkpoint.config())
    };
    checkpoint.layer(1, &with(vec![0, 1, 3, 7])).unwrap();
    assert!(checkpoint.layer(1, &with(vec![0, 2])).is_err());
}

#[test]
fn what_is_no_directory_is_refused() {
    let copy = Copy::of("a-small");
    let open = |name: &str| chorale_model::checkpoint::Checkpoint::open(&copy.path().join(name)).unwrap_err();
    assert!(matches!(open("nothing"), Io { .. }));
    let file = open("config.json");
    assert!(matches!(file, NotFound { .. }) && file.to_string().contains("give the directory"), "{file}");
}

#[test]
fn the_original_layout_names_its_own_tensors() {
    let copy = Copy::of("a-small/original");
    let first = "model--00001-of-00002.safetensors";
    copy.edit_tensor(first, "block.0.attn.qkv.bias", |bytes| {
        // The first value's bias: 4 query and 2 key heads of 64 come before.
        bytes[384 * 2..][..2].copy_from_slice(&[0x80, 0x7f]);
    });
    let checkpoint = copy.open().unwrap();
    let error = checkpoint.layer(0, &ShardSpec::whole(checkpoint.config())).unwrap_err();
    assert!(matches!(&error, NotFinite { index, .. } if *index == [384]), "{error}");
    assert!(error.to_string().contains("block.0.attn.qkv.bias"), "{error}");

    copy.edit_header(first, |header| header["block.0.attn.qkv.weight"]["shape"] = json!([64, 512]));
    let error = copy.open().unwrap_err().to_string();
    assert!(error.contains("block.0.attn.qkv.weight") && error.contains("[512, 64]"), "{error}");
}
