//! Why a model name did not become a directory, by what the caller can do about it.
//!
//! Messages name the value and the remedy. Nothing is logged or retried here.

use std::io;
use std::path::{Path, PathBuf};

/// Shorthand for this crate's results.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a model name did not become a directory.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name is none of the three kinds.
    #[error(
        "model `{value}` is not a directory here, not a hub id ({why}) and not `demo`: give a path such as \
         ./gpt-oss-20b, an id such as openai/gpt-oss-20b, or `demo`"
    )]
    Name {
        /// What the user wrote.
        value: String,
        /// What a hub id would need.
        why: &'static str,
    },
    /// A path that names no directory.
    #[error(
        "there is no directory at `{}`: check the path (`~` is only expanded by a shell), or give a hub id \
         such as openai/gpt-oss-20b",
        path.display()
    )]
    NoDirectory {
        /// The path as given.
        path: PathBuf,
    },
    /// A revision that cannot be a branch, a tag or a commit.
    #[error("revision `{value}` is not a branch, a tag or a commit hash: git allows no such name")]
    Revision {
        /// What the user wrote.
        value: String,
    },
    /// A variable, or the option that it stands for, cannot be used.
    #[error("{name} is {why}: {remedy}")]
    Variable {
        /// The variable.
        name: &'static str,
        /// What is wrong with its value; never the value of a secret.
        why: String,
        /// What to give instead.
        remedy: &'static str,
    },
    /// The network or the hub is down; the same call may succeed later and keeps what was downloaded.
    #[error(
        "cannot reach {url} ({why}): check the network, HF_ENDPOINT and HTTPS_PROXY, then run the same \
         command again; what was downloaded is kept"
    )]
    Unreachable {
        /// What was asked for.
        url: String,
        /// The transport's or the hub's own words.
        why: String,
    },
    /// The hub answered, and the answer makes no sense; trying again does not help.
    #[error("{url} gave an answer that cannot be used ({why}): check that HF_ENDPOINT is a hub")]
    Unexpected {
        /// What was asked for.
        url: String,
        /// What is wrong with the answer.
        why: String,
    },
    /// The hub refuses to hand the repository to this user.
    #[error(
        "the hub refused `{id}` (HTTP {status}): accept its licence at {page} and set HF_TOKEN to a token \
         that may read it; without a token a repository that does not exist is refused the same way"
    )]
    Denied {
        /// The repository.
        id: String,
        /// 401 or 403.
        status: u16,
        /// Where the licence is accepted.
        page: String,
    },
    /// The hub has no such repository.
    #[error("the hub has no repository `{id}`: check the spelling at {page}")]
    NoRepository {
        /// The repository.
        id: String,
        /// Where it would be.
        page: String,
    },
    /// The repository has no such branch, tag or commit.
    #[error("`{id}` has no revision `{revision}`: see its branches and commits at {page}")]
    NoRevision {
        /// The repository.
        id: String,
        /// What was asked for.
        revision: String,
        /// Where its revisions are listed.
        page: String,
    },
    /// The repository lacks a file that a model needs.
    #[error(
        "`{id}` has no file `{file}` at revision `{revision}`: a model has config.json and safetensors \
         weights, so choose another repository or revision"
    )]
    NoFile {
        /// The repository.
        id: String,
        /// The revision.
        revision: String,
        /// The file.
        file: String,
    },
    /// Offline, and the cache does not hold all of the model.
    #[error(
        "offline, and `{file}` of `{id}` at revision `{revision}` is not in {}: run `chorale pull {id}` \
         where the network is, or unset HF_HUB_OFFLINE",
        cache_dir.display()
    )]
    NotCached {
        /// The repository.
        id: String,
        /// The revision.
        revision: String,
        /// The first thing that is missing.
        file: String,
        /// The cache that was searched.
        cache_dir: PathBuf,
    },
    /// A download was asked for and forbidden at once.
    #[error("cannot pull `{id}` while offline: unset HF_HUB_OFFLINE or leave --offline away")]
    Offline {
        /// The repository.
        id: String,
    },
    /// A file did not arrive as the hub describes it; it was deleted.
    #[error(
        "`{file}` arrived wrong ({what} is {actual}, the hub says {expected}) and was deleted: run the same \
         command again, and if it happens again distrust the mirror or proxy"
    )]
    Mismatch {
        /// The file.
        file: String,
        /// Which property differs.
        what: &'static str,
        /// What the hub says.
        expected: String,
        /// What arrived.
        actual: String,
    },
    /// The disk or the quota is full.
    #[error(
        "no space left for `{}` ({num_bytes} bytes to go): free some, or choose another directory \
         (--cache-dir, HF_HUB_CACHE or XDG_CACHE_HOME)",
        path.display()
    )]
    DiskFull {
        /// The file that does not fit.
        path: PathBuf,
        /// How much of it is still to be written.
        num_bytes: u64,
    },
    /// The cache directory cannot be written.
    #[error(
        "cannot write `{}` ({source}): choose a writable cache directory (--cache-dir, HF_HUB_CACHE or \
         XDG_CACHE_HOME)",
        path.display()
    )]
    NotWritable {
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Any other failure of the file system.
    #[error("cannot use `{}`: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The program itself is damaged: its demo archive is not the one that was built in.
    #[error("the built-in demo model is damaged ({why}): install chorale again")]
    DemoDamaged {
        /// What is wrong.
        why: String,
    },
}

impl Error {
    /// Translates a failed operation on `path`, of which `num_bytes` were still to be written.
    pub(crate) fn writing(path: &Path, num_bytes: u64) -> impl FnOnce(io::Error) -> Self {
        move |source| {
            let path = path.to_path_buf();
            match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    Self::DiskFull { path, num_bytes }
                }
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                    Self::NotWritable { path, source }
                }
                _ => Self::Io { path, source },
            }
        }
    }

    /// Translates a failed operation on `path` that does not write to it.
    pub(crate) fn reading(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { path: path.to_path_buf(), source }
    }
}
