//! An answer as a whole, for `--json`: the fold of its tokens.

use super::FinishReason;
use chorale_harmony::{Kind, Part, StreamParser, Tokenizer};
use chorale_plan::{Sample, TokenId};
use serde::Serialize;

/// What was generated.
#[derive(Debug, Serialize)]
pub(super) struct Answer {
    /// All of it, markup included.
    pub(super) text: String,
    /// The model's thinking; not for raw prompts.
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning: Option<String>,
    /// What the user reads; not for raw prompts.
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
    finish_reason: Option<FinishReason>,
    /// Stop token included.
    tokens: Vec<TokenId>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    logprobs: Vec<Logprob>,
    #[serde(skip)]
    parser: Option<StreamParser>,
}

#[derive(Debug, Serialize)]
struct ToolCall {
    name: String,
    arguments: String,
}

#[derive(Debug, Serialize)]
struct Logprob {
    token: TokenId,
    text: String,
    logprob: f32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    top: Vec<Logprob>,
}

impl Logprob {
    fn new(token: TokenId, logprob: f32) -> Self {
        Self { token, text: Tokenizer::shared().decode(&[token]), logprob, top: Vec::new() }
    }
}

impl Answer {
    pub(super) fn new(raw: bool) -> Self {
        let part = || (!raw).then(String::new);
        Self {
            text: String::new(),
            reasoning: part(),
            content: part(),
            tool_calls: Vec::new(),
            finish_reason: None,
            tokens: Vec::new(),
            logprobs: Vec::new(),
            parser: (!raw).then(StreamParser::new),
        }
    }

    /// Takes the next token, and why it was the last if it was.
    pub(super) fn push(&mut self, sample: &Sample, finish: Option<FinishReason>) {
        self.tokens.push(sample.token);
        if let Some(logprob) = sample.logprob {
            let top = sample.top_logprobs.iter().map(|top| Logprob::new(top.token, top.logprob)).collect();
            self.logprobs.push(Logprob { top, ..Logprob::new(sample.token, logprob) });
        }
        let mut parser = self.parser.take();
        if let Some(parser) = &mut parser {
            let mut deltas = parser.push(sample.token);
            if finish.is_some() {
                deltas.extend(parser.finish());
            }
            for delta in &deltas {
                self.take(delta.kind(), &delta.part);
            }
        }
        self.parser = parser;
        if finish.is_some() {
            self.finish_reason = finish;
            self.text = Tokenizer::shared().decode(&self.tokens);
        }
    }

    fn take(&mut self, kind: Kind<'_>, part: &Part) {
        if let (Kind::ToolCall { name }, Part::Started) = (kind, part) {
            self.tool_calls.push(ToolCall { name: name.to_owned(), arguments: String::new() });
        }
        let Part::Text(text) = part else { return };
        let target = match kind {
            Kind::Reasoning => self.reasoning.as_mut(),
            Kind::Content => self.content.as_mut(),
            Kind::ToolCall { .. } => self.tool_calls.last_mut().map(|call| &mut call.arguments),
            Kind::NotAssistant => None,
        };
        if let Some(target) = target {
            target.push_str(text);
        }
    }
}
