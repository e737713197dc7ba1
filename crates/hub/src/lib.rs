//! Turns what a user names as a model into a directory on this machine.
//!
//! A name is a directory, a hub id or the demo model; this crate finds,
//! downloads or unpacks it and hands back a path. It does not open the model,
//! draw progress or read the environment: the caller does.
//!
//! Invariant: a file stands under its final name only when its bytes were
//! hashed to what the hub, or the archive, says they are. Everything else lies
//! under another name until then, so a reader never meets half a file.

mod cache;
mod client;
mod demo;
mod digest;
mod download;
mod error;
mod hub;
mod listing;
mod manifest;
mod name;
mod options;
mod patience;
mod progress;
#[cfg(test)]
mod tests;
mod weights;

use std::path::{Path, PathBuf};

pub use demo::unpack_demo;
pub use error::{Error, Result};
pub use name::{HubId, ModelName};
pub use options::{HubOptions, Places, ProxyOptions};
pub use progress::{Event, Progress};

use patience::Patience;

/// The directory of `name`, downloaded or unpacked first where that is needed and allowed.
///
/// A branch is looked up on the hub each time; when the hub cannot be reached, what the cache holds of
/// that branch is used, with a warning. An exact commit that is cached, a directory and an unpacked demo
/// model need no network, and offline nothing does.
pub fn resolve(name: &ModelName, options: &HubOptions, progress: Progress<'_>) -> Result<PathBuf> {
    match name {
        ModelName::Directory(path) => existing_directory(path),
        ModelName::Hub(id) => hub::resolve(id, options, Patience::default(), progress),
        ModelName::Demo => unpack_demo(&options.demo_dir, progress),
    }
}

/// Brings `name` up to date with the hub and returns its directory.
///
/// Unlike [`resolve`] it never settles for what is cached: being offline, or a hub that cannot be reached,
/// is an error. A directory and the demo model are already here, so for them it is [`resolve`].
pub fn pull(name: &ModelName, options: &HubOptions, progress: Progress<'_>) -> Result<PathBuf> {
    match name {
        ModelName::Directory(path) => existing_directory(path),
        ModelName::Hub(id) => hub::pull(id, options, Patience::default(), progress),
        ModelName::Demo => unpack_demo(&options.demo_dir, progress),
    }
}

/// What says what a model is, without downloading its weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Holds the model's configuration at least.
    pub directory: PathBuf,
    /// Whether the weights are known to be there, too. For a directory that a user named, that is for
    /// whoever reads it to find out, so it counts as whole.
    pub has_weights: bool,
}

/// The configuration of `name`: of a hub id that is not cached, only the small files are downloaded.
pub fn describe(name: &ModelName, options: &HubOptions) -> Result<Description> {
    let whole = |directory| Description { directory, has_weights: true };
    match name {
        ModelName::Directory(path) => existing_directory(path).map(whole),
        ModelName::Hub(id) => hub::describe(id, options, Patience::default()),
        ModelName::Demo => unpack_demo(&options.demo_dir, &|_| {}).map(whole),
    }
}

fn existing_directory(path: &Path) -> Result<PathBuf> {
    if path.is_dir() {
        return Ok(path.to_path_buf());
    }
    Err(Error::NoDirectory { path: path.to_path_buf() })
}
