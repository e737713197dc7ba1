//! Signals: the first asks for an orderly end, the second for one at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether a signal has come.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told(Arc<AtomicBool>);

impl Told {
    /// True from the first signal on.
    pub(crate) fn is_told(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Follows SIGTERM and SIGINT for as long as the runtime lives: calls `first` at
/// the first of them, and `then` at each that comes after it.
pub(crate) fn follow(
    first: impl Fn() + Send + 'static,
    then: impl Fn() + Send + 'static,
) -> std::io::Result<Told> {
    let mut signals = Signals::new()?;
    let told = Told::default();
    let tell = told.clone();
    tokio::spawn(async move {
        while signals.next().await {
            if tell.0.swap(true, Ordering::Relaxed) { then() } else { first() }
        }
    });
    Ok(told)
}

#[cfg(unix)]
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// False when there will be no more.
    async fn next(&mut self) -> bool {
        tokio::select! {
            signal = self.terminate.recv() => signal.is_some(),
            signal = self.interrupt.recv() => signal.is_some(),
        }
    }
}

/// Ctrl-C, which is all there is.
#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) -> bool {
        tokio::signal::ctrl_c().await.is_ok()
    }
}
