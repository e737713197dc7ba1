//! What comes in: a prompt, how to go on from it, and what it may cost; and why
//! it may be refused. Ranges of sampling parameters and token ids are checked
//! at the front door and by the workers, not here.

use std::num::NonZeroU32;

use chorale_plan::{SamplingParams, TokenId};

/// A prompt to be continued.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// What the output continues. Never empty.
    pub prompt: Vec<TokenId>,
    /// Tokens to sample at most; the context may end the output before.
    pub max_tokens: NonZeroU32,
    /// Tokens to sample at least: until then a stop token is made impossible,
    /// and does not stop.
    pub min_tokens: u32,
    /// How to sample. The history of the penalties is filled in for each slice;
    /// what stands there is replaced.
    pub sampling: SamplingParams,
    /// Tokens that end this sequence, beside the configured ones. The token
    /// that ended it is part of the output.
    pub stop_tokens: Vec<TokenId>,
    /// Go on after the configured end tokens.
    pub ignore_eos: bool,
    /// Plan a token only when the one before it is known, though steps may be
    /// planned ahead: its draw depends on it.
    pub known_tokens_only: bool,
    /// Lower runs first.
    pub priority: i32,
    /// Who pays.
    pub share: Share,
    /// When nobody waits for the answer any more, on the scheduler's clock.
    pub deadline_ms: Option<u64>,
    /// Find this prompt's pages, and leave its own to be found.
    pub prefix_caching: bool,
    /// Pages are found only by requests with the same salt.
    pub cache_salt: Vec<u8>,
}

impl Request {
    /// A greedy continuation with nothing special about it.
    pub fn new(prompt: Vec<TokenId>, max_tokens: NonZeroU32) -> Self {
        Self {
            prompt,
            max_tokens,
            min_tokens: 0,
            sampling: SamplingParams::greedy(),
            stop_tokens: Vec::new(),
            ignore_eos: false,
            known_tokens_only: false,
            priority: 0,
            share: Share::default(),
            deadline_ms: None,
            prefix_caching: true,
            cache_salt: Vec::new(),
        }
    }
}

/// Whose account a request's tokens are charged to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// The payer, such as a number for an API key.
    pub key: u64,
    /// A key of weight 2 gets twice the tokens of a key of weight 1 while both
    /// have work. The latest request's weight holds for the key.
    pub weight: NonZeroU32,
}

impl Default for Share {
    /// The account of those who name none.
    fn default() -> Self {
        Self { key: 0, weight: NonZeroU32::MIN }
    }
}

/// Why a request did not get in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// There is nothing to continue.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// The prompt leaves no room for a single token.
    #[error("the prompt has {prompt_tokens} tokens, the context ends at {max_context_tokens}")]
    ContextExceeded {
        /// In the prompt.
        prompt_tokens: u64,
        /// Prompt and output together.
        max_context_tokens: u32,
    },
    /// No amount of waiting helps: no home's pool holds it at its longest.
    #[error("{needed} KV blocks of the {pool} layers are needed, the cache has {available}")]
    TooLong {
        /// Which pool is too small.
        pool: Pool,
        /// Pages at the sequence's longest.
        needed: u32,
        /// Pages of the largest home.
        available: u32,
    },
    /// The caller may try again later: the backlog, divided by the tokens that
    /// are computed in a second, says when.
    #[error("the queue is full ({waiting_requests} requests with {waiting_tokens} tokens wait)")]
    QueueFull {
        /// Requests that wait for their first slice.
        waiting_requests: u32,
        /// Their prompt tokens.
        waiting_tokens: u64,
    },
}

/// One of a home's two pools of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    /// Pages of the full-attention layers, which grow with the sequence.
    Full,
    /// Pages of the sliding layers, of which only the window is held.
    Sliding,
}

impl std::fmt::Display for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Full => "full",
            Self::Sliding => "sliding",
        })
    }
}
