//! The token level: a prompt as it is becomes a generation, and its updates
//! become events of tokens.

use super::events;
use super::sampling::{all_in_vocabulary, check_choices, check_limits, params};
use crate::error::ApiError;
use crate::generation::{Generation, Input, Output, Part, Update};
use crate::openai::Limits;
use chorale_harmony::Tokenizer;
use chorale_wire::inference::{Event, Generate, Prompt, TokenPart};
use tokio::time::Instant;

/// The generation that a request asks for.
pub(super) fn generation(
    request: Generate,
    served: &Limits,
    deadline: Option<Instant>,
) -> Result<Generation, ApiError> {
    check_limits(&request.limits, served.vocabulary_size)?;
    check_choices(request.n, served.max_choices)?;
    let prompt = match request.prompt {
        Prompt::Tokens(tokens) => {
            all_in_vocabulary(&tokens, "token_ids.ids", served.vocabulary_size)?;
            tokens
        }
        Prompt::Text(text) => Tokenizer::shared().encode_text(&text),
    };
    let output =
        if request.include_text { Output::Text { skip_special_tokens: true } } else { Output::Tokens };
    let sampling = params(request.sampling, request.num_top_logprobs, served.vocabulary_size)?;
    let mut generation = Generation::new(Input::Prompts(vec![prompt]), output, sampling);
    generation.n = request.n;
    events::apply(&mut generation, request.limits, request.handling, deadline);
    Ok(generation)
}

/// What the client wants to see of an update.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    /// Text beside the tokens.
    pub(super) include_text: bool,
    /// Log-probabilities of the tokens.
    pub(super) has_logprobs: bool,
}

/// The events of an update: its tokens with the text that is certain by now,
/// then the end.
pub(super) fn events(update: Update, view: View) -> Vec<Event<TokenPart>> {
    let index = update.choice;
    let tokens: Vec<_> = update.samples.iter().map(|sample| sample.token).collect();
    let logprobs = match view.has_logprobs {
        true => update.samples.iter().filter_map(events::sampled).collect(),
        false => Vec::new(),
    };
    let mut text = String::new();
    let mut ended = None;
    for part in update.parts {
        match part {
            Part::Content { text: more, .. } if view.include_text => text.push_str(&more),
            Part::Finished { finish, usage } => ended = Some(events::ended(finish, usage)),
            Part::Content { .. }
            | Part::Reasoning(_)
            | Part::CallStarted { .. }
            | Part::CallArguments { .. } => {}
        }
    }
    let says_something = !(tokens.is_empty() && text.is_empty());
    let said = says_something.then_some(TokenPart::Tokens { tokens, logprobs, text });
    let parts = said.into_iter().chain(ended.map(TokenPart::Finished));
    parts.map(|event| Event::Choice { index, event }).collect()
}
