//! Who asks: the key that a request came with, resolved. Requests without a
//! key come from the anonymous caller, where keys are not required.

use chorale_coordinator::Share;
use std::num::NonZeroU32;
use std::sync::Arc;

/// Who asks, and for whose account the engine computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The name of the key, for logs and metrics; `None` without a key.
    pub name: Option<Arc<str>>,
    /// Its account in the scheduler. 0 is everyone without a key.
    pub key: u64,
    /// Its part of the engine, beside others that have work.
    pub weight: NonZeroU32,
    /// Added to what a request asks for; lower runs first.
    pub priority: i32,
    /// Sees and cancels the requests of others as well.
    pub is_admin: bool,
}

impl Caller {
    /// Everyone, where no keys are required: nobody there to hide from.
    pub fn anonymous() -> Self {
        Self { name: None, key: 0, weight: NonZeroU32::MIN, priority: 0, is_admin: true }
    }

    /// The account, as the scheduler wants it.
    pub fn share(&self) -> Share {
        Share { key: self.key, weight: self.weight }
    }
}
