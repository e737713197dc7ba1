//! How long to wait before the next try. Workers that lost the same coordinator
//! at the same moment come back one by one.

use super::Patience;
use std::time::Duration;

pub(super) struct Backoff {
    first: Duration,
    last: Duration,
    pause: Duration,
    /// Which worker this is, and how often it has tried.
    draw: u64,
}

impl Backoff {
    pub(super) fn new(session: u64, patience: &Patience) -> Self {
        let Patience { first_pause, last_pause, .. } = *patience;
        Self { first: first_pause, last: last_pause, pause: first_pause, draw: session }
    }

    /// There was a coordinator.
    pub(super) fn reset(&mut self) {
        self.pause = self.first;
    }

    /// Twice as long each time, less up to a half of it.
    pub(super) fn next_pause(&mut self) -> Duration {
        let pause = self.pause.min(self.last);
        self.pause = (pause * 2).min(self.last);
        self.draw = self.draw.wrapping_add(0x9e37_79b9_7f4a_7c15);
        // SplitMix64's mixing (Steele et al., OOPSLA 2014), one round of it.
        let mixed = (self.draw ^ self.draw >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let share = (mixed >> 32) as f64 / f64::from(u32::MAX);
        pause.mul_f64(1.0 - share / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_bound_and_differ_between_workers() {
        let patience = Patience::default();
        let pauses = |session| {
            let mut backoff = Backoff::new(session, &patience);
            (0..20).map(|_| backoff.next_pause()).collect::<Vec<_>>()
        };
        let (one, other) = (pauses(1), pauses(2));
        assert_eq!(one, pauses(1));
        assert_ne!(one, other);
        let mut expected = patience.first_pause;
        for pause in one {
            assert!((expected / 2..=expected).contains(&pause), "{pause:?} of {expected:?}");
            expected = (expected * 2).min(patience.last_pause);
        }
    }

    #[test]
    fn a_coordinator_that_was_there_is_tried_again_soon() {
        let mut backoff = Backoff::new(1, &Patience::default());
        for _ in 0..20 {
            backoff.next_pause();
        }
        backoff.reset();
        assert!(backoff.next_pause() <= Patience::default().first_pause);
    }
}
