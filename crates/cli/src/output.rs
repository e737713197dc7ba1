//! Standard output, for results and nothing else: logs, progress and errors go
//! to standard error.

use std::io::{self, StdoutLock, Write};

/// Standard output, locked. That its reader has left is told apart from other
/// errors, since it is no failure: `chorale inspect | head`.
pub(crate) struct Output(StdoutLock<'static>);

/// The reader of standard output has left. It travels inside an [`io::Error`].
#[derive(Debug, thiserror::Error)]
#[error("the reader of standard output has left")]
struct ReaderLeft;

impl Output {
    /// Locks standard output.
    pub(crate) fn lock() -> Self {
        Self(io::stdout().lock())
    }

    /// Writes a result that is complete.
    pub(crate) fn print(text: &str) -> io::Result<()> {
        let mut output = Self::lock();
        output.write_all(text.as_bytes())?;
        output.flush()
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(mark)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(mark)
    }
}

fn mark(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::BrokenPipe => io::Error::new(io::ErrorKind::BrokenPipe, ReaderLeft),
        _ => error,
    }
}

/// True if all that went wrong is that nobody reads the results any more.
pub(crate) fn reader_has_left(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io_error = cause.downcast_ref::<io::Error>();
        io_error.and_then(io::Error::get_ref).is_some_and(|inner| inner.is::<ReaderLeft>())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn only_a_broken_standard_output_is_excused() {
        let broken = || io::Error::from(io::ErrorKind::BrokenPipe);
        let marked: anyhow::Result<()> = Err(mark(broken())).context("writing");
        assert!(reader_has_left(&marked.unwrap_err()));
        assert!(!reader_has_left(&anyhow::Error::from(broken())));
        assert!(!reader_has_left(&anyhow::Error::from(mark(io::Error::from(io::ErrorKind::StorageFull)))));
    }
}
