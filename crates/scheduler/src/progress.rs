//! What comes out: tokens, ends, and numbers to look at. It says what happened
//! to a sequence, not what to tell the client.

use chorale_plan::{Rank, Sample, SequenceId, TokenId};

/// One thing that happened to a sequence.
#[derive(Clone, Debug, PartialEq)]
pub enum Progress {
    /// A token was appended.
    Sampled(Sample),
    /// The sequence is over; nothing follows.
    Finished {
        /// Which.
        sequence: SequenceId,
        /// Why.
        reason: FinishReason,
        /// What it took.
        usage: Usage,
    },
}

/// Why a sequence is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// It sampled this token, the last of its output.
    StopToken(TokenId),
    /// It has as many tokens as it may have.
    Length,
    /// The caller left.
    Cancelled,
    /// Its deadline passed.
    Deadline,
    /// It waited too long for its first slice; another time may be better.
    WaitedTooLong,
    /// The homes changed, and none of them can hold it.
    NoRoom,
}

/// What a sequence took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Of these, found in the prefix cache when the sequence was first admitted.
    pub cached_tokens: u32,
    /// Sampled tokens, the stop token included.
    pub output_tokens: u32,
    /// From its arrival to its first slice; `None` if it never got one.
    pub queue_ms: Option<u64>,
    /// How often it lost its pages and was computed again.
    pub num_preemptions: u32,
}

/// The scheduler as metrics see it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    /// Sequences that hold pages.
    pub num_running: u32,
    /// Sequences that wait for their first slice.
    pub num_waiting_capacity: u32,
    /// Sequences that lost their pages and wait to be computed again.
    pub num_waiting_deferred: u32,
    /// Prompt tokens of those that wait for their first slice.
    pub waiting_tokens: u64,
    /// Tokens looked up in the prefix cache, since the start. A preempted
    /// sequence that comes back is not counted again.
    pub prefix_cache_queries_tokens: u64,
    /// Of these, found.
    pub prefix_cache_hits_tokens: u64,
    /// Times that a sequence lost its pages to another, since the start.
    pub num_preemptions: u64,
    /// The pools of each home, in the order of ranks.
    pub homes: Vec<HomeStats>,
}

impl Stats {
    /// Sequences that hold no pages.
    pub fn num_waiting(&self) -> u32 {
        self.num_waiting_capacity + self.num_waiting_deferred
    }

    /// The share of pages in use, from 0 to 1, of the scarcer pool over all homes.
    pub fn kv_usage(&self) -> f64 {
        let usage = |pool: fn(&HomeStats) -> PoolStats| {
            let (held, all) = self.homes.iter().map(pool).fold((0, 0), |(held, all), pool| {
                (held + u64::from(pool.num_held), all + u64::from(pool.num_blocks))
            });
            if all == 0 { 0.0 } else { held as f64 / all as f64 }
        };
        usage(|home| home.full).max(usage(|home| home.sliding))
    }
}

/// One home as metrics see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HomeStats {
    /// Its name.
    pub rank: Rank,
    /// Sequences that hold pages here.
    pub num_running: u32,
    /// Pages of the full-attention layers.
    pub full: PoolStats,
    /// Pages of the sliding layers.
    pub sliding: PoolStats,
}

/// Pages of a pool. What is neither held nor cached is blank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolStats {
    /// All of them.
    pub num_blocks: u32,
    /// In use by sequences.
    pub num_held: u32,
    /// Not in use, but kept to be found again until the room is needed.
    pub num_cached: u32,
}
