//! The demo model, which is inside this program: unpacked once, checked at every start, repaired if need be.
//!
//! The directory is named after the archive's hash, so another version of the
//! program has another directory. The network is never touched.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};

use ruzstd::decoding::StreamingDecoder;
use tar::{Entry, EntryType};
use tempfile::TempDir;

use crate::cache::{create_dir_all, lock};
use crate::digest::{CHUNK_LEN, Hasher, sha256};
use crate::error::{Error, Result};
use crate::manifest::{Manifest, NAME, Recorded, State, modified_ns};
use crate::progress::{Event, Progress};

/// Digits of the hash in the directory's name; enough to tell versions apart.
const PREFIX_LEN: usize = 12;
/// Unfinished directories begin so; whoever holds the lock may delete them.
const SCRATCH: &str = ".demo-model-";

/// The built-in archive: one directory of plain files.
pub(crate) const DEMO: Archive<'static> = Archive {
    bytes: include_bytes!("../assets/demo-model.tar.zst"),
    sha256: "0801aa71a6d85ed4344b6be4efe9e6c6721c39a6a79612e48a21a4e70c809916",
    num_files: 5,
    num_bytes: 105_477_929,
};

/// An archive and what it must be.
#[derive(Clone, Copy)]
pub(crate) struct Archive<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) sha256: &'a str,
    /// What it unpacks to, which a reader would otherwise learn too late to say how long it takes.
    pub(crate) num_files: usize,
    pub(crate) num_bytes: u64,
}

/// The demo model's directory inside `cache_dir`, unpacked or repaired first where needed.
///
/// Several processes may call this at once; one unpacks and the others wait for it.
pub fn unpack_demo(cache_dir: &Path, progress: Progress<'_>) -> Result<PathBuf> {
    DEMO.provide(cache_dir, progress)
}

impl Archive<'_> {
    /// The directory of this archive's files, which are what they were when unpacked.
    pub(crate) fn provide(self, cache_dir: &Path, progress: Progress<'_>) -> Result<PathBuf> {
        let directory = cache_dir.join(format!("demo-model-{}", &self.sha256[..PREFIX_LEN]));
        match Manifest::check(&directory, self.sha256) {
            State::Intact => return Ok(directory),
            State::Touched => {
                // A cache that cannot be written is still right; only the next check is slow again.
                if let Err(error) = Manifest::refresh(&directory) {
                    tracing::debug!(%error, "cannot refresh the demo model's manifest");
                }
                return Ok(directory);
            }
            State::Damaged => {}
        }
        create_dir_all(cache_dir)?;
        let _lock = lock(&directory.with_extension("lock"))?;
        if Manifest::check(&directory, self.sha256) == State::Damaged {
            self.install(cache_dir, &directory, progress)?;
        }
        Ok(directory)
    }

    /// Unpacks beside the directory and moves into place. Needs the lock.
    fn install(self, cache_dir: &Path, directory: &Path, progress: Progress<'_>) -> Result<()> {
        let actual = sha256(self.bytes);
        if actual != self.sha256 {
            return Err(Error::DemoDamaged { why: format!("its hash is {actual}, not {}", self.sha256) });
        }
        sweep(cache_dir);
        let scratch = scratch(cache_dir)?;
        progress(Event::Planned { num_files: self.num_files, num_bytes: self.num_bytes });
        let files = self.unpack(scratch.path(), progress)?;
        let manifest = Manifest { archive: self.sha256.to_owned(), files };
        manifest.write(scratch.path()).map_err(Error::writing(scratch.path(), 0))?;
        if directory.exists() {
            tracing::warn!(directory = %directory.display(), "the demo model was damaged, repairing it");
            repair(scratch.path(), directory, &manifest)?;
        } else {
            fs::rename(scratch.keep(), directory).map_err(Error::writing(directory, 0))?;
        }
        progress(Event::Finished);
        Ok(())
    }

    /// Streams every file of the archive into `into`.
    fn unpack(self, into: &Path, progress: Progress<'_>) -> Result<Vec<Recorded>> {
        let decoder = StreamingDecoder::new(self.bytes)
            .map_err(|error| Error::DemoDamaged { why: error.to_string() })?;
        let mut tar = tar::Archive::new(decoder);
        let mut files = Vec::with_capacity(self.num_files);
        for entry in tar.entries().map_err(damaged)? {
            let mut entry = entry.map_err(damaged)?;
            match entry.header().entry_type() {
                EntryType::Directory => {}
                EntryType::Regular => files.push(unpack_file(&mut entry, into, progress)?),
                other => return Err(Error::DemoDamaged { why: format!("it holds a {other:?}") }),
            }
        }
        Ok(files)
    }
}

fn unpack_file<R: Read>(entry: &mut Entry<'_, R>, into: &Path, progress: Progress<'_>) -> Result<Recorded> {
    let name = plain_name(&entry.path().map_err(damaged)?)?;
    let num_bytes = entry.size();
    progress(Event::FileStarted { file: &name, num_bytes, num_bytes_done: 0 });
    let path = into.join(&name);
    let mut file = File::create(&path).map_err(Error::writing(&path, num_bytes))?;
    let mut hasher = Hasher::sha256();
    let mut num_bytes_done = 0;
    let mut chunk = vec![0; CHUNK_LEN];
    loop {
        let len = entry.read(&mut chunk).map_err(damaged)?;
        if len == 0 {
            break;
        }
        file.write_all(&chunk[..len]).map_err(Error::writing(&path, num_bytes - num_bytes_done))?;
        hasher.update(&chunk[..len]);
        num_bytes_done += len as u64;
        progress(Event::FileAdvanced { file: &name, num_bytes_done });
    }
    file.sync_all().map_err(Error::writing(&path, 0))?;
    let metadata = file.metadata().map_err(Error::reading(&path))?;
    progress(Event::FileFinished { file: &name });
    let sha256 = hasher.finish().as_str().to_owned();
    Ok(Recorded { name, num_bytes, sha256, modified_ns: modified_ns(&metadata) })
}

/// The name of an entry that lies directly in the archive's one directory.
fn plain_name(path: &Path) -> Result<String> {
    let mut parts = path.components().skip(1);
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(name)), None) if name != NAME => Ok(name.to_string_lossy().into_owned()),
        _ => Err(Error::DemoDamaged { why: format!("it holds `{}`", path.display()) }),
    }
}

/// Replaces the files one by one, so that who has the directory open never finds one missing.
fn repair(from: &Path, directory: &Path, manifest: &Manifest) -> Result<()> {
    for name in manifest.files.iter().map(|file| file.name.as_str()).chain([NAME]) {
        let path = directory.join(name);
        fs::rename(from.join(name), &path).map_err(Error::writing(&path, 0))?;
    }
    Ok(())
}

/// A new directory inside `cache_dir`, with the permissions of any other.
fn scratch(cache_dir: &Path) -> Result<TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(SCRATCH);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
    builder.tempdir_in(cache_dir).map_err(Error::writing(cache_dir, 0))
}

/// Deletes what a process that was killed left behind. What cannot be deleted only takes space.
fn sweep(cache_dir: &Path) {
    let entries = fs::read_dir(cache_dir).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(SCRATCH)) {
        if let Err(error) = fs::remove_dir_all(entry.path()) {
            tracing::debug!(%error, path = %entry.path().display(), "cannot delete an unfinished directory");
        }
    }
}

fn damaged(error: io::Error) -> Error {
    Error::DemoDamaged { why: error.to_string() }
}
