//! What both levels make of a generation alike: its limits on the way in, its
//! ends and log-probabilities on the way out.

use crate::generation::{Finish, Generation, StopReason, TokenCounts};
use chorale_harmony::Tokenizer;
use chorale_plan::Sample;
use chorale_wire::inference::{
    Ended, FinishReason, Handling, Limits, SampledToken, StopCause, TokenLogprob, Usage,
};
use tokio::time::Instant;

/// Puts limits and handling into a generation.
pub(super) fn apply(
    generation: &mut Generation,
    limits: Limits,
    handling: Handling,
    deadline: Option<Instant>,
) {
    generation.max_tokens = limits.max_tokens;
    generation.min_tokens = limits.min_tokens;
    generation.stops = limits.stop;
    generation.stop_token_ids = limits.stop_tokens;
    generation.ignore_eos = limits.ignore_eos;
    generation.priority = handling.priority;
    generation.cache_salt = handling.cache_salt;
    generation.deadline = deadline;
}

/// The end of a choice.
pub(super) fn ended(finish: Finish, counts: TokenCounts) -> Ended {
    let stopped_by = finish.stop_reason().map(|stop| match stop {
        StopReason::Text(text) => StopCause::Text(text.clone()),
        StopReason::Token(token) => StopCause::Token(*token),
    });
    let reason = match finish {
        Finish::Stop(_) => FinishReason::Stop,
        Finish::Length => FinishReason::Length,
        Finish::ToolCalls => FinishReason::ToolCalls,
    };
    Ended { reason, stopped_by, usage: usage(counts) }
}

/// What was computed.
pub(super) fn usage(counts: TokenCounts) -> Usage {
    Usage {
        prompt_tokens: counts.prompt_tokens,
        cached_tokens: counts.cached_tokens,
        completion_tokens: counts.completion_tokens,
        reasoning_tokens: counts.reasoning_tokens,
    }
}

/// A sample with its log-probabilities, where it has them.
pub(super) fn sampled(sample: &Sample) -> Option<SampledToken> {
    let logprob = |token, logprob| {
        let bytes = Tokenizer::shared().token_bytes(token).unwrap_or_default().to_vec();
        TokenLogprob { token, logprob, bytes }
    };
    let top = sample.top_logprobs.iter().map(|top| logprob(top.token, top.logprob)).collect();
    Some(SampledToken { taken: logprob(sample.token, sample.logprob?), top })
}
