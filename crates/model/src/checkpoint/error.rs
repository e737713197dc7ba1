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
    #[error("{file}: {error}")]
    Io {
        /// The file that was read.
        file: PathBuf,
        /// What the operating system said; the message has it, so it is no further cause.
        error: std::io::Error,
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
    #[error("{file}: not valid JSON: {}", shown(.reason))]
    Json {
        /// The damaged file.
        file: PathBuf,
        /// Where and what.
        reason: String,
    },
    /// Add the field.
    #[error("{file}: field `{}` is missing: {remedy}", shown(.field))]
    MissingField {
        /// The file that lacks it.
        file: PathBuf,
        /// The field's path.
        field: String,
        /// What to write.
        remedy: String,
    },
    /// Correct the field.
    #[error("{file}: field `{}` is {value}: {remedy}", shown(.field))]
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
    #[error("{file}: field `{}` is {value}, which is not supported: {remedy}", shown(.field))]
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
    #[error("{file}: not a sound safetensors file: {}", shown(.reason))]
    Header {
        /// The damaged file.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Download the file anew: its header contradicts itself at this tensor.
    #[error("{file}: tensor `{}`: {}", shown(.tensor), shown(.reason))]
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
        "{file}: truncated: tensor `{}` ends at byte {needed}, the file at {len}: download it anew",
        shown(.tensor)
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
        "{index}: tensor `{}` is placed in `{}`, outside of the checkpoint's directory: only files beside the index are read",
        shown(.tensor),
        shown(.path)
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
    #[error("{index}: tensor `{}` is placed in {file}, which does not exist: download it", shown(.tensor))]
    MissingFile {
        /// The index file.
        index: PathBuf,
        /// The first tensor placed there.
        tensor: String,
        /// The file that is missing.
        file: PathBuf,
    },
    /// Download index and files of one and the same checkpoint.
    #[error(
        "{file}: tensor `{}`: {}: index and files are not of the same checkpoint",
        shown(.tensor),
        shown(.reason)
    )]
    IndexMismatch {
        /// The file in question.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// How index and file differ.
        reason: String,
    },
    /// The model needs this tensor.
    #[error("{file}: tensor `{}` is missing: {remedy}", shown(.tensor))]
    MissingTensor {
        /// The index, or the only file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Why it is needed.
        remedy: &'static str,
    },
    /// The model has no place for this tensor, so ignoring it would compute something else.
    #[error("{file}: tensor `{}` is not part of this model: {remedy}", shown(.tensor))]
    UnknownTensor {
        /// The file that holds it.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Where the contradiction may lie.
        remedy: &'static str,
    },
    /// File and `config.json` disagree on the geometry.
    #[error(
        "{file}: tensor `{}` has shape {}, config.json asks for {expected:?}",
        shown(.tensor),
        shown(&format!("{found:?}"))
    )]
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
    #[error("{file}: tensor `{}` has dtype {found}, where {expected} is expected: {remedy}", shown(.tensor))]
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
    #[error(
        "{file}: tensor `{}` holds {value} at {index:?}: the file is damaged, download it anew",
        shown(.tensor)
    )]
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

/// Characters of a file's own text that a message repeats.
const MAX_SHOWN_CHARS: usize = 300;

/// Text that may come from a file: on one line, without control characters, cut where it gets long.
fn shown(text: &str) -> String {
    let mut shown = String::with_capacity(text.len().min(MAX_SHOWN_CHARS));
    for (i, char) in text.chars().enumerate() {
        if i == MAX_SHOWN_CHARS {
            shown.push('…');
            break;
        }
        if char.is_control() {
            shown.extend(char.escape_default());
        } else {
            shown.push(char);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_a_file_cannot_write_lines_or_floods() {
        let error = CheckpointError::UnknownTensor {
            file: PathBuf::from("a.safetensors"),
            tensor: format!("x\n\u{1b}[31m{}", "y".repeat(1 << 20)),
            remedy: "",
        };
        let message = error.to_string();
        assert!(message.contains(r"`x\n\u{1b}[31myyy") && message.len() < 500, "{message}");
    }
}
