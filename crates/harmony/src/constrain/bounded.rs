//! Work that may take too long or recurse too deep: it gets a thread with a
//! large stack, a place among few, and a moment at which nobody waits any more.

use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

/// llguidance recurses along references and properties; this is enough for the
/// worst that `bounds` lets pass. Only what is used is ever backed by memory.
const STACK_BYTES: usize = 256 * 1024 * 1024;

/// How much of such work goes on at once, abandoned work included: what hostile
/// requests can keep busy, however many they are.
const WORKERS_MAX: usize = 4;

static NUM_WORKERS: Mutex<usize> = Mutex::new(0);
static WORKER_LEFT: Condvar = Condvar::new();

/// What `work` yields, or why nothing came of it. Work that is not done at the
/// deadline is abandoned: it cannot be stopped, so it ends when it ends.
pub(super) fn until<T: Send + 'static>(
    deadline: Instant,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    let place = Place::take(deadline).ok_or("too many others are being compiled")?;
    let (sender, receiver) = sync_channel(1);
    let job = move || {
        let _place = place;
        // Nobody listens to abandoned work.
        let _ = sender.send(work());
    };
    let thread = std::thread::Builder::new().name("compile".to_owned()).stack_size(STACK_BYTES).spawn(job);
    thread.map_err(|error| format!("there is no thread to compile it in: {error}"))?;
    let left = deadline.saturating_duration_since(Instant::now());
    receiver.recv_timeout(left).map_err(|error| match error {
        RecvTimeoutError::Timeout => "it takes too long to compile".to_owned(),
        RecvTimeoutError::Disconnected => "the compiler gave up on it".to_owned(),
    })
}

/// The right to work, given back when dropped.
struct Place;

impl Place {
    /// Waits for a place, but not beyond the deadline.
    fn take(deadline: Instant) -> Option<Self> {
        let num = NUM_WORKERS.lock().unwrap_or_else(PoisonError::into_inner);
        let left = deadline.saturating_duration_since(Instant::now());
        let (mut num, waited) = WORKER_LEFT
            .wait_timeout_while(num, left, |num| *num >= WORKERS_MAX)
            .unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            return None;
        }
        *num += 1;
        Some(Self)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *NUM_WORKERS.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        WORKER_LEFT.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::{Duration, Instant};

    use super::until;

    #[test]
    fn nobody_waits_beyond_the_deadline() {
        let (release, held) = channel::<()>();
        let outcome = until(Instant::now() + Duration::from_millis(20), move || held.recv());
        assert_eq!(outcome.unwrap_err(), "it takes too long to compile");
        drop(release);
    }

    #[test]
    fn work_is_done_or_given_up() {
        let soon = || Instant::now() + Duration::from_secs(60);
        assert_eq!(until(soon(), || 5), Ok(5));
        let panics = || -> u8 { std::panic::resume_unwind(Box::new("on purpose")) };
        assert_eq!(until(soon(), panics).unwrap_err(), "the compiler gave up on it");
    }
}
