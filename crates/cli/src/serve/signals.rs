//! Signals to the switch: the first drains, the second ends at once.

use chorale_api::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether a signal has come.
#[derive(Clone, Debug, Default)]
pub(super) struct Told(Arc<AtomicBool>);

impl Told {
    /// True from the first signal on.
    pub(super) fn is_told(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn advance(&self, shutdown: &Shutdown) {
        if self.0.swap(true, Ordering::Relaxed) {
            shutdown.now();
        } else {
            shutdown.begin();
        }
    }
}

/// Follows SIGTERM and SIGINT for as long as the runtime lives.
#[cfg(unix)]
pub(super) fn follow(shutdown: Shutdown) -> std::io::Result<Told> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let told = Told::default();
    let tell = told.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tell.advance(&shutdown);
        }
    });
    Ok(told)
}

/// Follows Ctrl-C, which is all there is.
#[cfg(not(unix))]
pub(super) fn follow(shutdown: Shutdown) -> std::io::Result<Told> {
    let told = Told::default();
    let tell = told.clone();
    tokio::spawn(async move {
        while tokio::signal::ctrl_c().await.is_ok() {
            tell.advance(&shutdown);
        }
    });
    Ok(told)
}
