//! What chat and text completions have in common on the wire: usage, stop
//! reasons, stream options, limits. Shapes only.

use serde::Serialize;

use crate::generation::{StopReason, TokenCounts};

/// What is served, as far as a request's shape depends on it.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The names under which the model is served; the first one answers
    /// requests that name none. Never empty.
    pub models: Vec<String>,
    /// Ids below this are tokens.
    pub vocabulary_size: u32,
    /// Continuations in one request, over all of its prompts.
    pub max_choices: u32,
    /// Tools in one request.
    pub max_tools: usize,
    /// Which day the model is told it is, unless the request says so.
    pub system_date: SystemDate,
}

/// Which day the model is told it is. The date is part of every prompt, so a day
/// that changes costs the prefix cache once a day.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SystemDate {
    /// The day it is, in UTC.
    Today,
    /// Always this one, as `2025-06-28`.
    Fixed(String),
    /// None: the line is left out.
    Omitted,
}

impl SystemDate {
    /// As the system message has it.
    pub fn text(&self) -> Option<String> {
        match self {
            Self::Today => {
                let today = time::OffsetDateTime::now_utc().date();
                Some(format!("{:04}-{:02}-{:02}", today.year(), u8::from(today.month()), today.day()))
            }
            Self::Fixed(date) => Some(date.clone()),
            Self::Omitted => None,
        }
    }
}

/// `stream_options`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamOptions {
    /// A last chunk says what the request took, and all others `"usage": null`.
    pub include_usage: bool,
    /// Every chunk says what the request took so far.
    pub continuous_usage: bool,
}

/// OpenAI's `usage`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Usage {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u32,
    prompt_tokens_details: PromptDetails,
    completion_tokens_details: CompletionDetails,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct PromptDetails {
    cached_tokens: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct CompletionDetails {
    reasoning_tokens: u32,
}

impl From<TokenCounts> for Usage {
    fn from(counts: TokenCounts) -> Self {
        Self {
            prompt_tokens: counts.prompt_tokens,
            completion_tokens: counts.completion_tokens,
            total_tokens: counts.total_tokens(),
            prompt_tokens_details: PromptDetails { cached_tokens: counts.cached_tokens },
            completion_tokens_details: CompletionDetails { reasoning_tokens: counts.reasoning_tokens },
        }
    }
}

impl StreamOptions {
    /// The `usage` of a chunk: absent, null, or what was taken so far.
    pub(super) fn of_chunk(self, counts: TokenCounts) -> Option<Option<Usage>> {
        match self {
            Self { continuous_usage: true, .. } => Some(Some(counts.into())),
            Self { include_usage: true, .. } => Some(None),
            Self { .. } => None,
        }
    }
}

/// vLLM's `stop_reason`: which stop of the client's was met.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(super) enum StopField {
    Text(String),
    Token(u32),
}

impl From<&StopReason> for StopField {
    fn from(reason: &StopReason) -> Self {
        match reason {
            StopReason::Text(text) => Self::Text(text.clone()),
            StopReason::Token(token) => Self::Token(*token),
        }
    }
}

/// Seconds since 1970, for `created`.
pub(super) fn now_s() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
