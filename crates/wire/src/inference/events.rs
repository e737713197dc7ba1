//! The events of both levels, from plain data to messages. Nothing here can
//! fail: what the server says is right by its types.

use super::v1;
use chorale_plan::TokenId;

/// The first event of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begun {
    /// For cancelling.
    pub request_id: String,
    /// As it is served.
    pub model: String,
    /// Since 1970 in UTC.
    pub created_unix_s: u64,
}

/// What was computed, in tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of the prompt.
    pub prompt_tokens: u32,
    /// Of these, found in the prefix cache.
    pub cached_tokens: u32,
    /// Sampled.
    pub completion_tokens: u32,
    /// Of these, thinking and calls.
    pub reasoning_tokens: u32,
}

/// A token with its log-probability and its alternatives.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledToken {
    /// The token that was taken.
    pub taken: TokenLogprob,
    /// The most probable ones, best first.
    pub top: Vec<TokenLogprob>,
}

/// A token, its bytes, and its natural log-probability.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    /// Which token.
    pub token: TokenId,
    /// At most 0.
    pub logprob: f32,
    /// Need not be whole characters.
    pub bytes: Vec<u8>,
}

/// Why a choice is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model was done, or met a stop.
    Stop,
    /// It was cut.
    Length,
    /// Calls wait for results.
    ToolCalls,
}

/// Which stop of the request's was met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopCause {
    /// A text.
    Text(String),
    /// A token.
    Token(TokenId),
}

/// What happens to a request, at either level.
#[derive(Clone, Debug, PartialEq)]
pub enum Event<T> {
    /// First.
    Begun(Begun),
    /// Something of one choice.
    Choice {
        /// Which, from 0.
        index: u32,
        /// What.
        event: T,
    },
    /// Last: what all choices took together.
    Completed(Usage),
}

/// What happens to one choice at chat level.
#[derive(Clone, Debug, PartialEq)]
pub enum ChatPart {
    /// More thinking.
    Reasoning(String),
    /// More of the answer.
    Content {
        /// Whole characters.
        text: String,
        /// Of its tokens, if asked for.
        logprobs: Vec<SampledToken>,
    },
    /// A call begins.
    CallStarted {
        /// Which call.
        call_index: u32,
        /// For its result to refer to.
        id: String,
        /// The function.
        name: String,
    },
    /// More of a call's arguments.
    CallArguments {
        /// Which call.
        call_index: u32,
        /// A piece of JSON.
        text: String,
    },
    /// The choice is over.
    Finished(Ended),
}

/// What happens to one choice at token level.
#[derive(Clone, Debug, PartialEq)]
pub enum TokenPart {
    /// More tokens.
    Tokens {
        /// As they were sampled.
        tokens: Vec<TokenId>,
        /// Of each, if asked for.
        logprobs: Vec<SampledToken>,
        /// What they say, if asked for.
        text: String,
    },
    /// The choice is over.
    Finished(Ended),
}

/// The end of a choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Why.
    pub reason: FinishReason,
    /// Which stop of the request's was met.
    pub stopped_by: Option<StopCause>,
    /// What the choice took.
    pub usage: Usage,
}

impl From<Event<ChatPart>> for v1::ChatEvent {
    fn from(event: Event<ChatPart>) -> Self {
        use v1::chat_event::Event as Message;
        let event = match event {
            Event::Begun(begun) => Message::Started(begun.into()),
            Event::Completed(usage) => Message::Completed(usage.into()),
            Event::Choice { index, event } => chat_part(index, event),
        };
        Self { event: Some(event) }
    }
}

fn chat_part(choice_index: u32, part: ChatPart) -> v1::chat_event::Event {
    use v1::chat_event::Event as Message;
    match part {
        ChatPart::Reasoning(text) => Message::Reasoning(v1::ReasoningDelta { choice_index, text }),
        ChatPart::Content { text, logprobs } => {
            let logprobs = logprobs.into_iter().map(Into::into).collect();
            Message::Content(v1::ContentDelta { choice_index, text, logprobs })
        }
        ChatPart::CallStarted { call_index, id, name } => {
            Message::ToolCallStarted(v1::ToolCallStarted { choice_index, call_index, id, name })
        }
        ChatPart::CallArguments { call_index, text } => {
            let delta = v1::ToolCallArgumentsDelta { choice_index, call_index, arguments_json_delta: text };
            Message::ToolCallArguments(delta)
        }
        ChatPart::Finished(Ended { reason, stopped_by, usage }) => {
            let stop = match stopped_by {
                Some(StopCause::Text(text)) => Some(text),
                Some(StopCause::Token(_)) | None => None,
            };
            let reason = v1::FinishReason::from(reason) as i32;
            Message::Finished(v1::ChatFinished { choice_index, reason, stop, usage: Some(usage.into()) })
        }
    }
}

impl From<Event<TokenPart>> for v1::GenerateEvent {
    fn from(event: Event<TokenPart>) -> Self {
        use v1::generate_event::Event as Message;
        let event = match event {
            Event::Begun(begun) => Message::Started(begun.into()),
            Event::Completed(usage) => Message::Completed(usage.into()),
            Event::Choice { index, event } => token_part(index, event),
        };
        Self { event: Some(event) }
    }
}

fn token_part(choice_index: u32, part: TokenPart) -> v1::generate_event::Event {
    use v1::generate_event::Event as Message;
    use v1::generate_finished::StoppedBy;
    match part {
        TokenPart::Tokens { tokens, logprobs, text } => {
            let logprobs = logprobs.into_iter().map(Into::into).collect();
            Message::Tokens(v1::TokensDelta { choice_index, token_ids: tokens, logprobs, text })
        }
        TokenPart::Finished(Ended { reason, stopped_by, usage }) => {
            let stopped_by = stopped_by.map(|cause| match cause {
                StopCause::Text(text) => StoppedBy::Stop(text),
                StopCause::Token(token) => StoppedBy::StopTokenId(token),
            });
            let reason = v1::FinishReason::from(reason) as i32;
            Message::Finished(v1::GenerateFinished {
                choice_index,
                reason,
                stopped_by,
                usage: Some(usage.into()),
            })
        }
    }
}

impl From<Begun> for v1::Started {
    fn from(begun: Begun) -> Self {
        let Begun { request_id, model, created_unix_s } = begun;
        Self { request_id, model, created_unix_s }
    }
}

impl From<Usage> for v1::Completed {
    fn from(usage: Usage) -> Self {
        Self { usage: Some(usage.into()) }
    }
}

impl From<Usage> for v1::Usage {
    fn from(usage: Usage) -> Self {
        Self {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            total_tokens: usage.prompt_tokens.saturating_add(usage.completion_tokens),
            cached_tokens: usage.cached_tokens,
            reasoning_tokens: usage.reasoning_tokens,
        }
    }
}

impl From<FinishReason> for v1::FinishReason {
    fn from(reason: FinishReason) -> Self {
        match reason {
            FinishReason::Stop => Self::Stop,
            FinishReason::Length => Self::Length,
            FinishReason::ToolCalls => Self::ToolCalls,
        }
    }
}

impl From<SampledToken> for v1::SampledLogprob {
    fn from(token: SampledToken) -> Self {
        let top = token.top.into_iter().map(Into::into).collect();
        Self { sampled: Some(token.taken.into()), top }
    }
}

impl From<TokenLogprob> for v1::TokenLogprob {
    fn from(token: TokenLogprob) -> Self {
        Self { token_id: token.token, logprob: token.logprob, bytes: token.bytes }
    }
}
