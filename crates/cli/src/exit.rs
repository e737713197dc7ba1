//! How the program ends: 0 for done, 1 for failed, 2 for called wrongly. An
//! error is printed here, once, with its causes.

use crate::config::ConfigError;
use crate::output;
use chorale_model::budget::BudgetError;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::ExitCode;

/// What the user asked for cannot be, whatever the machine does.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UsageError(pub(crate) String);

/// Turns the result of a run into an exit code and prints what went wrong.
pub(crate) fn report(result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    if output::reader_has_left(&error) {
        return ExitCode::SUCCESS;
    }
    // Where standard error is gone, too, the exit code must do.
    let _ = io::stderr().write_all(describe(&error).as_bytes());
    if is_usage(&error) { ExitCode::from(2) } else { ExitCode::FAILURE }
}

/// The error, and each cause that says more than the line before it.
fn describe(error: &anyhow::Error) -> String {
    let mut text = format!("error: {error}\n");
    let mut said = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !said.contains(&cause) {
            let _ = writeln!(text, "  caused by: {cause}");
        }
        said = cause;
    }
    text
}

fn is_usage(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.is::<UsageError>()
            || cause.is::<ConfigError>()
            || cause.is::<BudgetError>()
            || matches!(
                cause.downcast_ref(),
                Some(
                    chorale_hub::Error::Name { .. }
                        | chorale_hub::Error::NoDirectory { .. }
                        | chorale_hub::Error::Revision { .. }
                        | chorale_hub::Error::Variable { .. }
                )
            )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn causes_are_printed_once_each() {
        let error = anyhow!("no such file").context("cannot open x: no such file").context("cannot load");
        assert_eq!(describe(&error), "error: cannot load\n  caused by: cannot open x: no such file\n");
    }

    #[test]
    fn the_user_s_mistakes_are_told_apart_from_failures() {
        assert!(is_usage(&anyhow::Error::from(UsageError("no".to_owned())).context("while")));
        assert!(is_usage(&anyhow::Error::from(BudgetError::NoRanks)));
        assert!(!is_usage(&anyhow!("disk full")));
    }
}
