//! One choice of an answer: its tokens go in, parts come out. It decides where
//! text is cut and why the choice ends; it neither waits nor cancels.

use std::collections::VecDeque;

use chorale_coordinator::FinishReason;
use chorale_harmony::{Delta, End, Kind, Part as DeltaPart, Repairs, StreamDecoder, StreamParser, Tokenizer};
use chorale_harmony::{TokenId, special};
use chorale_plan::Sample;

use super::stops::{Released, StopMatcher};
use super::{Finish, Generation, Output, Part, StopReason};

/// The fold of one sequence's tokens.
#[derive(Debug)]
pub(super) struct Choice {
    decoding: Decoding,
    stops: StopMatcher,
    rules: Rules,
    num_sampled: u32,
    num_reasoning: u32,
    num_calls: u32,
    /// Whether no call is open.
    calls_are_complete: bool,
    /// Bytes of content that came from the model.
    content_len: usize,
    /// Of these, bytes that were let out.
    released_len: usize,
    /// Content tokens that are not out yet, and where their text begins.
    waiting: VecDeque<(usize, Sample)>,
    /// Why nothing more is wanted, before the engine says so.
    ended: Option<Finish>,
}

/// What holds for all choices of a request.
#[derive(Clone, Debug)]
struct Rules {
    min_tokens: u32,
    include_stop: bool,
    /// Tokens after which the engine ends the sequence.
    stop_tokens: Vec<TokenId>,
    several_calls: bool,
    has_logprobs: bool,
    has_content: bool,
}

#[derive(Debug)]
enum Decoding {
    Harmony { parser: Box<StreamParser>, open: Open },
    Text { decoder: StreamDecoder, skip_special_tokens: bool },
}

/// Whose text arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Open {
    Nothing,
    Reasoning,
    Content,
    Call,
    Foreign,
}

impl Choice {
    pub(super) fn new(generation: &Generation) -> Self {
        let decoding = match generation.output {
            Output::Harmony { .. } => {
                Decoding::Harmony { parser: Box::new(StreamParser::new()), open: Open::Nothing }
            }
            Output::Text { skip_special_tokens } => {
                Decoding::Text { decoder: StreamDecoder::new(), skip_special_tokens }
            }
            Output::Tokens => Decoding::Text { decoder: StreamDecoder::new(), skip_special_tokens: true },
        };
        Self {
            decoding,
            stops: StopMatcher::new(generation.stops.clone(), generation.include_stop),
            rules: Rules::of(generation),
            num_sampled: 0,
            num_reasoning: 0,
            num_calls: 0,
            calls_are_complete: true,
            content_len: 0,
            released_len: 0,
            waiting: VecDeque::new(),
            ended: None,
        }
    }

    /// Whether nothing more is wanted of the engine.
    pub(super) fn is_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// Tokens that count, and those among them that are not content.
    pub(super) fn num_tokens(&self) -> (u32, u32) {
        (self.num_sampled, self.num_reasoning)
    }

    /// What of harmony had to be put right.
    pub(super) fn repairs(&self) -> Repairs {
        match &self.decoding {
            Decoding::Harmony { parser, .. } => parser.repairs().clone(),
            Decoding::Text { .. } => Repairs::default(),
        }
    }

    /// What the next token brings. After the end, nothing.
    pub(super) fn push(&mut self, sample: &Sample) -> Vec<Part> {
        let mut parts = Vec::new();
        if self.is_ended() {
            return parts;
        }
        self.num_sampled += 1;
        let token = sample.token;
        let is_last = self.rules.stop_tokens.contains(&token) && self.num_sampled >= self.rules.min_tokens;
        match &mut self.decoding {
            Decoding::Harmony { parser, open } => {
                // The model's own stop tokens are markup that the parser reads.
                if is_last && !special::STOP.contains(&token) && !self.rules.include_stop {
                    return parts;
                }
                let was = *open;
                let deltas = parser.push(token);
                self.count(sample, was, &deltas);
                self.take_all(deltas, &mut parts);
                // Without a token that ends the sequence the model would go on to the next call.
                if !self.rules.several_calls && self.num_calls > 0 && self.calls_are_complete && !is_last {
                    self.ended.get_or_insert(Finish::ToolCalls);
                }
            }
            Decoding::Text { decoder, skip_special_tokens } => {
                let is_special = Tokenizer::shared().is_special(token);
                let is_hidden = is_special && *skip_special_tokens || is_last && !self.rules.include_stop;
                if !is_hidden {
                    let text = decoder.push(token);
                    self.wait(sample);
                    self.content(text, &mut parts);
                }
            }
        }
        parts
    }

    /// The engine is done with the choice: what was held back comes out.
    pub(super) fn finish(&mut self, reason: FinishReason) -> (Vec<Part>, Finish) {
        let mut parts = Vec::new();
        if !self.is_ended() {
            match &mut self.decoding {
                Decoding::Harmony { parser, .. } => {
                    let deltas = parser.finish();
                    self.take_all(deltas, &mut parts);
                }
                Decoding::Text { decoder, .. } => {
                    let text = decoder.finish();
                    self.content(text, &mut parts);
                    self.flush(&mut parts);
                }
            }
        }
        let finish = self.ended.clone().unwrap_or_else(|| self.why(reason));
        (parts, finish)
    }

    fn why(&self, reason: FinishReason) -> Finish {
        match reason {
            _ if self.num_calls > 0 && self.calls_are_complete && reason != FinishReason::Length => {
                Finish::ToolCalls
            }
            FinishReason::StopToken(token) if !special::STOP.contains(&token) => {
                Finish::Stop(Some(StopReason::Token(token)))
            }
            FinishReason::StopToken(_) => Finish::Stop(None),
            FinishReason::Length => Finish::Length,
            // The caller of `finish` makes errors of these.
            FinishReason::Cancelled
            | FinishReason::Deadline
            | FinishReason::WaitedTooLong
            | FinishReason::NoRoom => Finish::Length,
        }
    }

    /// Counts a token as thinking or calling, or remembers it as content.
    fn count(&mut self, sample: &Sample, was: Open, deltas: &[Delta]) {
        if Tokenizer::shared().is_special(sample.token) {
            return;
        }
        if matches!(was, Open::Reasoning | Open::Call) {
            self.num_reasoning += 1;
        }
        let brings_content =
            |delta: &Delta| matches!((delta.kind(), &delta.part), (Kind::Content, DeltaPart::Text(_)));
        if was == Open::Content || deltas.iter().any(brings_content) {
            self.wait(sample);
        }
    }

    fn wait(&mut self, sample: &Sample) {
        if self.rules.has_logprobs {
            self.waiting.push_back((self.content_len, sample.clone()));
        }
    }

    fn take_all(&mut self, deltas: Vec<Delta>, parts: &mut Vec<Part>) {
        for delta in deltas {
            if self.is_ended() {
                return;
            }
            self.take(delta, parts);
        }
    }

    fn take(&mut self, delta: Delta, parts: &mut Vec<Part>) {
        let Delta { header, part } = delta;
        let kind = header.kind();
        match part {
            DeltaPart::Started => self.start(kind, parts),
            DeltaPart::Text(text) => match kind {
                Kind::Reasoning => parts.push(Part::Reasoning(text)),
                Kind::Content => self.content(text, parts),
                Kind::ToolCall { .. } => {
                    parts.push(Part::CallArguments { index: self.num_calls - 1, text });
                }
                Kind::NotAssistant => {}
            },
            DeltaPart::Ended(end) => {
                self.set_open(Open::Nothing);
                match kind {
                    Kind::Content => self.flush(parts),
                    Kind::ToolCall { .. } => self.calls_are_complete = end != End::Truncated,
                    Kind::Reasoning | Kind::NotAssistant => {}
                }
            }
        }
    }

    fn start(&mut self, kind: Kind<'_>, parts: &mut Vec<Part>) {
        self.set_open(match kind {
            Kind::Reasoning => Open::Reasoning,
            Kind::Content => Open::Content,
            Kind::ToolCall { .. } => Open::Call,
            Kind::NotAssistant => Open::Foreign,
        });
        if let Kind::ToolCall { name } = kind {
            let id = format!("chatcmpl-tool-{}", uuid::Uuid::new_v4().simple());
            parts.push(Part::CallStarted { index: self.num_calls, id, name: name.to_owned() });
            self.num_calls += 1;
            self.calls_are_complete = false;
        }
    }

    fn set_open(&mut self, now: Open) {
        if let Decoding::Harmony { open, .. } = &mut self.decoding {
            *open = now;
        }
    }

    fn content(&mut self, text: String, parts: &mut Vec<Part>) {
        self.content_len += text.len();
        let Released { text, stopped_by } = if self.num_sampled >= self.rules.min_tokens {
            self.stops.push(text)
        } else {
            Released { text: self.stops.flush() + &text, stopped_by: None }
        };
        self.released_len += text.len();
        let logprobs = self.let_out(|start, released| start < released);
        self.emit(text, logprobs, parts);
        if let Some(stop) = stopped_by {
            self.ended = Some(Finish::Stop(Some(StopReason::Text(stop))));
        }
    }

    /// A content message is over.
    fn flush(&mut self, parts: &mut Vec<Part>) {
        let text = self.stops.flush();
        self.released_len += text.len();
        let logprobs = self.let_out(|_, _| true);
        self.emit(text, logprobs, parts);
    }

    fn let_out(&mut self, is_out: impl Fn(usize, usize) -> bool) -> Vec<Sample> {
        let released = self.released_len;
        let num_out = self.waiting.iter().take_while(|(start, _)| is_out(*start, released)).count();
        self.waiting.drain(..num_out).map(|(_, sample)| sample).collect()
    }

    fn emit(&self, text: String, logprobs: Vec<Sample>, parts: &mut Vec<Part>) {
        if self.rules.has_content && !(text.is_empty() && logprobs.is_empty()) {
            parts.push(Part::Content { text, logprobs });
        }
    }
}

impl Rules {
    fn of(generation: &Generation) -> Self {
        let several_calls = match generation.output {
            Output::Harmony { several_calls, .. } => several_calls,
            Output::Text { .. } | Output::Tokens => true,
        };
        Self {
            min_tokens: generation.min_tokens,
            include_stop: generation.include_stop,
            stop_tokens: generation.all_stop_tokens(),
            several_calls,
            has_logprobs: generation.sampling.num_logprobs.is_some(),
            has_content: generation.output != Output::Tokens,
        }
    }
}
