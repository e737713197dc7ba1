//! Sequences that own their pages: what runs a model without a scheduler, for
//! commands that compute a known set of sequences, and for tests. Serving does
//! not come through here.

use crate::config::ModelConfig;
use crate::seat::Room;
use chorale_device::{BatchLimits, KvDtype};
use chorale_plan::{
    BlockId, BlockTable, Penalties, Rank, SamplingParams, SequenceId, SequenceSlice, SliceTokens, TokenCount,
    TokenId,
};
use std::collections::BTreeMap;
use std::ops::Range;

/// How many sequences there are and how long they get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OfflineLimits {
    /// Sequences at a time.
    pub num_sequences: usize,
    /// Tokens of a sequence, prompt and output.
    pub max_tokens: usize,
    /// Tokens of a slice.
    pub max_slice_tokens: usize,
    /// Rows of a step.
    pub max_rows: usize,
    /// Positions of a KV page.
    pub block_size: usize,
}

impl OfflineLimits {
    /// The room for all sequences at their longest. Sliding layers keep the
    /// window and one slice.
    pub fn room(&self, config: &ModelConfig, kv_dtype: KvDtype) -> Room {
        Room {
            limits: BatchLimits {
                max_rows: self.max_rows,
                max_slices: self.num_sequences,
                max_logit_rows: self.num_sequences.max(MAX_LOGIT_ROWS),
            },
            num_homes: 1,
            block_size: self.block_size,
            num_full_blocks: self.num_sequences * self.full_pages(),
            num_sliding_blocks: self.num_sequences * self.sliding_pages(config),
            kv_dtype,
            has_halves: false,
        }
    }

    fn full_pages(&self) -> usize {
        self.max_tokens.div_ceil(self.block_size)
    }

    /// A window may begin and a slice may end in the middle of a page.
    fn sliding_pages(&self, config: &ModelConfig) -> usize {
        let window = config.window().map_or(0, |window| window as usize);
        let span = (window + self.max_slice_tokens).div_ceil(self.block_size) + 1;
        span.min(self.full_pages())
    }
}

/// Rows of logits that are computed at a time when whole prompts are compared.
const MAX_LOGIT_ROWS: usize = 32;

/// One sequence with pages of its own.
#[derive(Clone, Debug)]
pub struct OfflineSequence {
    id: SequenceId,
    tokens: Vec<TokenId>,
    num_prompt_tokens: usize,
    num_computed: usize,
    limits: OfflineLimits,
    window: Option<u32>,
    sliding_pages: usize,
}

impl OfflineSequence {
    /// The `index`-th of the sequences that the limits name.
    pub fn new(index: usize, prompt: Vec<TokenId>, limits: OfflineLimits, config: &ModelConfig) -> Self {
        assert!(index < limits.num_sequences && prompt.len() <= limits.max_tokens);
        Self {
            id: SequenceId(index as u64),
            num_prompt_tokens: prompt.len(),
            tokens: prompt,
            num_computed: 0,
            limits,
            window: config.window(),
            sliding_pages: limits.sliding_pages(config),
        }
    }

    /// Prompt and output.
    pub fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    /// What was generated.
    pub fn output(&self) -> &[TokenId] {
        &self.tokens[self.num_prompt_tokens..]
    }

    /// Tokens whose keys and values are yet to be computed.
    pub fn num_pending(&self) -> usize {
        self.tokens.len() - self.num_computed
    }

    /// The next `count` tokens, or as many as a slice may have; the slice is
    /// sampled if it reaches the end. The sequence counts them as computed.
    pub fn take_slice(&mut self, count: usize, sampling: &SamplingParams) -> SequenceSlice {
        let count = count.min(self.num_pending()).min(self.limits.max_slice_tokens);
        let range = self.num_computed..self.num_computed + count;
        self.num_computed = range.end;
        let positions = range.start as u32..range.end as u32;
        let block_size = self.limits.block_size as u32;
        let first_full = self.id.0 as usize * self.limits.full_pages();
        let first_sliding = self.id.0 as usize * self.sliding_pages;
        let span = |window| BlockTable::span(positions.clone(), window, block_size);
        let full = table(span(None), |page| first_full + page);
        // A ring: the page of a block that left the window is taken again.
        let sliding = table(span(self.window), |page| first_sliding + page % self.sliding_pages);
        SequenceSlice {
            sequence: self.id,
            home: Rank(0),
            num_computed: positions.start,
            full_blocks: full,
            sliding_blocks: sliding,
            sample: (range.end == self.tokens.len()).then(|| self.with_history(sampling)),
            tokens: SliceTokens::Known(self.tokens[range].to_vec()),
        }
    }

    /// Appends a generated token.
    pub fn push(&mut self, token: TokenId) {
        assert!(self.tokens.len() < self.limits.max_tokens, "the sequence's pages are full");
        self.tokens.push(token);
    }

    fn with_history(&self, sampling: &SamplingParams) -> SamplingParams {
        let penalties = sampling.penalties.as_ref().map(|penalties| {
            let mut counts = BTreeMap::new();
            for (index, &token) in self.tokens.iter().enumerate() {
                *counts.entry(token).or_insert(0) += u32::from(index >= self.num_prompt_tokens);
            }
            let history =
                counts.into_iter().map(|(token, num_in_output)| TokenCount { token, num_in_output });
            Penalties { history: history.collect(), ..penalties.clone() }
        });
        SamplingParams { penalties, ..sampling.clone() }
    }
}

fn table(span: Range<u32>, page: impl Fn(usize) -> usize) -> BlockTable {
    let blocks = span.clone().map(|block| BlockId(page(block as usize) as u32));
    BlockTable { first: span.start, blocks: blocks.collect() }
}
