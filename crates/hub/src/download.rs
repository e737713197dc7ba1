//! One file from the hub into the cache: locked, resumed, hashed, then named.
//!
//! Content grows in `<hash>.incomplete` and gets its name only when it hashes
//! to it. Which files are wanted is not decided here.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use crate::cache::RepoCache;
use crate::client::{Client, Content};
use crate::digest::{CHUNK_LEN, Hasher};
use crate::error::{Error, Result};
use crate::listing::RemoteFile;
use crate::name::HubId;
use crate::patience::{Backoff, Patience, Stop};
use crate::progress::{Event, Progress};

/// What the downloads of one commit share.
pub(crate) struct Download<'a> {
    pub(crate) client: &'a Client,
    pub(crate) cache: &'a RepoCache,
    pub(crate) id: &'a HubId,
    pub(crate) commit: &'a str,
    pub(crate) patience: Patience,
    pub(crate) progress: Progress<'a>,
    pub(crate) stop: &'a Stop,
}

/// A file that is not complete yet, with the hash of what there is.
struct Partial<'a> {
    file: &'a RemoteFile,
    path: PathBuf,
    disk: File,
    hasher: Hasher,
    num_bytes: u64,
}

impl Download<'_> {
    /// Makes `file` readable at the commit, moving only the bytes that are not here.
    pub(crate) fn fetch(&self, file: &RemoteFile) -> Result<()> {
        let _lock = self.cache.lock(&file.blob)?;
        if !self.cache.holds(self.commit, file) {
            if !self.cache.holds_blob(file) {
                self.fetch_blob(file)?;
            }
            self.cache.link(self.commit, file)?;
        }
        self.tell(Event::FileFinished { file: &file.path });
        Ok(())
    }

    fn fetch_blob(&self, file: &RemoteFile) -> Result<()> {
        let mut partial = Partial::open(self.cache.partial(&file.blob), file)?;
        let num_bytes_done = partial.num_bytes;
        self.tell(Event::FileStarted { file: &file.path, num_bytes: file.num_bytes, num_bytes_done });
        self.fill(&mut partial)?;
        // What an earlier run left may be to blame, so that is given one more chance from the start.
        if !partial.is_right() && num_bytes_done > 0 {
            tracing::warn!(file = file.path, "a resumed download has the wrong hash, downloading it again");
            partial.restart()?;
            self.fill(&mut partial)?;
        }
        partial.publish(&self.cache.blob(&file.blob))
    }

    /// Downloads until the size is reached, however often the connection breaks on the way.
    fn fill(&self, partial: &mut Partial<'_>) -> Result<()> {
        let mut backoff = Backoff::new(self.patience, self.stop);
        while partial.num_bytes < partial.file.num_bytes {
            let num_bytes_before = partial.num_bytes;
            match self.advance(partial) {
                Ok(()) => {}
                Err(error @ Error::Unreachable { .. }) => {
                    if partial.num_bytes > num_bytes_before {
                        backoff.reset();
                    }
                    backoff.pause(error)?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// One request, to the end of the file or of the connection. What arrived is kept either way.
    fn advance(&self, partial: &mut Partial<'_>) -> Result<()> {
        let path = &partial.file.path;
        let Content { offset, mut reader } =
            self.client.content(self.id, self.commit, path, partial.num_bytes)?;
        if offset != partial.num_bytes {
            partial.restart()?;
        }
        let cut =
            |why: String| Error::Unreachable { url: self.client.file_url(self.id, self.commit, path), why };
        let mut chunk = vec![0; CHUNK_LEN];
        loop {
            if self.stop.is_set() {
                return Err(cut("another file failed".into()));
            }
            let len = match reader.read(&mut chunk) {
                Ok(0) if partial.num_bytes < partial.file.num_bytes => {
                    return Err(cut("it ended early".into()));
                }
                Ok(0) => return Ok(()),
                Ok(len) => len,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(cut(error.to_string())),
            };
            partial.append(&chunk[..len])?;
            self.tell(Event::FileAdvanced { file: path, num_bytes_done: partial.num_bytes });
        }
    }

    fn tell(&self, event: Event<'_>) {
        (self.progress)(event);
    }
}

impl<'a> Partial<'a> {
    /// Opens what an earlier run left, if any, and hashes it.
    fn open(path: PathBuf, file: &'a RemoteFile) -> Result<Self> {
        let mut options = File::options();
        let disk = options
            .create(true)
            .read(true)
            .append(true)
            .open(&path)
            .map_err(Error::writing(&path, file.num_bytes))?;
        let mut partial = Self { file, path, disk, hasher: file.blob.hasher(file.num_bytes), num_bytes: 0 };
        let num_bytes = partial.disk.metadata().map_err(Error::reading(&partial.path))?.len();
        if num_bytes > file.num_bytes {
            partial.restart()?;
        } else {
            let left = (&partial.disk).take(num_bytes);
            partial.num_bytes = partial.hasher.read_from(left).map_err(Error::reading(&partial.path))?;
        }
        Ok(partial)
    }

    fn restart(&mut self) -> Result<()> {
        self.disk.set_len(0).map_err(Error::writing(&self.path, self.file.num_bytes))?;
        self.hasher = self.file.blob.hasher(self.file.num_bytes);
        self.num_bytes = 0;
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let num_bytes = self.num_bytes + bytes.len() as u64;
        if num_bytes > self.file.num_bytes {
            let expected = self.file.num_bytes.to_string();
            return Err(self.discard("size", expected, format!("{num_bytes} or more")));
        }
        let num_bytes_left = self.file.num_bytes - self.num_bytes;
        self.disk.write_all(bytes).map_err(Error::writing(&self.path, num_bytes_left))?;
        self.hasher.update(bytes);
        self.num_bytes = num_bytes;
        Ok(())
    }

    fn is_right(&self) -> bool {
        self.hasher.clone().finish() == self.file.blob
    }

    /// Gives the content its name, if it is what the hub says.
    fn publish(self, blob: &Path) -> Result<()> {
        let actual = self.hasher.clone().finish();
        if actual != self.file.blob {
            let (expected, actual) = (self.file.blob.as_str().to_owned(), actual.as_str().to_owned());
            return Err(self.discard("hash", expected, actual));
        }
        // On disk before it is named, or a power cut could leave a name without content.
        self.disk.sync_all().map_err(Error::writing(&self.path, 0))?;
        fs::rename(&self.path, blob).map_err(Error::writing(blob, 0))
    }

    /// Deletes what is not the file; the error says so.
    fn discard(&self, what: &'static str, expected: String, actual: String) -> Error {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot delete a wrong download");
        }
        Error::Mismatch { file: self.file.path.clone(), what, expected, actual }
    }
}
