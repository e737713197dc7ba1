//! Logs, on standard error. Prompts and answers are never logged; what is, are
//! fields, and what a person waits for is drawn by `progress`.

use crate::progress::Progress;
use std::io::{self, IsTerminal, Write};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Starts logging. `directives` were checked with the other settings.
pub(crate) fn start(
    directives: &str,
    is_json: bool,
    is_coloured: bool,
    progress: &Progress,
) -> anyhow::Result<()> {
    let filter = EnvFilter::builder().parse(directives)?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(is_coloured && io::stderr().is_terminal())
        .with_writer(BesideBars(progress.clone()))
        // It would say so on standard error, and panic if that is what failed.
        .log_internal_errors(false);
    let started = if is_json { builder.json().try_init() } else { builder.try_init() };
    started.map_err(|error| anyhow::anyhow!(error))
}

/// True for what `EnvFilter` takes and a person may have meant: it reads a
/// misspelled level as the name of a module, and then logs nothing.
pub(crate) fn is_directives(text: &str) -> bool {
    let is_level = |word: &str| !word.is_empty() && word.parse::<LevelFilter>().is_ok();
    let is_meant = |directive: &str| directive.contains(['=', '[']) || is_level(directive.trim());
    text.split(',').all(is_meant) && EnvFilter::builder().parse(text).is_ok()
}

/// Writes a line of log without tearing a progress bar.
struct BesideBars(Progress);

impl<'a> MakeWriter<'a> for BesideBars {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        Line(&self.0)
    }
}

/// The formatter writes each event at once.
struct Line<'a>(&'a Progress);

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.aside(|| io::stderr().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_directives_are_taken_and_slips_are_not() {
        for good in ["info", "OFF", "warn,chorale_model=debug", "chorale_cli[span]=trace"] {
            assert!(is_directives(good), "{good}");
        }
        for bad in ["", "verbose", "infoo", "chorale_model=loud", "info,,"] {
            assert!(!is_directives(bad), "{bad}");
        }
    }
}
