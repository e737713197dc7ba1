//! What a key may use at a time and in a minute. Limits are checked when a
//! request arrives; one that was let in is never cut off.

use super::Caller;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// A key while the server runs: who it is, and what it has used.
#[derive(Debug)]
pub struct Account {
    caller: Caller,
    max_concurrent_requests: Option<NonZeroU32>,
    num_active: AtomicU32,
    tokens: Option<Mutex<Bucket>>,
}

/// Tokens that a key may still use. It fills up within a minute, and may be
/// overdrawn: how long an answer gets is not known when it begins.
#[derive(Debug)]
struct Bucket {
    per_minute: f64,
    balance: f64,
    filled_at: Instant,
}

/// A limit that a key has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LimitReached {
    /// One of its requests must end first.
    #[error("the key has {max} requests running, which is its limit")]
    Concurrency {
        /// The limit.
        max: NonZeroU32,
    },
    /// It has used more tokens than come in.
    #[error("the key has used its tokens for this minute")]
    Tokens {
        /// When there will be some again.
        retry_after_s: u64,
    },
}

impl LimitReached {
    pub(crate) fn retry_after_s(self) -> u64 {
        match self {
            Self::Concurrency { .. } => 1,
            Self::Tokens { retry_after_s } => retry_after_s,
        }
    }
}

/// One running request of a key.
#[derive(Debug)]
pub(crate) struct Permit(Arc<Account>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.num_active.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Account {
    /// An account with these limits; `None` is none.
    pub(super) fn new(
        caller: Caller,
        max_concurrent_requests: Option<NonZeroU32>,
        tokens_per_minute: Option<NonZeroU32>,
    ) -> Self {
        let bucket = |per_minute: NonZeroU32| {
            let per_minute = f64::from(per_minute.get());
            Mutex::new(Bucket { per_minute, balance: per_minute, filled_at: Instant::now() })
        };
        let tokens = tokens_per_minute.map(bucket);
        Self { caller, max_concurrent_requests, num_active: AtomicU32::new(0), tokens }
    }

    /// An account without limits.
    pub fn unlimited(caller: Caller) -> Self {
        Self::new(caller, None, None)
    }

    /// Whose it is.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Lets a request in, or says which limit is in its way.
    pub(crate) fn admit(self: &Arc<Self>) -> Result<Permit, LimitReached> {
        if let Some(bucket) = &self.tokens {
            bucket.lock().unwrap_or_else(PoisonError::into_inner).check(Instant::now())?;
        }
        let max = self.max_concurrent_requests;
        let one_more = |active| match max {
            Some(max) if active >= max.get() => None,
            _ => Some(active + 1),
        };
        match (self.num_active.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more), max) {
            (Err(_), Some(max)) => Err(LimitReached::Concurrency { max }),
            _ => Ok(Permit(self.clone())),
        }
    }

    /// Takes what was used.
    pub(crate) fn charge(&self, num_tokens: u32) {
        if let Some(bucket) = &self.tokens {
            bucket.lock().unwrap_or_else(PoisonError::into_inner).balance -= f64::from(num_tokens);
        }
    }
}

impl Bucket {
    fn check(&mut self, now: Instant) -> Result<(), LimitReached> {
        let per_second = self.per_minute / 60.0;
        let elapsed_s = now.saturating_duration_since(self.filled_at).as_secs_f64();
        self.balance = (self.balance + elapsed_s * per_second).min(self.per_minute);
        self.filled_at = now;
        if self.balance > 0.0 {
            return Ok(());
        }
        let retry_after_s = ((-self.balance / per_second).ceil() as u64).max(1);
        Err(LimitReached::Tokens { retry_after_s })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_key_has_no_more_requests_at_a_time_than_it_may() {
        let account = Arc::new(Account::new(Caller::anonymous(), NonZeroU32::new(1), None));
        let permit = account.admit().unwrap();
        assert_eq!(account.admit().unwrap_err(), LimitReached::Concurrency { max: NonZeroU32::MIN });
        drop(permit);
        assert!(account.admit().is_ok());
    }

    #[test]
    fn an_overdrawn_key_waits_until_it_has_paid() {
        let now = Instant::now();
        let mut bucket = Bucket { per_minute: 60.0, balance: 60.0, filled_at: now };
        assert_eq!(bucket.check(now), Ok(()));
        bucket.balance -= 70.0;
        assert_eq!(bucket.check(now), Err(LimitReached::Tokens { retry_after_s: 10 }));
        assert_eq!(bucket.check(now + Duration::from_secs(11)), Ok(()));
    }

    #[test]
    fn what_was_not_used_does_not_pile_up() {
        let now = Instant::now();
        let mut bucket = Bucket { per_minute: 60.0, balance: 0.0, filled_at: now };
        bucket.check(now + Duration::from_secs(3600)).unwrap();
        assert_eq!(bucket.balance, 60.0);
    }
}
