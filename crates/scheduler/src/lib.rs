//! Which tokens run next: pure decisions over sequences, pages and budgets.
//!
//! A [`Scheduler`] takes [`Request`]s, gives a [`StepPlan`](chorale_plan::StepPlan)
//! for each step and is told what the step sampled. Deliberately absent:
//! workers, threads, clocks (time is an argument), text and I/O.
//!
//! Invariant: same calls, same plans. Pages are conserved: blank, idle and held
//! ones are all there are, in every pool, after every call. A page is written by
//! the one sequence that took it, and shared only when computed to its end.
//!
//! # The order
//!
//! At each home, first every sequence that has nothing left to catch up with
//! gets its next token, by priority and arrival. What is left of the home's
//! budget goes to those that have more to compute, admitted or not, by
//!
//! 1. priority, the lower number first;
//! 2. what their key has been given so far: prompt tokens computed and tokens
//!    sampled, each times its cost and divided by the key's weight, the least
//!    first. A key that comes to the queue starts no lower than the least served
//!    key that is there;
//! 3. arrival.
//!
//! Each gets as long a slice as budget and pages allow, so a long prompt is cut,
//! and between its slices other keys have their turn. The first that cannot be
//! admitted holds back all that are not admitted yet: nobody is overtaken for
//! being large.
//!
//! When a sequence finds no page for its next token, the home's sequence of the
//! highest priority number, the latest arrival among those, loses its pages and
//! is computed again later, from its old place in the line. The first by priority
//! and arrival thus never loses anything, and since no request is let in that
//! does not fit a home alone, it always finishes.
//!
//! A request goes to the home that has the longest prefix of it cached, among
//! equals to the one with the most spare pages, then to the lowest rank; homes
//! that are too crowded or lack the room are passed over.

mod block_pool;
mod commit;
mod config;
mod history;
mod hold;
mod home;
mod invariants;
mod pages;
mod plan;
mod prefix_cache;
mod progress;
mod queue;
mod request;
mod scheduler;
mod sequence;
mod shares;

pub use config::{Config, ConfigError, HomeConfig};
pub use progress::{FinishReason, HomeStats, PoolStats, Progress, Stats, Usage};
pub use request::{Pool, Rejected, Request, Share};
pub use scheduler::Scheduler;
