//! What happens on one connection, and when that is too little: no request, or
//! a response that its client does not read. It watches; closing is not its job.

use super::onlooker::{Onlooker, Polled};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How little may happen on a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// Until the head of the first request has arrived.
    pub(super) first_head: Duration,
    /// Between requests.
    pub(super) idle: Duration,
    /// Between two looks of the client at a response that goes on.
    pub(super) stalled: Duration,
}

/// What happens on one connection. Clones are the same connection.
#[derive(Clone, Debug)]
pub(super) struct Activity(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    patience: Patience,
    /// When the connection was opened, or the last response ended.
    quiet_since: Instant,
    had_request: bool,
    next: u64,
    /// Requests whose responses are not complete. With the time since which
    /// there is more of it and nobody asks for more.
    requests: BTreeMap<u64, Option<Instant>>,
}

/// What is to become of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Look again then.
    Wait(Instant),
    /// It has no request: close it politely.
    Idle,
    /// Its client does not read: cut it off.
    Stalled,
}

impl Activity {
    pub(super) fn new(patience: Patience) -> Self {
        Self(Arc::new(Mutex::new(State {
            patience,
            quiet_since: Instant::now(),
            had_request: false,
            next: 0,
            requests: BTreeMap::new(),
        })))
    }

    /// A request has arrived; it is over when the value is dropped.
    pub(super) fn begin(&self) -> Watched {
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        state.had_request = true;
        state.requests.insert(number, None);
        Watched { activity: self.clone(), number }
    }

    pub(super) fn judge(&self, now: Instant) -> Verdict {
        let state = self.state();
        let Patience { first_head, idle, stalled } = state.patience;
        if state.requests.is_empty() {
            let deadline = state.quiet_since + if state.had_request { idle } else { first_head };
            return if now >= deadline { Verdict::Idle } else { Verdict::Wait(deadline) };
        }
        let oldest = state.requests.values().flatten().min();
        let deadline = oldest.map_or(now + stalled, |since| *since + stalled);
        if now >= deadline { Verdict::Stalled } else { Verdict::Wait(deadline) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request of a connection, until its response is complete.
#[derive(Debug)]
pub(super) struct Watched {
    activity: Activity,
    number: u64,
}

impl Watched {
    fn set_stalled(&self, since: Option<Instant>) {
        self.activity.state().requests.insert(self.number, since);
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let mut state = self.activity.state();
        state.requests.remove(&self.number);
        state.quiet_since = Instant::now();
    }
}

impl Onlooker for Watched {
    /// Whoever was given a frame comes back at once unless the client's side is
    /// full; whoever was given nothing waits for us.
    fn asked(&mut self, polled: &Polled) {
        self.set_stalled(polled.is_ready().then(Instant::now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience {
        first_head: Duration::from_secs(1),
        idle: Duration::from_secs(5),
        stalled: Duration::from_secs(3),
    };

    async fn pass(seconds: u64) {
        tokio::time::advance(Duration::from_secs(seconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_head_is_waited_for_less_than_the_next() {
        let activity = Activity::new(PATIENCE);
        assert_eq!(activity.judge(Instant::now()), Verdict::Wait(Instant::now() + PATIENCE.first_head));
        pass(1).await;
        assert_eq!(activity.judge(Instant::now()), Verdict::Idle);
        drop(activity.begin());
        pass(4).await;
        assert!(matches!(activity.judge(Instant::now()), Verdict::Wait(_)));
        pass(1).await;
        assert_eq!(activity.judge(Instant::now()), Verdict::Idle);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_takes_long_is_not_a_stalled_one() {
        let activity = Activity::new(PATIENCE);
        let watched = activity.begin();
        pass(1000).await;
        assert!(matches!(activity.judge(Instant::now()), Verdict::Wait(_)));
        watched.set_stalled(Some(Instant::now()));
        pass(3).await;
        assert_eq!(activity.judge(Instant::now()), Verdict::Stalled);
        watched.set_stalled(None);
        assert!(matches!(activity.judge(Instant::now()), Verdict::Wait(_)));
    }
}
