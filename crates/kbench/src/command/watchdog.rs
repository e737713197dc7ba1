//! Looks whether the GPU comes back, from a thread beside those that wait for it.

use crate::watched::Ledger;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

/// From one look to the next, at most.
const LOOKS: Duration = Duration::from_millis(500);

/// Looks until it is dropped.
pub(super) struct Watchdog {
    _awake: SyncSender<()>,
}

/// Looks at a ledger; where a call does not come back in time, barks once and says
/// which kernels are at it.
pub(super) fn watch(
    ledger: &Arc<Ledger>,
    patience: Duration,
    bark: impl FnOnce(String) + Send + 'static,
) -> Watchdog {
    let ledger = Arc::clone(ledger);
    let (awake, asleep) = sync_channel(0);
    std::thread::spawn(move || {
        while let Err(RecvTimeoutError::Timeout) = asleep.recv_timeout(LOOKS.min(patience / 2)) {
            if let Some((call, waited)) = ledger.oldest_call()
                && waited >= patience
            {
                let pending = ledger.pending();
                return bark(format!(
                    "the GPU hangs: no answer to `{call}` for {:.1} s; kernels not known to be done: {pending}",
                    waited.as_secs_f64()
                ));
            }
        }
    });
    Watchdog { _awake: awake }
}
