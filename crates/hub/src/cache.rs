//! The hub cache on disk, in the layout that all of the hub's clients share.
//!
//! `models--org--name/{blobs,refs,snapshots}`: content under its hash, names as
//! links to it. This file knows the layout and its locks, not the network.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::digest::{BlobId, is_commit};
use crate::error::{Error, Result};
use crate::listing::RemoteFile;
use crate::name::HubId;
use crate::weights::{CONFIG, INDEX, SINGLE, shards};

/// The branch that is meant when none is named.
pub(crate) const DEFAULT_REVISION: &str = "main";

/// The part of the hub cache that holds one repository.
pub(crate) struct RepoCache {
    root: PathBuf,
    locks: PathBuf,
}

/// Held while a blob is being written; given back in `Drop`.
pub(crate) struct BlobLock {
    _file: File,
}

/// A branch, a tag or a commit, checked to be safe in a URL and in a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Revision(String);

impl Revision {
    pub(crate) fn parse(value: &str) -> Result<Self> {
        let is_allowed =
            |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | '+' | '@');
        let is_name =
            |part: &str| !part.is_empty() && !part.starts_with(['.', '-']) && !part.ends_with(".lock");
        if value.chars().all(is_allowed) && value.split('/').all(is_name) && !value.contains("..") {
            return Ok(Self(value.to_owned()));
        }
        Err(Error::Revision { value: value.to_owned() })
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// A commit never changes, so what the cache holds of it stays true.
    pub(crate) fn is_commit(&self) -> bool {
        is_commit(&self.0)
    }
}

impl RepoCache {
    pub(crate) fn new(cache_dir: &Path, id: &HubId) -> Self {
        let folder = format!("models--{}", id.as_str().replace('/', "--"));
        Self { root: cache_dir.join(&folder), locks: cache_dir.join(".locks").join(folder) }
    }

    /// The directory that a model is read from.
    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// The commit that `revision` stood for when it was last pulled.
    pub(crate) fn commit(&self, revision: &Revision) -> Option<String> {
        if revision.is_commit() {
            return Some(revision.as_str().to_owned());
        }
        let commit = fs::read_to_string(self.root.join("refs").join(revision.as_str())).ok()?;
        Some(commit.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// The first file that the model at `commit` lacks, if any.
    pub(crate) fn missing(&self, commit: &str) -> Option<String> {
        let snapshot = self.snapshot(commit);
        let lacks = |name: &String| !snapshot.join(name).is_file();
        let weights = match fs::read(snapshot.join(INDEX)) {
            Ok(index) => match shards(&index) {
                Ok(shards) => shards,
                // An index that cannot be read is as good as none, and naming it says which to repair.
                Err(_) => return Some(INDEX.to_owned()),
            },
            Err(_) => vec![SINGLE.to_owned()],
        };
        std::iter::once(CONFIG.to_owned()).chain(weights).find(lacks)
    }

    /// Whether `file` can be read at `commit`. Sizes are compared and hashes are not: a blob was hashed
    /// before it got its name.
    pub(crate) fn holds(&self, commit: &str, file: &RemoteFile) -> bool {
        has_len(&self.snapshot(commit).join(&file.path), file.num_bytes)
    }

    /// Whether the content of `file` is here, whatever it is called.
    pub(crate) fn holds_blob(&self, file: &RemoteFile) -> bool {
        has_len(&self.blob(&file.blob), file.num_bytes)
    }

    pub(crate) fn blob(&self, blob: &BlobId) -> PathBuf {
        self.root.join("blobs").join(blob.as_str())
    }

    /// Where the content grows until it is complete.
    pub(crate) fn partial(&self, blob: &BlobId) -> PathBuf {
        self.root.join("blobs").join(format!("{}.incomplete", blob.as_str()))
    }

    /// Makes `file` readable at `commit`. Needs its blob and its lock.
    pub(crate) fn link(&self, commit: &str, file: &RemoteFile) -> Result<()> {
        let snapshot = self.snapshot(commit);
        create_dir_all(&snapshot)?;
        let pointer = snapshot.join(&file.path);
        let scratch = snapshot.join(format!(".{}.{}", file.path, std::process::id()));
        let target = Path::new("../../blobs").join(file.blob.as_str());
        let linked = match fs::remove_file(&scratch) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => symlink(&target, &scratch).and_then(|()| fs::rename(&scratch, &pointer)),
        };
        if linked.is_ok() {
            return Ok(());
        }
        // A file system without links: the snapshot then holds the file itself, as the Python client has it.
        fs::rename(self.blob(&file.blob), &pointer).map_err(Error::writing(&pointer, 0))
    }

    /// Remembers that `revision` stands for `commit`. Comes last, so that what a branch stands for is whole.
    pub(crate) fn write_ref(&self, revision: &Revision, commit: &str) -> Result<()> {
        let path = self.root.join("refs").join(revision.as_str());
        if fs::read_to_string(&path).is_ok_and(|old| old == commit) {
            return Ok(());
        }
        let parent = path.parent().unwrap_or(&self.root);
        create_dir_all(parent)?;
        replace(&path, parent, commit.as_bytes()).map_err(Error::writing(&path, commit.len() as u64))
    }

    /// Waits until no other process writes `blob`. The lock file is the one that the Python client takes.
    pub(crate) fn lock(&self, blob: &BlobId) -> Result<BlobLock> {
        create_dir_all(&self.locks)?;
        create_dir_all(&self.root.join("blobs"))?;
        lock(&self.locks.join(format!("{}.lock", blob.as_str())))
    }
}

/// Takes the lock file at `path`, waiting as long as another process holds it.
pub(crate) fn lock(path: &Path) -> Result<BlobLock> {
    let mut options = File::options();
    let file =
        options.create(true).truncate(false).write(true).open(path).map_err(Error::writing(path, 0))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            tracing::info!(lock = %path.display(), "waiting for another process that writes the same file");
            file.lock().map_err(Error::reading(path))?;
        }
        // Some network file systems have no locks. Two writers would then spoil each other's file,
        // which its hash tells before anyone reads it.
        Err(TryLockError::Error(error)) => {
            tracing::warn!(lock = %path.display(), %error, "cannot lock; pull with one process at a time");
        }
    }
    Ok(BlobLock { _file: file })
}

pub(crate) fn create_dir_all(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(Error::writing(path, 0))
}

/// Puts `bytes` at `path` at once: a reader finds the old content or the new.
pub(crate) fn replace(path: &Path, parent: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut scratch = tempfile::Builder::new();
    #[cfg(unix)]
    scratch.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = scratch.tempfile_in(parent)?;
    file.write_all(bytes)?;
    file.persist(path)?;
    Ok(())
}

fn has_len(path: &Path, num_bytes: u64) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.len() == num_bytes)
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(not(unix))]
fn symlink(_target: &Path, _link: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_is_what_git_allows_and_a_path_can_bear() {
        for value in ["main", "refs/pr/1", "v1.0", "feature/x_y", "b5c939de8f754692c1647ca79fbf85e8c1e70f8a"]
        {
            assert_eq!(Revision::parse(value).unwrap().as_str(), value);
        }
        for value in ["", "..", "a/../b", "/main", "main/", "a b", "a?b", ".hidden", "a//b", "-x", "x.lock"] {
            assert!(Revision::parse(value).is_err(), "{value}");
        }
        assert!(Revision::parse(&"a".repeat(40)).unwrap().is_commit());
        assert!(!Revision::parse(&"a".repeat(39)).unwrap().is_commit());
    }

    #[test]
    fn the_first_missing_file_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let cache = RepoCache::new(directory.path(), &"org/model".parse().unwrap());
        let snapshot = cache.snapshot("c");
        fs::create_dir_all(&snapshot).unwrap();
        let missing = || cache.missing("c");
        assert_eq!(missing().as_deref(), Some("config.json"));
        fs::write(snapshot.join("config.json"), "{}").unwrap();
        assert_eq!(missing().as_deref(), Some("model.safetensors"));
        fs::write(snapshot.join(INDEX), r#"{"weight_map": {"a": "m-1.safetensors"}}"#).unwrap();
        assert_eq!(missing().as_deref(), Some("m-1.safetensors"));
        fs::write(snapshot.join("m-1.safetensors"), "").unwrap();
        assert_eq!(missing(), None);
        fs::write(snapshot.join(INDEX), "cut").unwrap();
        assert_eq!(missing().as_deref(), Some(INDEX));
    }
}
