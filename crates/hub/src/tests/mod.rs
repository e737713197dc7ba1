//! The crate against a hub that is written here, on loopback and in temporary directories.
//!
//! Nothing outside this machine is reached, and no test waits for a clock that
//! it does not have to.

mod demo;
mod mock_hub;
mod offline;
mod pull;
mod refusals;
mod trouble;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use tempfile::TempDir;

use crate::error::Result;
use crate::options::HubOptions;
use crate::patience::Patience;
use crate::progress::Event;
use crate::{Description, HubId, hub};
use mock_hub::MockHub;

/// A commit of the mock hub.
const COMMIT: &str = "1111111111111111111111111111111111111111";
/// A later one.
const NEXT_COMMIT: &str = "2222222222222222222222222222222222222222";

/// A user with an empty cache.
struct User {
    _directory: TempDir,
    options: HubOptions,
}

impl User {
    fn of(hub: &MockHub) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = HubOptions {
            endpoint: hub.endpoint(),
            cache_dir: directory.path().join("hub"),
            demo_dir: directory.path().join("chorale"),
            token: Some("hf_test".into()),
            proxy: None,
            offline: false,
            revision: None,
        };
        Self { _directory: directory, options }
    }

    fn resolve(&self) -> Result<PathBuf> {
        hub::resolve(&id(), &self.options, impatient(), &|_| {})
    }

    fn describe(&self) -> Result<Description> {
        hub::describe(&id(), &self.options, impatient())
    }

    fn pull(&self) -> Result<PathBuf> {
        hub::pull(&id(), &self.options, impatient(), &|_| {})
    }

    /// The cache's folder of the repository.
    fn root(&self) -> PathBuf {
        self.options.cache_dir.join("models--org--model")
    }

    /// Puts the first bytes of a blob where an interrupted run leaves them.
    fn leave_partial(&self, blob: &str, bytes: &[u8]) {
        fs::create_dir_all(self.root().join("blobs")).unwrap();
        fs::write(self.root().join("blobs").join(format!("{blob}.incomplete")), bytes).unwrap();
    }

    fn blobs(&self) -> Vec<String> {
        names(&self.root().join("blobs"))
    }
}

fn id() -> HubId {
    "org/model".parse().unwrap()
}

/// Waits for a loaded machine, and never long before trying again.
fn impatient() -> Patience {
    Patience {
        connect: Duration::from_secs(5),
        stall: Duration::from_secs(10),
        attempts: 4,
        pause: Duration::from_millis(5),
        pause_max: Duration::from_millis(20),
    }
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Events as lines, advances left out because their number is the network's.
#[derive(Default)]
struct Script(Mutex<Vec<String>>);

impl Script {
    fn hear(&self, event: Event<'_>) {
        let line = match event {
            Event::Planned { num_files, num_bytes } => {
                format!("planned {num_files} files, {num_bytes} bytes")
            }
            Event::FileStarted { file, num_bytes, num_bytes_done } => {
                format!("{file} started at {num_bytes_done} of {num_bytes}")
            }
            Event::FileAdvanced { .. } => return,
            Event::FileFinished { file } => format!("{file} finished"),
            Event::Finished => "finished".into(),
        };
        self.0.lock().unwrap().push(line);
    }

    fn lines(self) -> Vec<String> {
        self.0.into_inner().unwrap()
    }
}
