//! How long to wait for the network and how often to try again.
//!
//! Waiting ends early when a download beside this one has failed, because then
//! there is nothing left to wait for.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::error::{Error, Result};

/// How long to wait for the network and how often to try again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// For a name to be resolved, and again for a connection to stand.
    pub(crate) connect: Duration,
    /// For the next bytes of an answer; a slow link is fine, a silent one is not.
    pub(crate) stall: Duration,
    /// Failures in a row, without a byte gained, after which to give up.
    pub(crate) attempts: u32,
    /// The first pause; each further one is twice as long.
    pub(crate) pause: Duration,
    /// The longest pause.
    pub(crate) pause_max: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            stall: Duration::from_secs(30),
            attempts: 8,
            pause: Duration::from_millis(500),
            pause_max: Duration::from_secs(20),
        }
    }
}

impl Patience {
    /// As patient, and gives up after `attempts` at the latest.
    pub(crate) fn at_most(self, attempts: u32) -> Self {
        Self { attempts: self.attempts.min(attempts), ..self }
    }
}

/// The first failure of a set of downloads, which ends the others.
#[derive(Default)]
pub(crate) struct Stop {
    first: Mutex<Option<Error>>,
    failed: Condvar,
}

impl Stop {
    /// Ends the others. Only the first failure is kept, the others follow from it.
    pub(crate) fn fail(&self, error: Error) {
        self.lock().get_or_insert(error);
        self.failed.notify_all();
    }

    pub(crate) fn is_set(&self) -> bool {
        self.lock().is_some()
    }

    /// The first failure, once no download is left.
    pub(crate) fn into_result(self) -> Result<()> {
        match self.first.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Waits for `pause`, and says whether to go on.
    fn wait(&self, pause: Duration) -> bool {
        let waited = self.failed.wait_timeout_while(self.lock(), pause, |first| first.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.is_none()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Error>> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts failures in a row and pauses after each.
pub(crate) struct Backoff<'a> {
    patience: Patience,
    stop: &'a Stop,
    failures: u32,
}

impl<'a> Backoff<'a> {
    pub(crate) fn new(patience: Patience, stop: &'a Stop) -> Self {
        Self { patience, stop, failures: 0 }
    }

    /// Something was gained, so what comes is a first failure again.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Pauses before the next attempt, or hands `error` back when there is none.
    pub(crate) fn pause(&mut self, error: Error) -> Result<()> {
        self.failures += 1;
        if self.failures >= self.patience.attempts {
            return Err(error);
        }
        // The exponent is bounded so that the factor is.
        let pause = self.patience.pause * 2_u32.pow((self.failures - 1).min(16));
        tracing::info!(%error, failures = self.failures, ?pause, "trying again");
        if self.stop.wait(pause.min(self.patience.pause_max)) { Ok(()) } else { Err(error) }
    }
}

/// Calls `attempt` until it gives anything but [`Error::Unreachable`].
pub(crate) fn retry<T>(patience: Patience, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let stop = Stop::default();
    let mut backoff = Backoff::new(patience, &stop);
    loop {
        match attempt() {
            Err(error @ Error::Unreachable { .. }) => backoff.pause(error)?,
            other => return other,
        }
    }
}
