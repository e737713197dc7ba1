//! The token level's request as plain data. Whether a token is in the
//! vocabulary is not known here.

use super::sampling::{Handling, Limits, Sampling, num_choices, num_top_logprobs, optional};
use super::v1;
use crate::field::{InvalidField, filled, present, unless_empty};
use chorale_plan::TokenId;
use std::num::NonZeroU32;

/// A prompt to be continued.
#[derive(Clone, Debug, PartialEq)]
pub struct Generate {
    /// `None` takes the default.
    pub model: Option<String>,
    /// What is continued.
    pub prompt: Prompt,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// When it ends by itself.
    pub limits: Limits,
    /// Independent answers.
    pub n: NonZeroU32,
    /// Alternatives of each token; `None` for no log-probabilities.
    pub num_top_logprobs: Option<u32>,
    /// Give the text beside the tokens.
    pub include_text: bool,
    /// How the server treats it.
    pub handling: Handling,
}

/// What is continued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// At least one.
    Tokens(Vec<TokenId>),
    /// Not empty.
    Text(String),
}

impl TryFrom<v1::GenerateRequest> for Generate {
    type Error = InvalidField;

    fn try_from(message: v1::GenerateRequest) -> Result<Self, InvalidField> {
        let prompt = match present("prompt", message.prompt)? {
            v1::generate_request::Prompt::TokenIds(tokens) if tokens.ids.is_empty() => {
                return Err(InvalidField::new("token_ids.ids", "must not be empty"));
            }
            v1::generate_request::Prompt::TokenIds(tokens) => Prompt::Tokens(tokens.ids),
            v1::generate_request::Prompt::Text(text) => Prompt::Text(filled("text", text)?),
        };
        Ok(Self {
            model: unless_empty(message.model),
            prompt,
            sampling: optional("sampling", message.sampling)?,
            limits: optional("limits", message.limits)?,
            n: num_choices(message.n)?,
            num_top_logprobs: num_top_logprobs(message.logprobs)?,
            include_text: message.include_text,
            handling: optional("handling", message.handling)?,
        })
    }
}
