//! The files of a checkpoint's directory: which are there, their text, their
//! bytes. Files are opened for reading only, and weights are mapped, not read.

use super::CheckpointError;
use bytes::Bytes;
use memmap2::Mmap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";
const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
/// OpenAI's own layout lies in this folder of the published repositories.
const ORIGINAL: &str = "original";

/// How every git-lfs pointer starts.
const LFS_PREFIX: &[u8] = b"version https://git-lfs.";
/// The released index has 60 KiB; a larger JSON file is something else.
const MAX_JSON_BYTES: u64 = 64 << 20;

/// The files that make up a checkpoint.
pub(super) struct Located {
    pub(super) config: PathBuf,
    pub(super) generation_config: Option<PathBuf>,
    pub(super) weights: Weights,
}

/// Where the tensors are.
pub(super) enum Weights {
    /// In the files that an index names.
    Indexed(PathBuf),
    /// In one file.
    Single(PathBuf),
}

/// Finds the weights in the directory, else in its folder `original`.
pub(super) fn locate(dir: &Path) -> Result<Located, CheckpointError> {
    let meta = std::fs::metadata(dir).map_err(|error| CheckpointError::Io { file: dir.to_owned(), error })?;
    if !meta.is_dir() {
        let reason = "it is no directory: give the directory that holds config.json";
        return Err(CheckpointError::NotFound { dir: dir.to_owned(), reason });
    }
    let (home, weights) = match weights_in(dir) {
        Some(weights) => (dir.to_owned(), weights),
        None => {
            let original = dir.join(ORIGINAL);
            let weights = weights_in(&original).ok_or_else(|| CheckpointError::NotFound {
                dir: dir.to_owned(),
                reason: "neither model.safetensors.index.json nor model.safetensors is in it or in its folder original/",
            })?;
            (original, weights)
        }
    };
    // `original/` has no generation_config.json of its own, the repository around it does.
    let generation_config = [home.as_path(), dir]
        .map(|place| place.join(GENERATION_CONFIG))
        .into_iter()
        .find(|path| exists(path));
    Ok(Located { config: home.join(CONFIG), generation_config, weights })
}

fn weights_in(dir: &Path) -> Option<Weights> {
    let index = dir.join(INDEX);
    let single = dir.join(SINGLE);
    if exists(&index) {
        Some(Weights::Indexed(index))
    } else {
        exists(&single).then_some(Weights::Single(single))
    }
}

/// A dangling link exists: opening it gives the better message.
fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// Reads a JSON file whole.
pub(super) fn read_text(file: &Path) -> Result<String, CheckpointError> {
    let io_error = |error| CheckpointError::Io { file: file.to_owned(), error };
    let not_json = |reason: String| CheckpointError::Json { file: file.to_owned(), reason };
    let mut content = Vec::new();
    // One byte more than allowed tells a file that is too long.
    open(file)?.take(MAX_JSON_BYTES + 1).read_to_end(&mut content).map_err(io_error)?;
    if content.len() as u64 > MAX_JSON_BYTES {
        return Err(not_json(format!("it is longer than {MAX_JSON_BYTES} bytes")));
    }
    refuse_lfs_pointer(file, &content)?;
    String::from_utf8(content).map_err(|error| not_json(format!("no UTF-8: {error}")))
}

/// Maps a file of weights; the view keeps the mapping alive.
pub(super) fn map(file: &Path) -> Result<Bytes, CheckpointError> {
    let opened = open(file)?;
    let io_error = |error| CheckpointError::Io { file: file.to_owned(), error };
    if opened.metadata().map_err(io_error)?.len() == 0 {
        return Err(CheckpointError::Header { file: file.to_owned(), reason: "it is empty".to_owned() });
    }
    Ok(Bytes::from_owner(map_read_only(&opened).map_err(io_error)?))
}

#[allow(unsafe_code)]
fn map_read_only(file: &File) -> io::Result<Mmap> {
    // SAFETY: the mapping is private to reading, and a checkpoint's files do not change while they
    // are served; that is the contract of `Checkpoint::open`. Every bit pattern is a valid `u8`.
    unsafe { Mmap::map(file) }
}

pub(super) fn refuse_lfs_pointer(file: &Path, content: &[u8]) -> Result<(), CheckpointError> {
    if content.starts_with(LFS_PREFIX) {
        return Err(CheckpointError::LfsPointer { file: file.to_owned() });
    }
    Ok(())
}

/// Regular files only: opening a pipe would wait for its writer.
fn open(file: &Path) -> Result<File, CheckpointError> {
    let io_error = |error| CheckpointError::Io { file: file.to_owned(), error };
    if !std::fs::metadata(file).map_err(io_error)?.is_file() {
        return Err(io_error(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
    }
    File::open(file).map_err(io_error)
}
