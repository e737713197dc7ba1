//! What an unpacked archive looked like, kept beside its files to check them by.
//!
//! Sizes and times make the check fast, hashes make it certain when a time
//! differs. A file altered without changing either is not noticed.

use std::fs::{self, File, Metadata};
use std::io;
use std::path::Path;
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use crate::cache::replace;
use crate::digest::Hasher;

/// The manifest's own name; hidden, for the directory is a model's.
pub(crate) const NAME: &str = ".manifest.json";

/// What an unpacked archive looked like.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) struct Manifest {
    /// SHA-256 of the archive that was unpacked.
    pub(crate) archive: String,
    pub(crate) files: Vec<Recorded>,
}

/// One file as it was when it was unpacked.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) struct Recorded {
    pub(crate) name: String,
    pub(crate) num_bytes: u64,
    pub(crate) sha256: String,
    pub(crate) modified_ns: u64,
}

/// How a directory compares with what was unpacked into it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Nothing was touched.
    Intact,
    /// Times differ, as after a copy, and the content is right.
    Touched,
    /// A file is missing or altered, or the manifest is.
    Damaged,
}

impl Manifest {
    /// Compares `directory` with its manifest, hashing only the files whose time differs.
    pub(crate) fn check(directory: &Path, archive: &str) -> State {
        let Some(manifest) = Self::read(directory).filter(|manifest| manifest.archive == archive) else {
            return State::Damaged;
        };
        let mut state = State::Intact;
        for recorded in &manifest.files {
            let path = directory.join(&recorded.name);
            let Ok(metadata) = fs::metadata(&path) else { return State::Damaged };
            if !metadata.is_file() || metadata.len() != recorded.num_bytes {
                return State::Damaged;
            }
            if modified_ns(&metadata) == recorded.modified_ns {
                continue;
            }
            if hash(&path).ok().as_ref() != Some(&recorded.sha256) {
                return State::Damaged;
            }
            state = State::Touched;
        }
        state
    }

    /// Records today's times, so that the next check is fast again.
    pub(crate) fn refresh(directory: &Path) -> io::Result<()> {
        let Some(mut manifest) = Self::read(directory) else { return Ok(()) };
        for recorded in &mut manifest.files {
            recorded.modified_ns = modified_ns(&fs::metadata(directory.join(&recorded.name))?);
        }
        manifest.write(directory)
    }

    pub(crate) fn write(&self, directory: &Path) -> io::Result<()> {
        replace(&directory.join(NAME), directory, serde_json::to_string_pretty(self)?.as_bytes())
    }

    fn read(directory: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(directory.join(NAME)).ok()?).ok()
    }
}

/// When a file was last written; zero where the system does not tell, which costs a hash and no more.
pub(crate) fn modified_ns(metadata: &Metadata) -> u64 {
    let since = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    since.and_then(|since| u64::try_from(since.as_nanos()).ok()).unwrap_or_default()
}

fn hash(path: &Path) -> io::Result<String> {
    let mut hasher = Hasher::sha256();
    hasher.read_from(File::open(path)?)?;
    Ok(hasher.finish().as_str().to_owned())
}
