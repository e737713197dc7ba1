//! A chat answer as OpenAI's clients read it, in chunks or as a whole. Both are
//! made of the same parts; nothing is computed here.

use serde::Serialize;

use super::super::sse::{Events, Writer as EventWriter};
use super::super::types::{StopField, Usage, now_s};
use super::super::{ChatLogprobs, StreamOptions};
use super::ChatReply;
use crate::generation::{Answer, AnswerChoice, Finish, Part, StopReason, TokenCounts, ToolCall, Update};

/// Writes one answer.
#[derive(Debug)]
pub(crate) struct Writer {
    id: String,
    created: u64,
    reply: ChatReply,
    /// Which choices have had their first chunk.
    begun: Vec<bool>,
}

impl Writer {
    pub(crate) fn new(request_id: &str, reply: ChatReply) -> Self {
        let id = format!("chatcmpl-{}", reply.request_id.as_deref().unwrap_or(request_id));
        Self { id, created: now_s(), reply, begun: Vec::new() }
    }

    pub(crate) fn is_streamed(&self) -> bool {
        self.reply.stream.is_some()
    }

    /// The whole answer.
    pub(crate) fn body(&self, answer: Answer) -> Body {
        let choices = answer.choices.into_iter().enumerate();
        Body {
            id: self.id.clone(),
            object: "chat.completion",
            created: self.created,
            model: self.reply.model.clone(),
            choices: choices.map(|(index, choice)| self.choice(index, choice)).collect(),
            usage: answer.usage.into(),
        }
    }

    fn choice(&self, index: usize, choice: AnswerChoice) -> BodyChoice {
        let AnswerChoice { reasoning, content, logprobs, tool_calls, finish, .. } = choice;
        let finish = finish.unwrap_or(Finish::Length);
        let reasoning = Some(reasoning).filter(|text| self.reply.has_reasoning && !text.is_empty());
        BodyChoice {
            index,
            message: BodyMessage {
                role: "assistant",
                // Clients take null for a failure, unless there are calls.
                content: (tool_calls.is_empty() || !content.is_empty()).then_some(content),
                reasoning_content: reasoning.clone(),
                reasoning,
                tool_calls: tool_calls.into_iter().map(BodyCall::from).collect(),
            },
            logprobs: self.reply.has_logprobs.then(|| ChatLogprobs::of(&logprobs)),
            finish_reason: finish.as_str(),
            stop_reason: finish.stop_reason().map(StopField::from),
        }
    }

    fn options(&self) -> StreamOptions {
        self.reply.stream.unwrap_or_default()
    }

    fn chunk(&self, choices: &[ChunkChoice<'_>], usage: Option<Option<Usage>>, events: &mut Events) {
        let Self { id, created, reply, .. } = self;
        let object = "chat.completion.chunk";
        events.data(&Chunk { id, object, created: *created, model: &reply.model, choices, usage });
    }

    fn part(&self, index: u32, part: &Part, usage: Option<Option<Usage>>, events: &mut Events) {
        let mut choice = ChunkChoice { index, logprobs: Some(None), ..ChunkChoice::default() };
        match part {
            Part::Reasoning(_) if !self.reply.has_reasoning => return,
            Part::Reasoning(text) => {
                choice.delta =
                    Delta { reasoning: Some(text), reasoning_content: Some(text), ..Delta::default() };
            }
            Part::Content { text, logprobs } => {
                choice.delta.content = Some(text);
                choice.logprobs = Some(self.reply.has_logprobs.then(|| ChatLogprobs::of(logprobs)));
            }
            Part::CallStarted { index, id, name } => {
                let function = FunctionDelta { name: Some(name), arguments: "" };
                choice.delta.tool_calls =
                    Some([CallDelta { index: *index, id: Some(id), kind: Some("function"), function }]);
                choice.logprobs = None;
            }
            Part::CallArguments { index, text } => {
                let function = FunctionDelta { name: None, arguments: text };
                choice.delta.tool_calls = Some([CallDelta { index: *index, id: None, kind: None, function }]);
                choice.logprobs = None;
            }
            Part::Finished { finish, .. } => {
                choice.finish_reason = Some(finish.as_str());
                choice.stop_reason = finish.stop_reason().map(|reason: &StopReason| reason.into());
            }
        }
        self.chunk(&[choice], usage, events);
    }
}

impl EventWriter for Writer {
    fn update(&mut self, update: Update, counts: TokenCounts, events: &mut Events) {
        let usage = self.options().of_chunk(counts);
        let place = update.choice as usize;
        if self.begun.len() <= place {
            self.begun.resize(place + 1, false);
        }
        if !std::mem::replace(&mut self.begun[place], true) {
            let delta = Delta { role: Some("assistant"), content: Some(""), ..Delta::default() };
            let choice =
                ChunkChoice { index: update.choice, delta, logprobs: Some(None), ..ChunkChoice::default() };
            self.chunk(&[choice], usage, events);
        }
        for part in &update.parts {
            self.part(update.choice, part, usage, events);
        }
    }

    fn end(&mut self, counts: TokenCounts, events: &mut Events) {
        if self.options().include_usage {
            self.chunk(&[], Some(Some(counts.into())), events);
        }
    }
}

/// `chat.completion`.
#[derive(Debug, Serialize)]
pub(crate) struct Body {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    choices: Vec<BodyChoice>,
    usage: Usage,
}

#[derive(Debug, Serialize)]
struct BodyChoice {
    index: usize,
    message: BodyMessage,
    logprobs: Option<ChatLogprobs>,
    finish_reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<StopField>,
}

#[derive(Debug, Serialize)]
struct BodyMessage {
    role: &'static str,
    content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning: Option<String>,
    /// What older clients read.
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<BodyCall>,
}

#[derive(Debug, Serialize)]
struct BodyCall {
    id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    function: BodyFunction,
}

#[derive(Debug, Serialize)]
struct BodyFunction {
    name: String,
    arguments: String,
}

impl From<ToolCall> for BodyCall {
    fn from(call: ToolCall) -> Self {
        let ToolCall { id, name, arguments } = call;
        Self { id, kind: "function", function: BodyFunction { name, arguments } }
    }
}

/// `chat.completion.chunk`.
#[derive(Debug, Serialize)]
struct Chunk<'c> {
    id: &'c str,
    object: &'static str,
    created: u64,
    model: &'c str,
    choices: &'c [ChunkChoice<'c>],
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

#[derive(Debug, Default, Serialize)]
struct ChunkChoice<'c> {
    index: u32,
    delta: Delta<'c>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Option<ChatLogprobs>>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<StopField>,
}

#[derive(Debug, Default, Serialize)]
struct Delta<'c> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'c str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning: Option<&'c str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'c str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<[CallDelta<'c>; 1]>,
}

#[derive(Debug, Serialize)]
struct CallDelta<'c> {
    index: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'c str>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    function: FunctionDelta<'c>,
}

#[derive(Debug, Serialize)]
struct FunctionDelta<'c> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'c str>,
    arguments: &'c str,
}
