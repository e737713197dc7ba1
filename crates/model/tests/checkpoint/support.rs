//! A copy of a fixture in a temporary directory, and ways to spoil it.

use chorale_model::checkpoint::{Checkpoint, CheckpointError};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// One of the reference checkpoints.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models").join(name)
}

/// A checkpoint that may be spoiled.
pub(crate) struct Copy {
    dir: TempDir,
}

impl Copy {
    /// Copies a fixture's files; not its folders.
    pub(crate) fn of(name: &str) -> Self {
        let copy = Self::empty();
        for entry in fs::read_dir(fixture(name)).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() {
                fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
            }
        }
        copy
    }

    pub(crate) fn empty() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn open(&self) -> Result<Checkpoint, CheckpointError> {
        Checkpoint::open(self.path())
    }

    pub(crate) fn read(&self, file: &str) -> Vec<u8> {
        fs::read(self.path().join(file)).unwrap()
    }

    pub(crate) fn write(&self, file: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path().join(file), content).unwrap();
    }

    pub(crate) fn remove(&self, file: &str) {
        fs::remove_file(self.path().join(file)).unwrap();
    }

    /// Changes a JSON file.
    pub(crate) fn edit_json(&self, file: &str, edit: impl FnOnce(&mut Value)) {
        let mut value = serde_json::from_slice(&self.read(file)).unwrap();
        edit(&mut value);
        self.write(file, serde_json::to_vec(&value).unwrap());
    }

    /// Changes a safetensors header and leaves the bytes behind it.
    pub(crate) fn edit_header(&self, file: &str, edit: impl FnOnce(&mut Value)) {
        let content = self.read(file);
        let (header, data) = split_header(&content);
        let mut value = serde_json::from_slice(header).unwrap();
        edit(&mut value);
        self.write(file, with_header(&serde_json::to_vec(&value).unwrap(), data));
    }

    /// Changes the bytes of one tensor.
    pub(crate) fn edit_tensor(&self, file: &str, tensor: &str, edit: impl FnOnce(&mut [u8])) {
        let mut content = self.read(file);
        let (header, _) = split_header(&content);
        let start = 8 + header.len();
        let value: Value = serde_json::from_slice(header).unwrap();
        let place = |i: usize| start + value[tensor]["data_offsets"][i].as_u64().unwrap() as usize;
        let range = place(0)..place(1);
        edit(&mut content[range]);
        self.write(file, content);
    }

    /// Adds a tensor to a file, and to the index if there is one.
    pub(crate) fn add_tensor(&self, file: &str, tensor: &str, dtype: &str, shape: &[usize], data: &[u8]) {
        let content = self.read(file);
        let (header, old) = split_header(&content);
        let mut value: Value = serde_json::from_slice(header).unwrap();
        value[tensor] = serde_json::json!({
            "dtype": dtype, "shape": shape, "data_offsets": [old.len(), old.len() + data.len()],
        });
        self.write(file, with_header(&serde_json::to_vec(&value).unwrap(), &[old, data].concat()));
        if self.path().join(INDEX).exists() {
            self.edit_json(INDEX, |index| index["weight_map"][tensor] = file.into());
        }
    }

    /// Renames a tensor in its file and in the index.
    pub(crate) fn rename_tensor(&self, file: &str, from: &str, to: &str) {
        let rename = |map: &mut Value| {
            let entry = map.as_object_mut().unwrap().remove(from).unwrap();
            map[to] = entry;
        };
        self.edit_header(file, rename);
        self.edit_json(INDEX, |index| rename(&mut index["weight_map"]));
    }
}

pub(crate) const INDEX: &str = "model.safetensors.index.json";

pub(crate) fn split_header(content: &[u8]) -> (&[u8], &[u8]) {
    let (len, rest) = content.split_first_chunk::<8>().unwrap();
    rest.split_at(u64::from_le_bytes(*len) as usize)
}

pub(crate) fn with_header(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}
