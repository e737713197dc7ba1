//! Why NCCL cannot be used, or has failed.

use std::path::PathBuf;
use std::time::Duration;

/// What the library refuses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NcclError {
    /// There is no library.
    #[error(
        "no NCCL library could be loaded ({tried}); install NVIDIA's package libnccl2 or the Python \
         package nvidia-nccl-cu13, or name the file libnccl.so.2"
    )]
    NotFound {
        /// What was tried, each with the reason why it failed.
        tried: String,
    },
    /// The library lacks a function: it is older than what is needed, or no NCCL.
    #[error("{} has no {symbol}: NCCL {} or newer is needed", path.display(), least)]
    Incomplete {
        /// The library.
        path: PathBuf,
        /// The function.
        symbol: &'static str,
        /// The oldest version that will do.
        least: Version,
    },
    /// The library is too old.
    #[error("{} is NCCL {found}; {least} or newer is needed", path.display())]
    TooOld {
        /// The library.
        path: PathBuf,
        /// What it is.
        found: Version,
        /// The oldest version that will do.
        least: Version,
    },
    /// A call failed; the communicator can no longer be used.
    #[error("{call} failed for {communicator}: {reason}")]
    Call {
        /// What was called.
        call: &'static str,
        /// Whose ranks.
        communicator: String,
        /// What NCCL says.
        reason: String,
    },
    /// Something did not happen in time.
    #[error("{communicator} waited {waited:?} for {what}")]
    Timeout {
        /// Whose ranks.
        communicator: String,
        /// What was waited for.
        what: String,
        /// How long.
        waited: Duration,
    },
    /// The communicator was aborted: its epoch is over.
    #[error("{communicator} was aborted")]
    Aborted {
        /// Whose ranks.
        communicator: String,
    },
}

/// A version of NCCL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// 2.
    pub major: u32,
    /// Such as 28.
    pub minor: u32,
    /// Such as 9.
    pub patch: u32,
}

impl Version {
    /// From the number that NCCL gives; its form changed with 2.9.
    pub fn from_code(code: u32) -> Self {
        match code {
            ..10_000 => Self { major: code / 1000, minor: code / 100 % 10, patch: code % 100 },
            _ => Self { major: code / 10_000, minor: code / 100 % 100, patch: code % 100 },
        }
    }

    /// The number that NCCL gives, of 2.9 and newer.
    pub fn code(self) -> u32 {
        self.major * 10_000 + self.minor * 100 + self.patch
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_in_both_forms() {
        let show = |code| Version::from_code(code).to_string();
        assert_eq!(show(22_809), "2.28.9");
        assert_eq!(show(2_804), "2.8.4");
        assert_eq!(Version::from_code(23_203).code(), 23_203);
        assert!(Version::from_code(21_805) < Version::from_code(22_101));
    }
}
