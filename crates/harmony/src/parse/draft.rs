//! A header while its tokens arrive. It collects text between markers and knows
//! when that cannot become a header; what the words mean is the business of
//! `fields`.

use std::sync::Arc;

use chorale_plan::TokenId;

use super::fields::{Fields, RECIPIENT};
use super::repairs::Repairs;
use crate::conversation::{Author, Header, Role};
use crate::tokenizer::StreamDecoder;

/// What the text that follows is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Marker {
    /// Who speaks; after `<|start|>`.
    Author,
    /// After `<|channel|>`.
    Channel,
    /// The content type; after `<|constrain|>`.
    Constrain,
}

#[derive(Clone, Debug)]
pub(super) struct Draft {
    /// Who speaks, where that needs no saying.
    author: Option<Author>,
    /// The message that this header interrupts.
    interrupted: Option<Arc<Header>>,
    /// The last one is open.
    segments: Vec<(Marker, String)>,
    /// What the open segment's last token left unfinished.
    decoder: StreamDecoder,
    num_tokens: u32,
}

impl Draft {
    /// After `<|start|>`.
    pub(super) fn unknown() -> Self {
        Self {
            author: None,
            interrupted: None,
            segments: vec![(Marker::Author, String::new())],
            decoder: StreamDecoder::new(),
            num_tokens: 0,
        }
    }

    /// After `<|start|>assistant`.
    pub(super) fn assistant() -> Self {
        Self { author: Some(Author::of(Role::Assistant)), ..Self::unknown() }
    }

    /// After a `<|channel|>` in the content of this message.
    pub(super) fn inside(header: &Arc<Header>) -> Self {
        let author = Some(header.author.clone());
        let mut draft = Self { author, interrupted: Some(Arc::clone(header)), ..Self::unknown() };
        draft.mark(Marker::Channel);
        draft
    }

    pub(super) fn push(&mut self, token: TokenId) {
        self.num_tokens += 1;
        if let Some((_, text)) = self.segments.last_mut() {
            text.push_str(&self.decoder.push(token));
        }
    }

    pub(super) fn mark(&mut self, marker: Marker) {
        self.num_tokens += 1;
        self.finish_text();
        self.segments.push((marker, String::new()));
    }

    pub(super) fn num_tokens(&self) -> u32 {
        self.num_tokens
    }

    /// The state of the open segment's text, for content to go on from.
    pub(super) fn decoder(&self) -> &StreamDecoder {
        &self.decoder
    }

    /// Whether nothing but white space has come.
    pub(super) fn is_blank(&self) -> bool {
        matches!(self.segments.as_slice(), [(Marker::Author, text)] if text.trim().is_empty())
    }

    /// Whether this may still become a header.
    ///
    /// After `<|start|>assistant` only the role again or a recipient can come
    /// before a marker. To see that early is what lets the text of a model that
    /// knows no harmony stream.
    pub(super) fn is_plausible(&self) -> bool {
        let (Some(author), [(Marker::Author, text)]) = (&self.author, self.segments.as_slice()) else {
            return true;
        };
        let role = author.role.as_str();
        let text = text.trim_start();
        let rest = text.strip_prefix(role).unwrap_or(text).trim_start();
        rest.starts_with(RECIPIENT) || RECIPIENT.starts_with(rest) || role.starts_with(text)
    }

    /// The header before a `<|message|>`, and the words in it that mean nothing.
    pub(super) fn complete(mut self, repairs: &mut Repairs) -> (Header, String) {
        self.finish_text();
        let mut fields = Fields::new(self.author, repairs);
        for (marker, text) in &self.segments {
            fields.segment(*marker, text);
        }
        fields.complete()
    }

    /// The header that can be made out without a `<|message|>`, and the text
    /// that follows it. Bytes that wait in [`Self::decoder`] are not in it.
    pub(super) fn incomplete(self, repairs: &mut Repairs) -> (Header, String) {
        self.salvage(false, repairs)
    }

    /// [`Self::incomplete`] where nothing more will come.
    pub(super) fn finished(mut self, repairs: &mut Repairs) -> (Header, String) {
        self.finish_text();
        self.salvage(false, repairs)
    }

    /// [`Self::finished`] where the last word may be half a word.
    pub(super) fn cut_off(mut self, repairs: &mut Repairs) -> (Header, String) {
        self.finish_text();
        self.salvage(true, repairs)
    }

    fn salvage(self, is_cut_off: bool, repairs: &mut Repairs) -> (Header, String) {
        let mut fields = Fields::new(self.author, repairs);
        let mut content = String::new();
        for (marker, text) in &self.segments {
            content.push_str(fields.leading(*marker, text, is_cut_off));
        }
        let header = fields.header();
        match self.interrupted {
            // Nothing was said of a new message, so the old one goes on.
            Some(old) if header.channel.is_none() && header.recipient.is_none() => {
                (Header::clone(&old), content)
            }
            _ => (header, content),
        }
    }

    fn finish_text(&mut self) {
        if let Some((_, text)) = self.segments.last_mut() {
            text.push_str(&self.decoder.finish());
        }
    }
}
