//! NCCL: whether it is wanted, where it is, and what is said where it is not.

use crate::exit::UsageError;
use chorale_nccl::Library;
use std::path::PathBuf;
use std::sync::Arc;

/// What `--nccl` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NcclChoice {
    /// Where the system finds it, and nothing lost where it does not.
    Auto,
    /// Never.
    Off,
    /// This file.
    At(PathBuf),
}

impl NcclChoice {
    /// `auto`, `off`, or a file; what has neither folders nor the ending of a
    /// library is a mistyped word.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text {
            "auto" => Some(Self::Auto),
            "off" => Some(Self::Off),
            _ if text.contains('/') || text.contains(".so") => Some(Self::At(PathBuf::from(text))),
            _ => None,
        }
    }

    /// The library by which GPUs are to exchange rows, if there is one. Where it is
    /// looked for in vain, that is said; where it was named, that is a mistake.
    pub(crate) fn library(&self) -> Result<Option<Arc<Library>>, UsageError> {
        let path = match self {
            Self::Off => return Ok(None),
            Self::Auto => None,
            Self::At(path) => Some(path.as_path()),
        };
        match (Library::open(path), path) {
            (Ok(library), _) => {
                tracing::info!(
                    version = %library.version(),
                    path = %library.path().display(),
                    "GPUs can exchange rows by NCCL"
                );
                Ok(Some(Arc::new(library)))
            }
            (Err(error), Some(_)) => Err(UsageError(format!("--nccl: {error}"))),
            (Err(error), None) => {
                tracing::warn!(
                    reason = %error,
                    "there is no NCCL: rows travel between GPUs through pinned memory of the host; name the \
                     library by --nccl PATH, or say --nccl off to hear no more of it"
                );
                Ok(None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_is_named_by_a_word_or_a_path() {
        let parse = NcclChoice::parse;
        assert_eq!(parse("auto"), Some(NcclChoice::Auto));
        assert_eq!(parse("off"), Some(NcclChoice::Off));
        assert_eq!(parse("libnccl.so.2"), Some(NcclChoice::At("libnccl.so.2".into())));
        assert_eq!(parse("/opt/nccl"), Some(NcclChoice::At("/opt/nccl".into())));
        for bad in ["", "on", "Auto", "of", "true"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_library_that_was_named_and_is_not_there_is_a_mistake() {
        let UsageError(refused) = NcclChoice::At("/nowhere/libnccl.so.2".into()).library().unwrap_err();
        assert!(refused.starts_with("--nccl: ") && refused.contains("/nowhere/libnccl.so.2"), "{refused}");
        assert!(NcclChoice::Off.library().unwrap().is_none());
        // Here or not: what is only looked for is never a mistake.
        assert!(NcclChoice::Auto.library().is_ok());
    }
}
