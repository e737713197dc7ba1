//! Signals to the switch: the first drains, the second ends at once.

use chorale_api::Shutdown;

/// Follows SIGTERM and SIGINT for as long as the runtime lives.
#[cfg(unix)]
pub(super) fn follow(shutdown: Shutdown) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        for is_first in [true, false] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if is_first {
                shutdown.begin();
            } else {
                shutdown.now();
            }
        }
    });
    Ok(())
}

/// Follows Ctrl-C, which is all there is.
#[cfg(not(unix))]
pub(super) fn follow(shutdown: Shutdown) -> std::io::Result<()> {
    tokio::spawn(async move {
        for is_first in [true, false] {
            if tokio::signal::ctrl_c().await.is_err() {
                return;
            }
            if is_first {
                shutdown.begin();
            } else {
                shutdown.now();
            }
        }
    });
    Ok(())
}
