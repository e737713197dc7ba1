//! Why a checkpoint is refused, by what the reader of the message can do.
//! Every message names the file, and the tensor or field in it; none of them
//! is logged here.

use std::path::PathBuf;

/// A checkpoint that cannot be served, or a shard that it does not have.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Point at another directory, or finish the download.
    #[error("{dir}: no checkpoint here: {reason}")]
    NotFound {
        /// The directory that was given.
        dir: PathBuf,
        /// What was looked for.
        reason: &'static str,
    },
    /// The operating system refused: mend permissions, disk or path.
    #[error("{file}: {source}")]
    Io {
        /// The file that was read.
        file: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// Fetch the real file.
    #[error(
        "{file}: a git-lfs pointer, not the file itself: run `git lfs pull` in its repository, or download it anew"
    )]
    LfsPointer {
        /// The pointer.
        file: PathBuf,
    },
    /// Download the file anew.
    #[error("{file}: not valid JSON: {reason}")]
    Json {
        /// The damaged file.
        file: PathBuf,
        /// Where and what.
        reason: String,
    },
    /// Add the field.
    #[error("{file}: field `{field}` is missing: {remedy}")]
    MissingField {
        /// The file that lacks it.
        file: PathBuf,
        /// The field's path.
        field: String,
        /// What to write.
        remedy: String,
    },
    /// Correct the field.
    #[error("{file}: field `{field}` is {value}: {remedy}")]
    InvalidField {
        /// The file that has it.
        file: PathBuf,
        /// The field's path.
        field: String,
        /// Its value, as JSON.
        value: String,
        /// What it must be.
        remedy: String,
    },
    /// Decide which of the two fields is right.
    #[error("{file}: field `{}` is {} but `{}` is {}: {remedy}", .first.0, .first.1, .second.0, .second.1)]
    ConflictingFields {
        /// The file that has both.
        file: PathBuf,
        /// One field and its value.
        first: Box<(String, String)>,
        /// The other field and its value.
        second: Box<(String, String)>,
        /// How to resolve it.
        remedy: &'static str,
    },
    /// Serve another model: this one is well formed, but not of the kind that is served here.
    #[error("{file}: field `{field}` is {value}, which is not supported: {remedy}")]
    Unsupported {
        /// The file that says so.
        file: PathBuf,
        /// The field's path.
        field: String,
        /// Its value, as JSON.
        value: String,
        /// What is supported.
        remedy: String,
    },
    /// Download the file anew: it is damaged, or no safetensors file at all.
    #[error("{file}: not a sound safetensors file: {reason}")]
    Header {
        /// The damaged file.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Download the file anew: its header contradicts itself at this tensor.
    #[error("{file}: tensor `{tensor}`: {reason}")]
    TensorHeader {
        /// The damaged file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// What is wrong with its entry.
        reason: String,
    },
    /// Download the file anew: it ends too early.
    #[error(
        "{file}: truncated: tensor `{tensor}` ends at byte {needed}, the file at {len}: download it anew"
    )]
    Truncated {
        /// The short file.
        file: PathBuf,
        /// The first tensor that is cut.
        tensor: String,
        /// The file's least length for this tensor.
        needed: u64,
        /// The file's length.
        len: u64,
    },
    /// Correct the index: it leads out of the checkpoint's directory.
    #[error(
        "{index}: tensor `{tensor}` is placed in `{path}`, outside of the checkpoint's directory: only files beside the index are read"
    )]
    OutsideDirectory {
        /// The index file.
        index: PathBuf,
        /// The tensor.
        tensor: String,
        /// The path that the index gives.
        path: String,
    },
    /// Download the missing file.
    #[error("{index}: tensor `{tensor}` is placed in {file}, which does not exist: download it")]
    MissingFile {
        /// The index file.
        index: PathBuf,
        /// The first tensor placed there.
        tensor: String,
        /// The file that is missing.
        file: PathBuf,
    },
    /// Download index and files of one and the same checkpoint.
    #[error("{file}: tensor `{tensor}`: {reason}: index and files are not of the same checkpoint")]
    IndexMismatch {
        /// The file in question.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// How index and file differ.
        reason: String,
    },
    /// The model needs this tensor.
    #[error("{file}: tensor `{tensor}` is missing: {remedy}")]
    MissingTensor {
        /// The index, or the only file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Why it is needed.
        remedy: &'static str,
    },
    /// The model has no place for this tensor, so ignoring it would compute something else.
    #[error("{file}: tensor `{tensor}` is not part of this model: {remedy}")]
    UnknownTensor {
        /// The file that holds it.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Where the contradiction may lie.
        remedy: &'static str,
    },
    /// File and `config.json` disagree on the geometry.
    #[error("{file}: tensor `{tensor}` has shape {found:?}, config.json asks for {expected:?}")]
    Shape {
        /// The file that holds it.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shape that follows from `config.json`.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// The tensor is stored in a type that is not read here.
    #[error("{file}: tensor `{tensor}` has dtype {found}, where {expected} is expected: {remedy}")]
    Dtype {
        /// The file that holds it.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The type of the published checkpoints.
        expected: String,
        /// The type in the file.
        found: String,
        /// How to get the expected one.
        remedy: &'static str,
    },
    /// The tensor holds a value that would poison every answer.
    #[error("{file}: tensor `{tensor}` holds {value} at {index:?}: the file is damaged, download it anew")]
    NotFinite {
        /// The file that holds it.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Where the first such element is, one number for each dimension.
        index: Vec<usize>,
        /// What is there.
        value: &'static str,
    },
    /// The caller asks for a part that this model cannot be split into.
    #[error("shard: {reason}")]
    Shard {
        /// What is wrong with the request.
        reason: String,
    },
}
