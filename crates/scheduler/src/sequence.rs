//! One sequence: its tokens, how far they are planned and computed, where its
//! pages lie, and when it is over. It decides nothing about others and takes no
//! pages itself.

use chorale_plan::{
    BlockTable, Penalties, Rank, SamplingParams, SequenceId, SequenceSlice, SliceTokens, TokenId,
};

use crate::history::History;
use crate::pages::PageSize;
use crate::prefix_cache::PageNames;
use crate::progress::{FinishReason, Usage};
use crate::queue::Place;
use crate::request::Request;
use crate::shares::Account;

/// Added to the logit of a token that must not come: beyond any real logit, and
/// finite, as workers ask of a bias.
const NEVER: f32 = -1e30;

/// Where a sequence stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// In the queue, without pages.
    Waiting,
    /// At a home and in the queue: of its known tokens some are not planned.
    Filling,
    /// At a home: all known tokens are planned, and one comes with each step.
    Sampling,
    /// Lost its pages to another. They return when its last slice in flight is
    /// committed, and it waits again.
    Leaving,
    /// Over. Its pages return when its last slice in flight is committed.
    Over,
}

#[derive(Clone, Debug)]
pub(crate) struct Sequence {
    pub(crate) id: SequenceId,
    /// All but the prompt, which is the beginning of `tokens`.
    request: Request,
    pub(crate) account: Account,
    pub(crate) phase: Phase,
    /// It waits, but not in the queue.
    pub(crate) is_held: bool,
    /// Index of its home, while it has one.
    pub(crate) home: usize,
    /// Prompt and known output.
    pub(crate) tokens: Vec<TokenId>,
    num_prompt: u32,
    /// Tokens at its longest.
    max_tokens: u32,
    /// Positions whose slices are committed.
    pub(crate) num_computed: u32,
    /// Positions whose slices are planned; those not yet committed are in flight.
    pub(crate) num_planned: u32,
    /// Tokens that steps in flight will have sampled.
    pub(crate) num_unknown: u32,
    pub(crate) num_in_flight: u32,
    /// The latest step that samples for it.
    sampled_in: u64,
    /// Pages of the full-attention layers, from position 0.
    pub(crate) full: BlockTable,
    /// Pages of the sliding layers; ends where `full` ends.
    pub(crate) sliding: BlockTable,
    pub(crate) names: PageNames,
    /// Its pages that the pools know by name.
    pub(crate) num_named: u32,
    /// Prompt tokens that its account has paid for or got for nothing.
    num_paid: u32,
    history: Option<History>,
    pub(crate) arrived_ms: u64,
    /// Under what time it is listed to be looked at.
    pub(crate) expires_ms: Option<u64>,
    pub(crate) usage: Usage,
}

impl Sequence {
    pub(crate) fn new(
        id: SequenceId,
        mut request: Request,
        account: Account,
        max_tokens: u32,
        arrived_ms: u64,
    ) -> Self {
        let tokens = std::mem::take(&mut request.prompt);
        let num_prompt = tokens.len() as u32;
        Self {
            id,
            account,
            phase: Phase::Waiting,
            is_held: false,
            home: 0,
            tokens,
            num_prompt,
            max_tokens,
            num_computed: 0,
            num_planned: 0,
            num_unknown: 0,
            num_in_flight: 0,
            sampled_in: 0,
            full: BlockTable::default(),
            sliding: BlockTable::default(),
            names: PageNames::new(&request.cache_salt),
            num_named: 0,
            num_paid: 0,
            history: None,
            arrived_ms,
            expires_ms: None,
            usage: Usage { prompt_tokens: num_prompt, ..Usage::default() },
            request,
        }
    }

    pub(crate) fn place(&self, slot: usize) -> Place {
        Place { priority: self.request.priority, sequence: self.id, slot, account: self.account }
    }

    pub(crate) fn num_prompt(&self) -> u32 {
        self.num_prompt
    }

    pub(crate) fn deadline_ms(&self) -> Option<u64> {
        self.request.deadline_ms
    }

    pub(crate) fn wants_prefix_caching(&self) -> bool {
        self.request.prefix_caching
    }

    /// True in the phases that stand in the queue, for one that is not held.
    pub(crate) fn is_queued(&self) -> bool {
        matches!(self.phase, Phase::Waiting | Phase::Filling) && !self.is_held
    }

    /// True once it had a slice, even if all is to be computed again.
    pub(crate) fn has_started(&self) -> bool {
        self.usage.queue_ms.is_some()
    }

    /// Positions that are computed at its longest: the last token is not.
    pub(crate) fn max_positions(&self) -> u32 {
        self.max_tokens - 1
    }

    /// Tokens that the next step, after `step`, could compute.
    pub(crate) fn num_pending(&self, step: u64) -> u32 {
        let num_known = self.tokens.len() as u32;
        if self.num_planned < num_known {
            return num_known - self.num_planned;
        }
        // Only the step just before can be fed from, the token after the last
        // is not wanted, and penalties need to know what was sampled.
        let fed = self.num_unknown > 0
            && self.sampled_in == step
            && num_known + self.num_unknown < self.max_tokens
            && !self.request.known_tokens_only
            && self.request.sampling.penalties.is_none();
        u32::from(fed)
    }

    /// Plans the next `count` tokens as a part of `step`. The tables cover them.
    pub(crate) fn slice(
        &mut self,
        count: u32,
        step: u64,
        home: Rank,
        size: PageSize,
        eos_tokens: &[TokenId],
    ) -> SequenceSlice {
        let range = self.num_planned as usize..(self.num_planned + count) as usize;
        let tokens = match self.tokens.get(range.clone()) {
            Some(known) => SliceTokens::Known(known.to_vec()),
            None => SliceTokens::SampledBefore,
        };
        let is_last = range.end == self.tokens.len() + self.num_unknown as usize;
        let sample = is_last.then(|| self.sampling(eos_tokens));
        let slice = SequenceSlice {
            sequence: self.id,
            home,
            tokens,
            num_computed: self.num_planned,
            full_blocks: self.full.clone(),
            sliding_blocks: self.sliding_from(size.first_sliding_page(self.num_planned)),
            sample,
        };
        self.num_planned = range.end as u32;
        self.num_in_flight += 1;
        if is_last {
            self.num_unknown += 1;
            self.sampled_in = step;
        }
        slice
    }

    /// Prompt tokens among the next `count` that are to be charged: each is
    /// once, however often it is computed.
    pub(crate) fn pay(&mut self, count: u32) -> u32 {
        let paid = self.num_prompt.min(self.num_planned + count);
        let num_unpaid = paid.saturating_sub(self.num_paid);
        self.num_paid += num_unpaid;
        num_unpaid
    }

    /// Starts behind `num_tokens` positions that were found computed.
    pub(crate) fn skip(&mut self, num_tokens: u32) {
        self.num_computed = num_tokens;
        self.num_planned = num_tokens;
        self.num_paid = self.num_paid.max(num_tokens.min(self.num_prompt));
    }

    /// Appends a token that was sampled, and says whether it is the last.
    pub(crate) fn push(&mut self, token: TokenId, eos_tokens: &[TokenId]) -> Option<FinishReason> {
        let may_stop = self.num_output() >= self.request.min_tokens;
        self.tokens.push(token);
        self.num_unknown -= 1;
        self.usage.output_tokens += 1;
        if let Some(history) = &mut self.history {
            history.push(token);
        }
        if may_stop && self.stop_tokens(eos_tokens).any(|stop| stop == token) {
            return Some(FinishReason::StopToken(token));
        }
        (self.tokens.len() as u32 == self.max_tokens).then_some(FinishReason::Length)
    }

    /// Nothing is computed any more, and what is in flight will not count.
    /// The pages are gone already.
    pub(crate) fn uncompute(&mut self) {
        self.phase = Phase::Waiting;
        self.num_computed = 0;
        self.num_planned = 0;
        self.num_unknown = 0;
        self.num_in_flight = 0;
        self.num_named = 0;
        self.full = BlockTable::default();
        self.sliding = BlockTable::default();
    }

    fn num_output(&self) -> u32 {
        self.tokens.len() as u32 - self.num_prompt
    }

    fn stop_tokens<'a>(&'a self, eos_tokens: &'a [TokenId]) -> impl Iterator<Item = TokenId> + 'a {
        let eos = if self.request.ignore_eos { &[] } else { eos_tokens };
        self.request.stop_tokens.iter().chain(eos).copied()
    }

    fn sliding_from(&self, page: u32) -> BlockTable {
        if self.sliding.blocks.is_empty() {
            return BlockTable::default();
        }
        let behind = (page - self.sliding.first) as usize;
        BlockTable { first: page, blocks: self.sliding.blocks[behind..].to_vec() }
    }

    /// How to sample the token after all that are planned or known.
    fn sampling(&mut self, eos_tokens: &[TokenId]) -> SamplingParams {
        let mut sampling = self.request.sampling.clone();
        if let Some(penalties) = sampling.penalties {
            let num_prompt = self.num_prompt as usize;
            let history = self.history.get_or_insert_with(|| History::new(&self.tokens[..num_prompt]));
            sampling.penalties = Some(Penalties { history: history.counts().to_vec(), ..penalties });
        }
        if self.num_output() + self.num_unknown < self.request.min_tokens {
            sampling.logit_bias.extend(self.stop_tokens(eos_tokens).map(|token| (token, NEVER)));
        }
        sampling
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chorale_plan::TokenCount;
    use std::num::NonZeroU32;

    fn sequence(prompt: &[TokenId], change: impl FnOnce(&mut Request)) -> Sequence {
        let mut request = Request::new(prompt.to_vec(), NonZeroU32::new(4).unwrap());
        change(&mut request);
        let account = crate::shares::Shares::default().join(request.share);
        Sequence::new(SequenceId(0), request, account, prompt.len() as u32 + 4, 0)
    }

    fn next(sequence: &mut Sequence, step: u64) -> SequenceSlice {
        let count = sequence.num_pending(step - 1);
        sequence.slice(count, step, Rank(0), PageSize { block: 4, window: None }, &[99])
    }

    #[test]
    fn what_was_sampled_in_the_step_before_can_be_fed_and_no_other() {
        let mut sequence = sequence(&[1, 2], |_| {});
        assert_eq!(next(&mut sequence, 1).tokens, SliceTokens::Known(vec![1, 2]));
        assert_eq!((sequence.num_pending(1), sequence.num_pending(2)), (1, 0));
        assert_eq!(next(&mut sequence, 2).tokens, SliceTokens::SampledBefore);
        assert_eq!(sequence.push(7, &[99]), None);
        assert_eq!((sequence.num_pending(2), sequence.num_pending(3)), (1, 0));
        assert_eq!(sequence.push(8, &[99]), None);
        assert_eq!(next(&mut sequence, 4).tokens, SliceTokens::Known(vec![8]));
    }

    #[test]
    fn the_token_after_the_last_is_never_planned() {
        let mut sequence = sequence(&[1, 2], |_| {});
        for step in 1..=4 {
            assert_eq!(sequence.num_pending(step - 1), if step == 1 { 2 } else { 1 });
            next(&mut sequence, step);
        }
        assert_eq!(sequence.num_pending(4), 0);
        let ends: Vec<_> = (0..4).map(|token| sequence.push(token, &[99])).collect();
        assert_eq!(ends, [None, None, None, Some(FinishReason::Length)]);
    }

    #[test]
    fn penalties_come_with_the_history_and_are_not_fed_ahead() {
        let penalties = Penalties { repetition: 1.1, presence: 0.0, frequency: 0.5, history: Vec::new() };
        let mut sequence = sequence(&[5, 5, 6], |request| {
            request.sampling.penalties = Some(penalties);
        });
        let history = |slice: SequenceSlice| slice.sample.unwrap().penalties.unwrap().history;
        let count = |token, num_in_output| TokenCount { token, num_in_output };
        assert_eq!(history(next(&mut sequence, 1)), [count(5, 0), count(6, 0)]);
        assert_eq!(sequence.num_pending(1), 0);
        sequence.push(6, &[]);
        assert_eq!(history(next(&mut sequence, 2)), [count(5, 0), count(6, 1)]);
    }

    #[test]
    fn stop_tokens_are_impossible_until_the_least_is_sampled() {
        let mut sequence = sequence(&[1], |request| {
            request.min_tokens = 2;
            request.stop_tokens = vec![50];
        });
        let bias = |slice: SequenceSlice| slice.sample.unwrap().logit_bias;
        assert_eq!(bias(next(&mut sequence, 1)), [(50, NEVER), (99, NEVER)]);
        assert_eq!(bias(next(&mut sequence, 2)), [(50, NEVER), (99, NEVER)]);
        assert_eq!(bias(next(&mut sequence, 3)), []);
        assert_eq!(sequence.push(50, &[99]), None);
        assert_eq!(sequence.push(99, &[99]), None);
        assert_eq!(sequence.push(99, &[99]), Some(FinishReason::StopToken(99)));
    }

    #[test]
    fn the_configured_end_can_be_ignored_and_the_requests_own_not() {
        let mut sequence = sequence(&[1], |request| {
            request.ignore_eos = true;
            request.stop_tokens = vec![50];
        });
        next(&mut sequence, 1);
        next(&mut sequence, 2);
        assert_eq!(sequence.push(99, &[99]), None);
        assert_eq!(sequence.push(50, &[99]), Some(FinishReason::StopToken(50)));
    }
}
