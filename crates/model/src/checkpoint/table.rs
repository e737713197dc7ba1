//! All tensors of a checkpoint by name, wherever their files are. It knows
//! files and shapes; which tensors there should be is `names`' business.

use super::CheckpointError;
use super::files::{self, Weights};
use super::header::{Header, HeaderTensor};
use super::index::Index;
use super::names::Expected;
use bytes::Bytes;
use safetensors::Dtype;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The tensors of all files.
#[derive(Debug)]
pub(super) struct TensorTable {
    /// The index, or the only file.
    source: PathBuf,
    files: Vec<PathBuf>,
    tensors: BTreeMap<String, Tensor>,
}

/// One tensor, mapped.
#[derive(Debug)]
pub(super) struct Tensor {
    /// Which of the table's files.
    file: usize,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// Its bytes in the mapped file.
    bytes: Bytes,
}

impl TensorTable {
    pub(super) fn read(weights: &Weights) -> Result<Self, CheckpointError> {
        match weights {
            Weights::Indexed(index) => Self::read_indexed(index),
            Weights::Single(file) => {
                let mut table = Self { source: file.clone(), files: Vec::new(), tensors: BTreeMap::new() };
                let (content, header) = read_file(file)?;
                table.add(file.clone(), &content, header.tensors);
                Ok(table)
            }
        }
    }

    /// Tensors that lie in no file.
    pub(super) fn made(tensors: impl Iterator<Item = (Expected, Bytes)>) -> Self {
        let source = PathBuf::from("made");
        let tensors = tensors
            .map(|(Expected { name, dtype, shape }, bytes)| (name, Tensor { file: 0, dtype, shape, bytes }));
        Self { files: vec![source.clone()], source, tensors: tensors.collect() }
    }

    fn read_indexed(index_file: &Path) -> Result<Self, CheckpointError> {
        let index = Index::parse(index_file, &files::read_text(index_file)?)?;
        let dir = index_file.parent().unwrap_or(Path::new(""));
        let mut table = Self { source: index_file.to_owned(), files: Vec::new(), tensors: BTreeMap::new() };
        for name in index.files.values().collect::<BTreeSet<_>>() {
            let file = dir.join(name);
            refuse_missing_file(index_file, &index, name, &file)?;
            let (content, header) = read_file(&file)?;
            for tensor in &header.tensors {
                table.check_against_index(&index, name, &file, &tensor.name)?;
            }
            table.add(file, &content, header.tensors);
        }
        for (tensor, name) in &index.files {
            if !table.tensors.contains_key(tensor) {
                return Err(CheckpointError::IndexMismatch {
                    file: dir.join(name),
                    tensor: tensor.clone(),
                    reason: "it is not in this file, where the index places it".to_owned(),
                });
            }
        }
        Ok(table)
    }

    /// A tensor may lie nowhere but in the file that the index names.
    fn check_against_index(
        &self,
        index: &Index,
        name: &str,
        file: &Path,
        tensor: &str,
    ) -> Result<(), CheckpointError> {
        let reason = match index.files.get(tensor) {
            Some(indexed) if indexed == name => return Ok(()),
            Some(indexed) => format!("it is in this file, the index places it in `{indexed}`"),
            None => "it is in this file, but not in the index".to_owned(),
        };
        Err(CheckpointError::IndexMismatch { file: file.to_owned(), tensor: tensor.to_owned(), reason })
    }

    fn add(&mut self, file: PathBuf, content: &Bytes, tensors: Vec<HeaderTensor>) {
        for tensor in tensors {
            let entry = Tensor {
                file: self.files.len(),
                dtype: tensor.dtype,
                shape: tensor.shape,
                bytes: content.slice(tensor.bytes),
            };
            self.tensors.insert(tensor.name, entry);
        }
        self.files.push(file);
    }

    /// All tensors, in the order of their names.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    pub(super) fn get(&self, name: &str, remedy: &'static str) -> Result<&Tensor, CheckpointError> {
        self.tensors.get(name).ok_or_else(|| CheckpointError::MissingTensor {
            file: self.source.clone(),
            tensor: name.to_owned(),
            remedy,
        })
    }

    /// The file that holds the tensor.
    pub(super) fn file_of(&self, tensor: &Tensor) -> &Path {
        &self.files[tensor.file]
    }
}

impl Tensor {
    /// Bytes of one row: of one step along the first dimension.
    pub(super) fn row_bytes(&self) -> usize {
        self.shape.first().and_then(|&rows| self.bytes.len().checked_div(rows)).unwrap_or(0)
    }

    /// Consecutive rows.
    pub(super) fn rows(&self, rows: Range<usize>) -> Bytes {
        let row_bytes = self.row_bytes();
        self.bytes.slice(rows.start * row_bytes..rows.end * row_bytes)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn num_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The coordinates of an element.
    pub(super) fn coordinates(&self, mut element: usize) -> Vec<usize> {
        let mut index: Vec<usize> = self
            .shape
            .iter()
            .rev()
            .map(|&size| {
                let coordinate = element % size;
                element /= size;
                coordinate
            })
            .collect();
        index.reverse();
        index
    }
}

fn read_file(file: &Path) -> Result<(Bytes, Header), CheckpointError> {
    let content = files::map(file)?;
    let header = Header::parse(file, &content)?;
    Ok((content, header))
}

fn refuse_missing_file(
    index_file: &Path,
    index: &Index,
    name: &str,
    file: &Path,
) -> Result<(), CheckpointError> {
    if file.symlink_metadata().is_ok() {
        return Ok(());
    }
    let tensor = index.files.iter().find(|(_, placed)| *placed == name).map(|(tensor, _)| tensor);
    Err(CheckpointError::MissingFile {
        index: index_file.to_owned(),
        tensor: tensor.cloned().unwrap_or_default(),
        file: file.to_owned(),
    })
}
