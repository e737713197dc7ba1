//! Broken files: missing, of another kind, or not what they seem.

use super::{Case, FIRST, SECOND};
use crate::support::INDEX;
use chorale_model::checkpoint::CheckpointError::*;

pub(super) const CASES: &[Case] = &[
    (
        "no weights",
        |c| [FIRST, SECOND, INDEX].map(|file| c.remove(file)).into_iter().collect(),
        |e| matches!(e, NotFound { .. }),
        &["neither model.safetensors.index.json nor model.safetensors"],
    ),
    ("no config", |c| c.remove("config.json"), |e| matches!(e, Io { .. }), &["config.json", "No such file"]),
    (
        "config is a directory",
        |c| {
            c.remove("config.json");
            std::fs::create_dir(c.path().join("config.json")).unwrap();
        },
        |e| matches!(e, Io { .. }),
        &["config.json", "not a regular file"],
    ),
    (
        "config is empty",
        |c| c.write("config.json", ""),
        |e| matches!(e, Json { .. }),
        &["config.json", "EOF"],
    ),
    (
        "config is no UTF-8",
        |c| c.write("config.json", b"{\"a\": \"\xff\"}"),
        |e| matches!(e, Json { .. }),
        &["config.json", "UTF-8"],
    ),
    (
        "generation config is cut",
        |c| c.write("generation_config.json", "{\"eos_token_id\": ["),
        |e| matches!(e, Json { .. }),
        &["generation_config.json", "EOF"],
    ),
    (
        "a shard is missing",
        |c| c.remove(SECOND),
        |e| matches!(e, MissingFile { .. }),
        &[INDEX, SECOND, "lm_head.weight", "download it"],
    ),
    (
        "a shard is a directory",
        |c| {
            c.remove(SECOND);
            std::fs::create_dir(c.path().join(SECOND)).unwrap();
        },
        |e| matches!(e, Io { .. }),
        &[SECOND, "not a regular file"],
    ),
    (
        "a shard is a dangling link",
        |c| {
            c.remove(SECOND);
            std::os::unix::fs::symlink("/nowhere/blob", c.path().join(SECOND)).unwrap();
        },
        |e| matches!(e, Io { .. }),
        &[SECOND, "No such file"],
    ),
    (
        "a shard is a git-lfs pointer",
        |c| c.write(SECOND, "version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 5\n"),
        |e| matches!(e, LfsPointer { .. }),
        &[SECOND, "git lfs pull"],
    ),
    (
        "the index is a git-lfs pointer",
        |c| c.write(INDEX, "version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 5\n"),
        |e| matches!(e, LfsPointer { .. }),
        &[INDEX, "git lfs pull"],
    ),
];
