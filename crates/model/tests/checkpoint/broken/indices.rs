//! Broken indices, and indices that do not fit their files.

use super::{Case, FIRST, ROUTER, SECOND};
use crate::support::INDEX;
use chorale_model::checkpoint::CheckpointError::*;
use serde_json::Value;

pub(super) const CASES: &[Case] = &[
    ("the index is empty", |c| c.write(INDEX, ""), |e| matches!(e, Json { .. }), &[INDEX]),
    ("the index has no map", |c| c.write(INDEX, "{}"), |e| matches!(e, Json { .. }), &[INDEX, "weight_map"]),
    (
        "the index names no tensor",
        |c| c.write(INDEX, r#"{"weight_map": {}}"#),
        |e| matches!(e, Json { .. }),
        &[INDEX, "no tensor"],
    ),
    (
        "the index places a tensor nowhere",
        |c| c.edit_json(INDEX, |i| i["weight_map"][ROUTER] = Value::Null),
        |e| matches!(e, Json { .. }),
        &[INDEX, ROUTER],
    ),
    (
        "the index leaves the directory",
        |c| c.edit_json(INDEX, |i| i["weight_map"][ROUTER] = "../secret.safetensors".into()),
        |e| matches!(e, OutsideDirectory { .. }),
        &[INDEX, ROUTER, "../secret.safetensors"],
    ),
    (
        "the index leaves the directory from within",
        |c| c.edit_json(INDEX, |i| i["weight_map"][ROUTER] = "a/../../b".into()),
        |e| matches!(e, OutsideDirectory { .. }),
        &[INDEX, ROUTER, "a/../../b"],
    ),
    (
        "the index names an absolute path",
        |c| c.edit_json(INDEX, |i| i["weight_map"][ROUTER] = "/etc/passwd".into()),
        |e| matches!(e, OutsideDirectory { .. }),
        &[INDEX, ROUTER, "/etc/passwd"],
    ),
    (
        "the index names an empty path",
        |c| c.edit_json(INDEX, |i| i["weight_map"][ROUTER] = "".into()),
        |e| matches!(e, OutsideDirectory { .. }),
        &[INDEX, ROUTER],
    ),
    (
        "the index names a path with a zero byte",
        |c| c.edit_json(INDEX, |i| i["weight_map"][ROUTER] = "a\0b".into()),
        |e| matches!(e, IndexMismatch { .. }),
        &[INDEX, ROUTER, "control characters"],
    ),
    (
        "a tensor is there twice in the index",
        |c| c.write(INDEX, format!(r#"{{"weight_map": {{"a": "{FIRST}", "a": "{SECOND}"}}}}"#)),
        |e| matches!(e, IndexMismatch { .. }),
        &[INDEX, "`a`", "twice"],
    ),
    (
        "the index places a tensor in another file",
        |c| c.edit_json(INDEX, |i| i["weight_map"][ROUTER] = SECOND.into()),
        |e| matches!(e, IndexMismatch { .. }),
        &[FIRST, ROUTER, SECOND],
    ),
    (
        "the index lacks a tensor",
        |c| c.edit_json(INDEX, |i| drop(i["weight_map"].as_object_mut().unwrap().remove(ROUTER))),
        |e| matches!(e, IndexMismatch { .. }),
        &[FIRST, ROUTER, "not in the index"],
    ),
    (
        "a file lacks a tensor of the index",
        |c| c.edit_json(INDEX, |i| i["weight_map"]["ghost.weight"] = FIRST.into()),
        |e| matches!(e, IndexMismatch { .. }),
        &[FIRST, "ghost.weight", "not in this file"],
    ),
    (
        "a tensor is in two files",
        |c| {
            c.add_tensor(SECOND, ROUTER, "BF16", &[8, 64], &[0; 1024]);
            c.edit_json(INDEX, |i| i["weight_map"][ROUTER] = FIRST.into());
        },
        |e| matches!(e, IndexMismatch { .. }),
        &[FIRST, SECOND, ROUTER],
    ),
];
