//! What a caller hears while weights arrive; drawing it is the caller's part.
//!
//! Only weights are reported: a model's other files are a few kilobytes. Files
//! arrive several at a time, so events of different files interleave.

/// Receives events, from several threads at once.
pub type Progress<'a> = &'a (dyn Fn(Event<'_>) + Sync);

/// Something that a person who waits wants to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// Comes once and first, and only when something has to be written.
    Planned {
        /// Files that follow.
        num_files: usize,
        /// Their sizes, added up.
        num_bytes: u64,
    },
    /// A file begins, or goes on where an earlier run was interrupted.
    FileStarted {
        /// The file's name in the model's directory.
        file: &'a str,
        /// Its whole size.
        num_bytes: u64,
        /// How much of it was here already.
        num_bytes_done: u64,
    },
    /// More of a file is on disk. Falls back to zero if the file has to begin again.
    FileAdvanced {
        /// The file's name in the model's directory.
        file: &'a str,
        /// How much of it is on disk now.
        num_bytes_done: u64,
    },
    /// A file is complete and its hash is right. Comes without a start if another process fetched it.
    FileFinished {
        /// The file's name in the model's directory.
        file: &'a str,
    },
    /// Comes once and last, after every planned file is in place.
    Finished,
}
