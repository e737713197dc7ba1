//! A text completion as OpenAI's clients read it, in chunks or as a whole. Both
//! are made of the same parts; nothing is computed here.

use serde::Serialize;

use super::super::sse::{Events, Writer as EventWriter};
use super::super::types::{StopField, Usage, now_s};
use super::super::{StreamOptions, TextLogprobs};
use super::CompletionReply;
use crate::generation::{Answer, AnswerChoice, Finish, Part, TokenCounts, Update};

/// Writes one answer.
#[derive(Debug)]
pub(crate) struct Writer {
    id: String,
    created: u64,
    reply: CompletionReply,
    /// For each choice that has begun, the characters of its text so far.
    offsets: Vec<Option<usize>>,
}

impl Writer {
    pub(crate) fn new(request_id: &str, reply: CompletionReply) -> Self {
        let id = format!("cmpl-{}", reply.request_id.as_deref().unwrap_or(request_id));
        Self { id, created: now_s(), reply, offsets: Vec::new() }
    }

    pub(crate) fn is_streamed(&self) -> bool {
        self.reply.stream.is_some()
    }

    /// The whole answer.
    pub(crate) fn body(&self, answer: Answer) -> Body {
        let choices = answer.choices.into_iter().enumerate();
        Body {
            id: self.id.clone(),
            object: "text_completion",
            created: self.created,
            model: self.reply.model.clone(),
            choices: choices.map(|(index, choice)| self.choice(index as u32, choice)).collect(),
            usage: answer.usage.into(),
        }
    }

    fn choice(&self, index: u32, choice: AnswerChoice) -> Choice {
        let echo = self.echo(index).unwrap_or_default();
        let mut offset = echo.chars().count();
        let finish = choice.finish.unwrap_or(Finish::Length);
        Choice {
            index,
            text: format!("{echo}{}", choice.content),
            logprobs: self.reply.has_logprobs.then(|| TextLogprobs::of(&choice.logprobs, &mut offset)),
            finish_reason: Some(finish.as_str()),
            stop_reason: finish.stop_reason().map(StopField::from),
        }
    }

    /// The prompt, if the answer is to begin with it.
    fn echo(&self, choice: u32) -> Option<&str> {
        let prompts = self.reply.echo.as_ref()?;
        prompts.get((choice / self.reply.n.max(1)) as usize).map(String::as_str)
    }

    fn options(&self) -> StreamOptions {
        self.reply.stream.unwrap_or_default()
    }

    fn chunk(&self, choices: &[Choice], usage: Option<Option<Usage>>, events: &mut Events) {
        let Self { id, created, reply, .. } = self;
        let object = "text_completion";
        events.data(&Chunk { id, object, created: *created, model: &reply.model, choices, usage });
    }
}

impl EventWriter for Writer {
    fn update(&mut self, update: Update, counts: TokenCounts, events: &mut Events) {
        let usage = self.options().of_chunk(counts);
        let index = update.choice;
        let place = index as usize;
        if self.offsets.len() <= place {
            self.offsets.resize(place + 1, None);
        }
        if self.offsets[place].is_none() {
            let echo = self.echo(index).unwrap_or_default().to_owned();
            self.offsets[place] = Some(echo.chars().count());
            if !echo.is_empty() {
                self.chunk(&[Choice { index, text: echo, ..Choice::default() }], usage, events);
            }
        }
        for part in update.parts {
            let mut choice = Choice { index, ..Choice::default() };
            match part {
                Part::Content { text, logprobs } => {
                    choice.text = text;
                    if self.reply.has_logprobs {
                        let offset = self.offsets[place].get_or_insert(0);
                        choice.logprobs = Some(TextLogprobs::of(&logprobs, offset));
                    }
                }
                Part::Finished { finish, .. } => {
                    choice.finish_reason = Some(finish.as_str());
                    choice.stop_reason = finish.stop_reason().map(StopField::from);
                }
                // Text has neither thinking nor calls.
                Part::Reasoning(_) | Part::CallStarted { .. } | Part::CallArguments { .. } => continue,
            }
            self.chunk(&[choice], usage, events);
        }
    }

    fn end(&mut self, counts: TokenCounts, events: &mut Events) {
        if self.options().include_usage {
            self.chunk(&[], Some(Some(counts.into())), events);
        }
    }
}

/// `text_completion`, whole.
#[derive(Debug, Serialize)]
pub(crate) struct Body {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    choices: Vec<Choice>,
    usage: Usage,
}

/// `text_completion`, in pieces.
#[derive(Debug, Serialize)]
struct Chunk<'c> {
    id: &'c str,
    object: &'static str,
    created: u64,
    model: &'c str,
    choices: &'c [Choice],
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

#[derive(Debug, Default, Serialize)]
struct Choice {
    index: u32,
    text: String,
    logprobs: Option<TextLogprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<StopField>,
}
