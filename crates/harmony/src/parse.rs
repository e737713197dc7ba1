//! Tokens to messages, as they arrive. It never fails: what cannot be
//! understood comes out as text, and what had to be guessed is counted.

mod delta;
mod draft;
mod fields;
mod repairs;

use std::sync::Arc;

use chorale_plan::TokenId;

pub use delta::{Delta, End, Part, fold};
pub use repairs::{Repair, Repairs};

use crate::conversation::{Channel, Header, Kind, Message, Role, ToolNamespace};
use crate::tokenizer::{StreamDecoder, Tokenizer, special};
use draft::{Draft, Marker};

/// How many tokens a header may have before it is taken for content.
///
/// Real ones have up to about thirty, most of them in a function's name; the
/// bound keeps a model that forgot `<|message|>` from going silent.
const HEADER_TOKENS_MAX: u32 = 256;

/// Understands what a model generates, one token at a time.
///
/// Text is never lost: every text token comes out in a [`Part::Text`] or is part
/// of a [`Header`]. Dropped are only white space between the words of a header,
/// words that must belong to a header of which nothing came, channels that a
/// later `<|channel|>` overrides, and special tokens where they mean nothing;
/// [`Self::repairs`] counts all but the first. What it makes of mistakes:
///
/// - A recipient may stand before or after the channel and on any channel;
///   `<|constrain|>` may be missing; an assistant without a channel answers.
/// - `<|start|>` and `<|channel|>` inside content begin the next message.
/// - Without `<|message|>`, the content is what follows the words that belong in
///   a header.
/// - Words too many in a header are a message of their own before it, so that
///   they cannot spoil a call's arguments.
#[derive(Clone, Debug)]
pub struct StreamParser {
    state: State,
    repairs: Repairs,
}

#[derive(Clone, Debug)]
enum State {
    /// No message is open.
    Between,
    /// A header is being read.
    Header(Draft),
    /// A message is open.
    Content(Open),
}

/// A message whose text is arriving.
#[derive(Clone, Debug)]
struct Open {
    header: Arc<Header>,
    decoder: StreamDecoder,
}

impl Default for StreamParser {
    fn default() -> Self {
        Self::new()
    }
}

impl StreamParser {
    /// For what follows a prompt: `<|start|>assistant` was said already.
    pub fn new() -> Self {
        Self { state: State::Header(Draft::assistant()), repairs: Repairs::default() }
    }

    /// For whole conversations, in which each message has its `<|start|>`.
    pub fn for_conversation() -> Self {
        Self { state: State::Between, repairs: Repairs::default() }
    }

    /// What this token brings: often one piece of text, nothing inside headers
    /// and characters, and several deltas where messages meet.
    pub fn push(&mut self, token: TokenId) -> Vec<Delta> {
        let mut deltas = Vec::new();
        self.state = match std::mem::replace(&mut self.state, State::Between) {
            State::Between => self.between(token, &mut deltas),
            State::Header(draft) => self.in_header(draft, token, &mut deltas),
            State::Content(open) => self.in_content(open, token, &mut deltas),
        };
        deltas
    }

    /// The stream is over: what waited comes out, and an open message ends as
    /// [`End::Truncated`]. Whatever comes next needs a `<|start|>`.
    pub fn finish(&mut self) -> Vec<Delta> {
        let mut deltas = Vec::new();
        match std::mem::replace(&mut self.state, State::Between) {
            State::Between => {}
            State::Header(draft) => self.end_header(draft, End::Truncated, &mut deltas),
            State::Content(open) => self.close(open, End::Truncated, &mut deltas),
        }
        deltas
    }

    /// What had to be guessed so far.
    pub fn repairs(&self) -> &Repairs {
        &self.repairs
    }

    fn between(&mut self, token: TokenId, deltas: &mut Vec<Delta>) -> State {
        match Token::of(token) {
            Token::Start => State::Header(Draft::unknown()),
            Token::End(_) | Token::Stray => {
                self.repairs.add(Repair::StraySpecial);
                State::Between
            }
            // Perhaps `<|start|>` is all that is missing, perhaps this is no
            // header at all: the draft finds out.
            Token::Channel | Token::Constrain | Token::Message | Token::Text => {
                self.repairs.add(Repair::MissingStart);
                self.in_header(Draft::assistant(), token, deltas)
            }
        }
    }

    fn in_header(&mut self, mut draft: Draft, token: TokenId, deltas: &mut Vec<Delta>) -> State {
        match Token::of(token) {
            Token::Text => {
                self.check_vocabulary(token);
                draft.push(token);
                self.unless_hopeless(draft, deltas)
            }
            Token::Channel => {
                draft.mark(Marker::Channel);
                self.unless_hopeless(draft, deltas)
            }
            Token::Constrain => {
                draft.mark(Marker::Constrain);
                self.unless_hopeless(draft, deltas)
            }
            Token::Message => {
                let (header, stray) = draft.complete(&mut self.repairs);
                if !stray.is_empty() {
                    let apart = Header { recipient: None, content_type: None, ..header.clone() };
                    self.whole_message(apart, stray, End::Implied, deltas);
                }
                State::Content(self.open(header, deltas))
            }
            Token::Start => {
                self.repairs.add(Repair::RepeatedStart);
                self.end_header(draft, End::Implied, deltas);
                State::Header(Draft::unknown())
            }
            Token::End(end) => {
                self.end_header(draft, end, deltas);
                State::Between
            }
            Token::Stray => {
                self.repairs.add(Repair::StraySpecial);
                State::Header(draft)
            }
        }
    }

    fn in_content(&mut self, mut open: Open, token: TokenId, deltas: &mut Vec<Delta>) -> State {
        match Token::of(token) {
            Token::Text => {
                self.check_vocabulary(token);
                open.text(token, deltas);
                State::Content(open)
            }
            Token::End(end) => {
                self.close(open, end, deltas);
                State::Between
            }
            Token::Start => {
                self.repairs.add(Repair::MissingEnd);
                self.close(open, End::Implied, deltas);
                State::Header(Draft::unknown())
            }
            Token::Channel => {
                self.repairs.add(Repair::MissingEnd);
                let draft = Draft::inside(&open.header);
                self.close(open, End::Implied, deltas);
                State::Header(draft)
            }
            Token::Constrain | Token::Message | Token::Stray => {
                self.repairs.add(Repair::StraySpecial);
                State::Content(open)
            }
        }
    }

    /// Goes on reading a header while it may be one.
    fn unless_hopeless(&mut self, draft: Draft, deltas: &mut Vec<Delta>) -> State {
        if draft.is_plausible() && draft.num_tokens() <= HEADER_TOKENS_MAX {
            return State::Header(draft);
        }
        self.repairs.add(Repair::MissingMessage);
        let decoder = draft.decoder().clone();
        let (header, text) = draft.incomplete(&mut self.repairs);
        let open = Open { decoder, ..self.open(header, deltas) };
        Delta::text(&open.header, text, deltas);
        State::Content(open)
    }

    /// Ends a header that never got its `<|message|>`. There was a message if
    /// some of it is text, or if it is a call without arguments; but a call that
    /// was cut off is none, for its name may be half a name.
    fn end_header(&mut self, draft: Draft, end: End, deltas: &mut Vec<Delta>) {
        if draft.is_blank() && end == End::Implied {
            return;
        }
        let (header, text) = match end {
            End::Truncated => draft.cut_off(&mut self.repairs),
            End::End | End::Return | End::Call | End::Implied => draft.finished(&mut self.repairs),
        };
        let is_call = end.is_token() && matches!(header.kind(), Kind::ToolCall { .. });
        if is_call || !text.is_empty() {
            self.repairs.add(Repair::MissingMessage);
            self.whole_message(header, text, end, deltas);
        } else {
            self.repairs.add(Repair::EmptyHeader);
        }
    }

    fn open(&mut self, header: Header, deltas: &mut Vec<Delta>) -> Open {
        self.check_header(&header);
        let header = Arc::new(header);
        deltas.push(Delta { header: Arc::clone(&header), part: Part::Started });
        Open { header, decoder: StreamDecoder::new() }
    }

    fn close(&mut self, mut open: Open, end: End, deltas: &mut Vec<Delta>) {
        Delta::text(&open.header, open.decoder.finish(), deltas);
        self.check_end(&open.header, end);
        deltas.push(Delta { header: open.header, part: Part::Ended(end) });
    }

    fn whole_message(&mut self, header: Header, text: String, end: End, deltas: &mut Vec<Delta>) {
        let open = self.open(header, deltas);
        Delta::text(&open.header, text, deltas);
        self.close(open, end, deltas);
    }

    fn check_header(&mut self, header: &Header) {
        if header.author.role != Role::Assistant {
            return;
        }
        match &header.channel {
            None => self.repairs.add(Repair::MissingChannel),
            Some(Channel::Other(_)) => self.repairs.add(Repair::UnknownChannel),
            Some(Channel::Analysis | Channel::Commentary | Channel::Final) => {}
        }
        let namespace = header.recipient.as_deref().and_then(|name| name.split_once('.'));
        if namespace.is_some_and(|(namespace, _)| namespace == ToolNamespace::FUNCTIONS) {
            if header.channel != Some(Channel::Commentary) {
                self.repairs.add(Repair::CallOffCommentary);
            }
            if !header.content_type.as_ref().is_some_and(|kind| kind.constrained) {
                self.repairs.add(Repair::MissingConstrain);
            }
        }
    }

    fn check_end(&mut self, header: &Header, end: End) {
        let is_call = matches!(header.kind(), Kind::ToolCall { .. });
        match end {
            End::Call if !is_call => self.repairs.add(Repair::WrongEnd),
            End::End | End::Return if is_call => self.repairs.add(Repair::WrongEnd),
            End::End | End::Return | End::Call | End::Implied | End::Truncated => {}
        }
    }

    fn check_vocabulary(&mut self, token: TokenId) {
        if Tokenizer::shared().token_bytes(token).is_none() {
            self.repairs.add(Repair::UnknownToken);
        }
    }
}

impl Open {
    fn text(&mut self, token: TokenId, deltas: &mut Vec<Delta>) {
        Delta::text(&self.header, self.decoder.push(token), deltas);
    }
}

/// What a token is to the parser.
enum Token {
    Start,
    Channel,
    Constrain,
    Message,
    End(End),
    /// Special, but not part of harmony.
    Stray,
    Text,
}

impl Token {
    fn of(token: TokenId) -> Self {
        match token {
            special::START => Self::Start,
            special::CHANNEL => Self::Channel,
            special::CONSTRAIN => Self::Constrain,
            special::MESSAGE => Self::Message,
            special::END => Self::End(End::End),
            special::RETURN => Self::End(End::Return),
            special::CALL => Self::End(End::Call),
            token if Tokenizer::shared().is_special(token) => Self::Stray,
            _ => Self::Text,
        }
    }
}

/// The messages of a completion, after a prompt that ends in
/// `<|start|>assistant`. The fold of [`StreamParser`]'s deltas.
pub fn parse(tokens: &[TokenId]) -> Vec<Message> {
    parse_with(StreamParser::new(), tokens)
}

/// The messages of a whole conversation; their structured contents are text.
pub fn parse_conversation(tokens: &[TokenId]) -> Vec<Message> {
    parse_with(StreamParser::for_conversation(), tokens)
}

fn parse_with(mut parser: StreamParser, tokens: &[TokenId]) -> Vec<Message> {
    let mut deltas: Vec<Delta> = tokens.iter().flat_map(|&token| parser.push(token)).collect();
    deltas.extend(parser.finish());
    fold(deltas)
}
