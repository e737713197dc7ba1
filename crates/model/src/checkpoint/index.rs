//! `model.safetensors.index.json`: in which file each tensor lies. The index
//! decides, not the files' names: the released ones do not even count right.

use super::CheckpointError;
use super::entries::IndexFile;
use std::collections::BTreeMap;
use std::path::{Component, Path};

/// The file of each tensor, relative to the index and never outside of its directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// Tensor to file.
    pub files: BTreeMap<String, String>,
}

impl Index {
    /// Parses an index. `index` is the index file's own path, for the messages only.
    pub fn parse(index: &Path, text: &str) -> Result<Self, CheckpointError> {
        let parsed: IndexFile = serde_json::from_str(text)
            .map_err(|error| CheckpointError::Json { file: index.to_owned(), reason: error.to_string() })?;
        let mismatch = |tensor, reason: &str| {
            let (file, reason) = (index.to_owned(), reason.to_owned());
            Err(CheckpointError::IndexMismatch { file, tensor, reason })
        };
        let mut files = BTreeMap::new();
        for (tensor, path) in parsed.weight_map.0 {
            if !stays_inside(&path) {
                return Err(CheckpointError::OutsideDirectory { index: index.to_owned(), tensor, path });
            }
            if path.chars().any(char::is_control) {
                return mismatch(tensor, "the name of its file has control characters");
            }
            if files.insert(tensor.clone(), path).is_some() {
                return mismatch(tensor, "it is in the index twice");
            }
        }
        if files.is_empty() {
            return Err(CheckpointError::Json {
                file: index.to_owned(),
                reason: "`weight_map` names no tensor".to_owned(),
            });
        }
        Ok(Self { files })
    }
}

/// Only names of files in the directory or below it. A symbolic link there may
/// still lead elsewhere: the hub's cache is made of such.
fn stays_inside(path: &str) -> bool {
    let mut components = Path::new(path).components().peekable();
    components.peek().is_some() && components.all(|component| matches!(component, Component::Normal(_)))
}
