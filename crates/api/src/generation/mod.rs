//! The one way from a checked request to its answer, behind every front door.
//! It knows prompts, tokens and channels, but neither JSON nor protobuf.
//!
//! A door parses a request into a [`Generation`], [`Generator::start`] hands it
//! to the engine, and the [`GenerationStream`] says what comes of it. An
//! [`Answer`] is the fold of that stream.
//!
//! # Stop strings
//!
//! They apply to what the user reads: final messages and preambles, not to
//! reasoning and calls. The text is cut before the first one that is complete,
//! wherever tokens begin and end, and the sequence is cancelled at once. A stop
//! string does not reach from one message into the next.
//!
//! # Why it ended
//!
//! `length` if it was cut, whatever was going on; else `tool_calls` if there
//! were calls and the last one is complete; else `stop`.

mod answer;
mod choice;
mod constrain;
mod generator;
mod observe;
mod output;
mod stops;
mod stream;

pub use answer::{Answer, AnswerChoice, ToolCall};
pub use generator::{Generator, Prepared};
pub use observe::{Accepted, Finished, FinishedChoice, Observer, Outcome, Unobserved};
pub use output::{Finish, Part, StopReason, TokenCounts, Update};
pub use stream::GenerationStream;

use std::num::NonZeroU32;

use chorale_harmony::{Constraint, Conversation, RenderOptions, TokenId};
use chorale_plan::SamplingParams;
use tokio::time::Instant;

/// A request that has nothing left to be checked.
#[derive(Clone, Debug)]
pub struct Generation {
    /// What is to be continued.
    pub input: Input,
    /// How many continuations of each prompt are wanted.
    pub n: NonZeroU32,
    /// How tokens are chosen. Choices after the first get seeds of their own,
    /// derived from the one here.
    pub sampling: SamplingParams,
    /// Tokens for each choice at most; `None` is what the context leaves. The
    /// context ends a choice in any case.
    pub max_tokens: Option<NonZeroU32>,
    /// Tokens for each choice at least: until then neither a stop token nor a
    /// stop string ends it.
    pub min_tokens: u32,
    /// Texts that end a choice; none is empty.
    pub stops: Vec<String>,
    /// Whether the stop string that was found stays in the text.
    pub include_stop: bool,
    /// Tokens that end a choice, beside the model's own.
    pub stop_token_ids: Vec<TokenId>,
    /// Go on after the model's own end tokens.
    pub ignore_eos: bool,
    /// What may be said, for each choice.
    pub constraint: Option<Constraint>,
    /// What is made of the tokens.
    pub output: Output,
    /// Added to the caller's; lower runs first.
    pub priority: i32,
    /// Cached prompts are found only under the same salt.
    pub cache_salt: Vec<u8>,
    /// When nobody waits for the answer any more.
    pub deadline: Option<Instant>,
}

impl Generation {
    /// One choice with nothing special about it.
    pub fn new(input: Input, output: Output, sampling: SamplingParams) -> Self {
        Self {
            input,
            n: NonZeroU32::MIN,
            sampling,
            max_tokens: None,
            min_tokens: 0,
            stops: Vec::new(),
            include_stop: false,
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            constraint: None,
            output,
            priority: 0,
            cache_salt: Vec::new(),
            deadline: None,
        }
    }
}

/// What is to be continued.
#[derive(Clone, Debug)]
pub enum Input {
    /// A conversation in which the assistant speaks next.
    Conversation {
        /// System message, developer message, turns.
        conversation: Conversation,
        /// How to write it.
        options: RenderOptions,
    },
    /// Prompts as they are; at least one, none empty, all ids in the vocabulary.
    Prompts(Vec<Vec<TokenId>>),
}

/// What is made of the tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Harmony: reasoning, content and calls.
    Harmony {
        /// Whether more than one call is wanted in a turn; if not, the turn ends
        /// with the first.
        several_calls: bool,
        /// Go on after `<|call|>`, so that another call can follow.
        past_calls: bool,
    },
    /// Plain text, all of it content.
    Text {
        /// Leave special tokens out of the text instead of spelling them.
        skip_special_tokens: bool,
    },
    /// Nothing but the samples themselves.
    Tokens,
}
