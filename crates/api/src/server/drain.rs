//! Ending in order: first nothing new is let in, then everything is cut off.
//! Both doors look at one switch; it knows nothing of signals.

use tokio::sync::watch;

/// How far the end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Requests are taken.
    Serving,
    /// Running requests may end, new ones are refused.
    Draining,
    /// Nothing is waited for.
    Now,
}

/// The switch. Clones are the same one; it moves forward only.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Sender<Phase>);

impl Default for Shutdown {
    fn default() -> Self {
        Self(watch::channel(Phase::Serving).0)
    }
}

impl Shutdown {
    /// Begins to drain: for the first signal.
    pub fn begin(&self) {
        self.advance(Phase::Draining);
    }

    /// Ends without waiting any longer: for the second signal.
    pub fn now(&self) {
        self.advance(Phase::Now);
    }

    fn advance(&self, to: Phase) {
        self.0.send_if_modified(|phase| {
            let advances = *phase < to;
            *phase = to.max(*phase);
            advances
        });
    }

    /// How far the end has come.
    pub fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    /// Returns when the end has come at least as far as this.
    pub async fn reached(&self, phase: Phase) {
        let mut phases = self.0.subscribe();
        // The sender lives as long as `self`.
        let _ = phases.wait_for(|now| *now >= phase).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_switch_moves_forward_only() {
        let shutdown = Shutdown::default();
        shutdown.now();
        shutdown.begin();
        assert_eq!(shutdown.phase(), Phase::Now);
        shutdown.reached(Phase::Draining).await;
    }
}
