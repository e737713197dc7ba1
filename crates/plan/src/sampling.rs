//! How a next token is chosen, and what was chosen.

use crate::{SequenceId, TokenId};
use std::sync::Arc;

/// How to choose a token from the logits of one row.
///
/// Applied in this order, as vLLM does: allowed tokens, logit bias, penalties,
/// temperature, min-p, top-k, top-p. Log-probabilities that are reported are those of the
/// model's own logits, before any of it.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 chooses the largest logit (the lowest id among equals).
    pub temperature: f32,
    /// Keeps only the `k` largest logits; `None` keeps all.
    pub top_k: Option<u32>,
    /// Keeps the fewest tokens whose probabilities sum to at least this; 1 keeps all.
    pub top_p: f32,
    /// Drops tokens less probable than this share of the most probable one; 0 keeps all.
    pub min_p: f32,
    /// Discourages what the sequence already holds.
    pub penalties: Option<Penalties>,
    /// Added to the logits of the named tokens.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// With the token's position it decides the draw, so the same seed gives
    /// the same text whatever else is in the batch.
    pub seed: u64,
    /// The only tokens that may be drawn, where a grammar says so.
    pub allowed: Option<TokenMask>,
    /// How many alternatives to report beside the sampled token's own
    /// log-probability; `None` reports nothing.
    pub num_logprobs: Option<u32>,
}

impl SamplingParams {
    /// The largest logit, nothing else.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            penalties: None,
            logit_bias: Vec::new(),
            seed: 0,
            allowed: None,
            num_logprobs: None,
        }
    }
}

/// A set of tokens, one bit for each entry of the vocabulary: token `t` is in it
/// if bit `t % 32` of word `t / 32` is set. Tokens beyond the words are not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenMask(pub Arc<[u32]>);

impl TokenMask {
    /// Whether a token is in the set.
    pub fn contains(&self, token: TokenId) -> bool {
        let word = self.0.get(token as usize / 32).copied().unwrap_or(0);
        word >> (token % 32) & 1 == 1
    }
}

/// Penalties on tokens that a sequence holds already, with the tokens they
/// need: workers keep no sequence state, so the counts travel.
#[derive(Clone, Debug, PartialEq)]
pub struct Penalties {
    /// Divides positive and multiplies negative logits of every token in the
    /// prompt or the output (CTRL, arXiv:1909.05858); 1 does nothing.
    pub repetition: f32,
    /// Subtracted once from every token in the output; 0 does nothing.
    pub presence: f32,
    /// Subtracted for each occurrence in the output; 0 does nothing.
    pub frequency: f32,
    /// The distinct tokens of prompt and output.
    pub history: Vec<TokenCount>,
}

/// How often a sequence holds a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenCount {
    /// Which token.
    pub token: TokenId,
    /// Occurrences in the output alone; 0 for a token of the prompt only.
    pub num_in_output: u32,
}

/// The token that a slice ended in.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Whose next token it is.
    pub sequence: SequenceId,
    /// The token.
    pub token: TokenId,
    /// Its natural log-probability under the model, if asked for.
    pub logprob: Option<f32>,
    /// The most probable tokens, best first, as many as were asked for.
    pub top_logprobs: Vec<TokenLogprob>,
}

/// A token and its natural log-probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenLogprob {
    /// Which token.
    pub token: TokenId,
    /// Its natural log-probability.
    pub logprob: f32,
}
