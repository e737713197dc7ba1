//! Broken safetensors files: their frame first, then the entries of their headers.

use super::{Case, FIRST, ROUTER};
use crate::support::with_header;
use chorale_model::checkpoint::CheckpointError::*;
use serde_json::json;

pub(super) const CASES: &[Case] = &[
    // The frame of a safetensors file.
    ("a shard is empty", |c| c.write(FIRST, ""), |e| matches!(e, Header { .. }), &[FIRST, "empty"]),
    (
        "a shard has 7 bytes",
        |c| c.write(FIRST, "seven77"),
        |e| matches!(e, Header { .. }),
        &[FIRST, "7 bytes"],
    ),
    (
        "a shard is another format",
        |c| c.write(FIRST, "PK\x03\x04 this is a pickled model in a zip file"),
        |e| matches!(e, Header { .. }),
        &[FIRST, "at most 100000000 are allowed"],
    ),
    (
        "the header is longer than the file",
        |c| c.write(FIRST, [&9_999u64.to_le_bytes()[..], b"{}"].concat()),
        |e| matches!(e, Header { .. }),
        &[FIRST, "takes 9999 bytes, the file has 10"],
    ),
    (
        "the header's length overflows",
        |c| c.write(FIRST, [&u64::MAX.to_le_bytes()[..], b"{}"].concat()),
        |e| matches!(e, Header { .. }),
        &[FIRST, "18446744073709551615"],
    ),
    (
        "the header is no UTF-8",
        |c| c.write(FIRST, with_header(b"{\"\xff\xfe\":{}}", b"")),
        |e| matches!(e, Header { .. }),
        &[FIRST, "UTF-8"],
    ),
    (
        "the header is no JSON",
        |c| c.write(FIRST, with_header(b"{\"a\":", b"")),
        |e| matches!(e, Header { .. }),
        &[FIRST, "EOF"],
    ),
    (
        "the header is a list",
        |c| c.write(FIRST, with_header(b"[]", b"")),
        |e| matches!(e, Header { .. }),
        &[FIRST, "expected an object"],
    ),
    (
        "the header is too deep",
        |c| {
            let deep = format!("{{\"deep\":{{\"shape\":{}", "[".repeat(100_000));
            c.write(FIRST, with_header(deep.as_bytes(), b""));
        },
        |e| matches!(e, Header { .. }),
        &[FIRST, "`deep`"],
    ),
    (
        "the metadata is too deep",
        |c| {
            let deep = format!("{{\"a\":{{\"x\":{}", "{\"x\":".repeat(100_000));
            c.write(FIRST, with_header(deep.as_bytes(), b""));
        },
        |e| matches!(e, Header { .. }),
        &[FIRST, "`a`"],
    ),
    (
        "bytes follow the last tensor",
        |c| c.write(FIRST, [&c.read(FIRST)[..], b"!"].concat()),
        |e| matches!(e, Header { .. }),
        &[FIRST, "1 bytes follow"],
    ),
    (
        "a shard is cut",
        |c| {
            let content = c.read(FIRST);
            c.write(FIRST, &content[..content.len() - 1]);
        },
        |e| matches!(e, Truncated { .. }),
        &[FIRST, "model.layers.1.mlp.experts.gate_up_proj_scales", "436240", "436239"],
    ),
    // Entries of a header.
    (
        "an unknown dtype",
        |c| c.edit_header(FIRST, |h| h[ROUTER]["dtype"] = "BF17".into()),
        |e| matches!(e, Header { .. }),
        &[FIRST, ROUTER, "BF17"],
    ),
    (
        "a negative offset",
        |c| c.edit_header(FIRST, |h| h[ROUTER]["data_offsets"] = json!([-1, 5])),
        |e| matches!(e, Header { .. }),
        &[FIRST, ROUTER, "-1"],
    ),
    (
        "no offsets",
        |c| c.edit_header(FIRST, |h| drop(h[ROUTER].as_object_mut().unwrap().remove("data_offsets"))),
        |e| matches!(e, Header { .. }),
        &[FIRST, ROUTER, "data_offsets"],
    ),
    (
        "offsets run backwards",
        |c| c.edit_header(FIRST, |h| h[ROUTER]["data_offsets"] = json!([69776, 69770])),
        |e| matches!(e, TensorHeader { .. }),
        &[FIRST, ROUTER, "before its start"],
    ),
    (
        "tensors overlap",
        |c| c.edit_header(FIRST, |h| h[ROUTER]["data_offsets"] = json!([69774, 70798])),
        |e| matches!(e, TensorHeader { .. }),
        &[FIRST, ROUTER, "inside of the tensor before it"],
    ),
    (
        "a hole between tensors",
        |c| c.edit_header(FIRST, |h| drop(h.as_object_mut().unwrap().remove(ROUTER))),
        |e| matches!(e, TensorHeader { .. }),
        &[FIRST, "model.layers.0.post_attention_layernorm.weight", "no tensor's"],
    ),
    (
        "offsets and shape differ",
        |c| c.edit_header(FIRST, |h| h[ROUTER]["shape"] = json!([8, 65])),
        |e| matches!(e, TensorHeader { .. }),
        &[FIRST, ROUTER, "takes 1040 bytes, its offsets span 1024"],
    ),
    (
        "a shape that overflows",
        |c| c.edit_header(FIRST, |h| h[ROUTER]["shape"] = json!([1u64 << 40, 1u64 << 40])),
        |e| matches!(e, TensorHeader { .. }),
        &[FIRST, ROUTER, "overflows"],
    ),
    (
        "offsets beyond everything",
        |c| {
            let end = json!([275376u64, u64::MAX]);
            c.edit_header(FIRST, |h| h["model.layers.0.mlp.experts.down_proj_blocks"]["data_offsets"] = end);
        },
        |e| matches!(e, TensorHeader { .. }),
        &[FIRST, "down_proj_blocks", "its offsets span"],
    ),
    (
        "a tensor is there twice in a header",
        |c| {
            let (entry, data) = (r#"{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#, b"x");
            c.write(FIRST, with_header(format!("{{\"a\":{entry},\"a\":{entry}}}").as_bytes(), data));
        },
        |e| matches!(e, TensorHeader { .. }),
        &[FIRST, "`a`", "twice"],
    ),
    (
        "metadata is there twice",
        |c| c.write(FIRST, with_header(br#"{"__metadata__":{},"__metadata__":{}}"#, b"")),
        |e| matches!(e, Header { .. }),
        &[FIRST, "__metadata__"],
    ),
];
