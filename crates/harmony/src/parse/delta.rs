//! What the parser says, and how to put it together again.

use std::sync::Arc;

use crate::conversation::{Content, Header, Kind, Message};

/// Something that happened to one message.
///
/// For each message there is one `Started`, any number of `Text`, one `Ended`,
/// in this order, before the next message's `Started`.
#[derive(Clone, Debug, PartialEq)]
pub struct Delta {
    /// The message's, the same in all of its deltas.
    pub header: Arc<Header>,
    /// What happened.
    pub part: Part,
}

impl Delta {
    /// What a front end does with the message's text.
    pub fn kind(&self) -> Kind<'_> {
        self.header.kind()
    }

    /// A delta of text, if there is any.
    pub(super) fn text(header: &Arc<Header>, text: String, deltas: &mut Vec<Self>) {
        if !text.is_empty() {
            deltas.push(Self { header: Arc::clone(header), part: Part::Text(text) });
        }
    }
}

/// What happened to a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Its header is complete.
    Started,
    /// More of its text; never empty.
    Text(String),
    /// It is complete.
    Ended(End),
}

/// How a message ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// `<|end|>`: another message follows.
    End,
    /// `<|return|>`: the turn is over.
    Return,
    /// `<|call|>`: a tool is to answer.
    Call,
    /// The next message began.
    Implied,
    /// The stream ended.
    Truncated,
}

impl End {
    /// Whether the model said so itself.
    pub(super) fn is_token(self) -> bool {
        match self {
            Self::End | Self::Return | Self::Call => true,
            Self::Implied | Self::Truncated => false,
        }
    }
}

/// The messages that a parser's deltas tell of. Text outside of a message, which
/// no parser yields, is ignored.
pub fn fold(deltas: impl IntoIterator<Item = Delta>) -> Vec<Message> {
    let mut messages: Vec<Message> = Vec::new();
    for delta in deltas {
        match delta.part {
            Part::Started => {
                let content = vec![Content::Text(String::new())];
                messages.push(Message { header: Header::clone(&delta.header), content });
            }
            Part::Text(more) => {
                if let Some(Content::Text(text)) =
                    messages.last_mut().and_then(|last| last.content.last_mut())
                {
                    text.push_str(&more);
                }
            }
            Part::Ended(_) => {}
        }
    }
    messages
}
