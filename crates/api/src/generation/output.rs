//! What comes out of a generation: updates of channel parts, ends, and counts.
//! Plain data, the same for every front door.

use chorale_plan::{Sample, TokenId};

/// What happened to one choice.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    /// Which: `prompt * n + k`.
    pub choice: u32,
    /// The tokens that were sampled. Their text may come with a later update.
    pub samples: Vec<Sample>,
    /// What they brought, in order; often one thing, sometimes nothing.
    pub parts: Vec<Part>,
}

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// More of the hidden thinking.
    Reasoning(String),
    /// More of what the user reads.
    Content {
        /// May be empty where only log-probabilities come.
        text: String,
        /// The tokens that begin in this text, if log-probabilities are wanted.
        logprobs: Vec<Sample>,
    },
    /// A call begins.
    CallStarted {
        /// Its place among the choice's calls.
        index: u32,
        /// For the tool's answer to refer to.
        id: String,
        /// As the client defined it.
        name: String,
    },
    /// More of a call's arguments.
    CallArguments {
        /// Which call.
        index: u32,
        /// JSON, if the model kept to it.
        text: String,
    },
    /// The choice is over; nothing follows.
    Finished {
        /// Why.
        finish: Finish,
        /// What it took.
        usage: TokenCounts,
    },
}

/// Why a choice is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model was done, or a stop of the client's was met.
    Stop(Option<StopReason>),
    /// It was cut: by `max_tokens` or by the context's end.
    Length,
    /// The client is to answer calls.
    ToolCalls,
}

/// Which of the client's stops was met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// One of `stop`.
    Text(String),
    /// One of `stop_token_ids`.
    Token(TokenId),
}

impl Finish {
    /// As OpenAI spells it.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Stop(_) => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
        }
    }

    /// Which stop of the client's was met.
    pub fn stop_reason(&self) -> Option<&StopReason> {
        match self {
            Self::Stop(reason) => reason.as_ref(),
            Self::Length | Self::ToolCalls => None,
        }
    }
}

/// What was computed, in tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenCounts {
    /// Tokens of the prompt; of several choices of one prompt, once.
    pub prompt_tokens: u32,
    /// Of these, found in the prefix cache; known at the end.
    pub cached_tokens: u32,
    /// Sampled tokens, markup included.
    pub completion_tokens: u32,
    /// Of these, thinking and calls: what is not content, as vLLM counts.
    pub reasoning_tokens: u32,
}

impl TokenCounts {
    /// Prompt and completion together.
    pub fn total_tokens(&self) -> u32 {
        self.prompt_tokens.saturating_add(self.completion_tokens)
    }
}
