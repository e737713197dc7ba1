//! What is to be done when an epoch ends: by those who end it, for those who
//! would not notice.

use std::sync::{Mutex, MutexGuard, PoisonError};

type Ending = Box<dyn FnOnce() + Send>;

/// What waits for the end.
#[derive(Default)]
pub(crate) struct Endings(Mutex<State>);

#[derive(Default)]
struct State {
    is_over: bool,
    waiting: Vec<Ending>,
}

impl std::fmt::Debug for Endings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Endings")
    }
}

impl Endings {
    /// Waits for the end, if it has not come.
    pub(crate) fn add(&self, then: Ending) {
        let mut state = self.lock();
        if state.is_over {
            drop(state);
            run(vec![then]);
        } else {
            state.waiting.push(then);
        }
    }

    /// This is the end.
    pub(crate) fn end(&self) {
        let mut state = self.lock();
        state.is_over = true;
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        run(waiting);
    }

    /// There will be no end: whoever could bring it about is gone.
    pub(crate) fn forget(&self) {
        self.lock().waiting.clear();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Each on a thread of its own: whoever ends an epoch waits for nothing, and one
/// ending may wait for what another one ends.
fn run(endings: Vec<Ending>) {
    for then in endings {
        if let Err(error) = std::thread::Builder::new().name("ending".to_owned()).spawn(then) {
            tracing::error!(%error, "an epoch has not ended everywhere");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    #[test]
    fn what_waits_for_the_end_is_done_once_and_what_comes_late_at_once() {
        let endings = Endings::default();
        let (done, was_done) = mpsc::channel();
        let then = |number: u32| {
            let done = done.clone();
            Box::new(move || done.send(number).unwrap())
        };
        endings.add(then(1));
        assert!(was_done.try_recv().is_err());
        endings.end();
        assert_eq!(was_done.recv_timeout(Duration::from_secs(10)), Ok(1));
        endings.end();
        endings.add(then(2));
        assert_eq!(was_done.recv_timeout(Duration::from_secs(10)), Ok(2));
    }

    #[test]
    fn what_waits_for_another_ending_is_not_before_it() {
        let endings = Endings::default();
        let (ended, has_ended) = mpsc::channel();
        let (done, was_done) = mpsc::channel();
        endings.add(Box::new(move || done.send(has_ended.recv_timeout(Duration::from_secs(10))).unwrap()));
        endings.add(Box::new(move || ended.send(7).unwrap()));
        endings.end();
        assert_eq!(was_done.recv_timeout(Duration::from_secs(10)), Ok(Ok(7)));
    }

    #[test]
    fn without_an_end_nothing_is_done() {
        let endings = Endings::default();
        let (done, was_done) = mpsc::channel();
        endings.add(Box::new(move || done.send(1).unwrap()));
        endings.forget();
        endings.end();
        assert!(was_done.recv_timeout(Duration::from_secs(10)).is_err());
    }
}
