//! One step's batch as columns: what a device needs to know of the sequences
//! in it. Everything here is copied into buffers of the device at the start of
//! a step, and operations read it from there.

use crate::philox;
use std::ops::Range;
use std::sync::Arc;

/// The rows of one step, a row for each token that is computed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Columns {
    /// The token of each row. Rows named in `feeds` hold 0 here.
    pub tokens: Vec<u32>,
    /// Rows whose token is one that the step before sampled.
    pub feeds: Vec<Feed>,
    /// The position of each row in its sequence, counted from 0.
    pub positions: Vec<u32>,
    /// Which rows belong to which sequence, in order; together all rows.
    pub slices: Vec<SliceColumns>,
    /// The rows whose logits are wanted, in any order.
    pub logit_rows: Vec<u32>,
    /// How to draw a token from each row of logits. Empty when the logits
    /// themselves are read, else as long as `logit_rows`.
    pub draws: Vec<Draw>,
}

/// A row that takes its token from the samples of the step before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feed {
    /// The row of this step.
    pub row: u32,
    /// The index into the samples of the step before.
    pub sample: u32,
}

/// The rows of one sequence, at consecutive positions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceColumns {
    /// Rows of the step.
    pub rows: Range<u32>,
    /// Pages of layers without a window.
    pub full: Table,
    /// Pages of layers with a window.
    pub sliding: Table,
}

/// A run of pages: `pages[i]` keeps positions
/// `(first + i) * block_size .. (first + i + 1) * block_size`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// The number of the first page that is held, counted in pages from position 0.
    pub first: u32,
    /// Page numbers in the pool.
    pub pages: Vec<u32>,
}

/// How to draw one token from a row of logits.
///
/// The order is: allowed tokens, bias, penalties, temperature, min-p, top-k, top-p.
#[derive(Clone, Debug, PartialEq)]
pub struct Draw {
    /// 0 takes the largest logit, the lowest id among equals.
    pub temperature: f32,
    /// Keeps the `k` largest; 0 keeps all.
    pub top_k: u32,
    /// Keeps the fewest tokens whose probabilities sum to at least this.
    pub top_p: f32,
    /// Drops tokens below this share of the most probable one.
    pub min_p: f32,
    /// The only tokens that may be drawn: bit `t % 32` of word `t / 32` for token `t`.
    pub allowed: Option<Arc<[u32]>>,
    /// Added to single logits.
    pub bias: Vec<(u32, f32)>,
    /// Penalties and the tokens that they fall on.
    pub penalties: Option<PenaltyTerms>,
    /// The key of the counter-based generator.
    pub seed: u64,
    /// The position of the drawn token in its sequence: the generator's counter.
    pub position: u32,
    /// How many of the most probable tokens to report; `None` reports no
    /// log-probabilities at all.
    pub num_logprobs: Option<u32>,
}

/// Penalties, and the distinct tokens of the sequence with their counts.
#[derive(Clone, Debug, PartialEq)]
pub struct PenaltyTerms {
    /// Divides positive and multiplies negative logits.
    pub repetition: f32,
    /// Subtracted once if the output holds the token.
    pub presence: f32,
    /// Subtracted for each occurrence in the output.
    pub frequency: f32,
    /// Token, and its occurrences in the output.
    pub history: Vec<(u32, u32)>,
}

impl Columns {
    /// How many rows the step computes.
    pub fn num_rows(&self) -> usize {
        self.tokens.len()
    }
}

impl Draw {
    /// The uniform number in `[0, 1)` that decides the draw.
    pub fn uniform(&self) -> f64 {
        philox::uniform(self.seed, self.position)
    }
}
