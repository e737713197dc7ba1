//! Texts that are known beforehand, one of which is being said. Any way of
//! cutting them into tokens will do: which one is the model's own affair.

use std::ops::Range;
use std::sync::Arc;

use chorale_plan::TokenId;

use super::mask::MaskBuilder;
use crate::tokenizer::{Tokenizer, special};

/// Special tokens inside a [`Literal`] are single bytes from here on, which
/// occur in no UTF-8 text.
const FIRST_MARKER: u8 = 0xf8;

/// The special tokens that literals may hold, in the order of their markers.
const MARKED: [TokenId; 4] = [special::START, special::CHANNEL, special::CONSTRAIN, special::MESSAGE];

/// Longer than any token's text.
const TOKEN_BYTES_MAX: usize = 256;

/// A text that may be said, and what it means.
#[derive(Clone, Debug)]
pub(super) struct Literal<M> {
    bytes: Box<[u8]>,
    pub(super) meaning: M,
}

impl<M> Literal<M> {
    /// A text in which nothing is special.
    pub(super) fn plain(text: &str, meaning: M) -> Self {
        Self { bytes: text.as_bytes().into(), meaning }
    }

    /// A text in which the harmony tokens of headers are special.
    pub(super) fn marked(text: &str, meaning: M) -> Self {
        let mut bytes = text.to_owned().into_bytes();
        for (marker, token) in (FIRST_MARKER..).zip(MARKED) {
            let spelling = special::spelling(token);
            while let Some(at) = bytes.windows(spelling.len()).position(|part| part == spelling.as_bytes()) {
                bytes.splice(at..at + spelling.len(), [marker]);
            }
        }
        Self { bytes: bytes.into(), meaning }
    }
}

/// How much of which literals has been said.
#[derive(Clone, Debug)]
pub(super) struct Cursor<M> {
    /// Sorted, so those with a common beginning are neighbours.
    literals: Arc<[Literal<M>]>,
    /// Those that begin with what was said.
    live: Range<usize>,
    /// How many bytes were said.
    position: usize,
}

impl<M> Cursor<M> {
    /// Nothing has been said yet.
    pub(super) fn new(mut literals: Vec<Literal<M>>) -> Self {
        literals.sort_by(|a, b| a.bytes.cmp(&b.bytes));
        let live = 0..literals.len();
        Self { literals: literals.into(), live, position: 0 }
    }

    /// Whether nothing has been said yet.
    pub(super) fn is_new(&self) -> bool {
        self.position == 0
    }

    /// Adds the tokens that may come next.
    pub(super) fn allow_next(&self, mask: &mut MaskBuilder) {
        let mut before: &[u8] = &[];
        for literal in &self.literals[self.live.clone()] {
            let rest = &literal.bytes[self.position..];
            let num_shared = before.iter().zip(rest).take_while(|(a, b)| a == b).count();
            before = rest;
            if let Some(token) = rest.first().and_then(|&byte| marked(byte)) {
                mask.allow(token);
                continue;
            }
            let len = rest.iter().take(TOKEN_BYTES_MAX).take_while(|&&byte| byte < FIRST_MARKER).count();
            // The neighbour has already told what the shared beginning allows.
            for end in num_shared + 1..=len {
                if let Some(token) = Tokenizer::shared().token_of(&rest[..end]) {
                    mask.allow(token);
                }
            }
        }
    }

    /// Says a token; `false`, and nothing is said, if it cannot be next.
    pub(super) fn advance(&mut self, token: TokenId) -> bool {
        let marker = MARKED.iter().position(|&marked| marked == token).map(|at| [FIRST_MARKER + at as u8]);
        let said: &[u8] = match (&marker, Tokenizer::shared().token_bytes(token)) {
            (Some(marker), _) => marker,
            (None, Some(text)) if is_text(token, text) => text,
            (None, _) => return false,
        };
        let fits = |literal: &Literal<M>| literal.bytes[self.position..].starts_with(said);
        let live = &self.literals[self.live.clone()];
        let Some(first) = live.iter().position(fits) else { return false };
        let len = live[first..].iter().take_while(|literal| fits(literal)).count();
        let start = self.live.start + first;
        self.live = start..start + len;
        self.position += said.len();
        true
    }

    /// The literal that has been said completely. A longer one may begin with it.
    pub(super) fn complete(&self) -> Option<&M> {
        let shortest = self.literals[self.live.clone()].first()?;
        (shortest.bytes.len() == self.position).then_some(&shortest.meaning)
    }
}

fn marked(byte: u8) -> Option<TokenId> {
    let index = byte.checked_sub(FIRST_MARKER)?;
    MARKED.get(usize::from(index)).copied()
}

fn is_text(token: TokenId, bytes: &[u8]) -> bool {
    token < special::FIRST && bytes.iter().all(|&byte| byte < FIRST_MARKER)
}

#[cfg(test)]
mod tests {
    use super::{Cursor, Literal};
    use crate::constrain::mask::MaskBuilder;
    use crate::tokenizer::Tokenizer;

    fn next(cursor: &Cursor<u8>) -> Vec<String> {
        let mut mask = MaskBuilder::empty();
        cursor.allow_next(&mut mask);
        let mask = mask.finish();
        let tokens = (0..crate::VOCABULARY_SIZE).filter(|&token| mask.contains(token));
        let mut texts: Vec<String> = tokens.map(|token| Tokenizer::shared().decode(&[token])).collect();
        texts.sort();
        texts
    }

    fn say(cursor: &mut Cursor<u8>, text: &str) {
        for token in Tokenizer::shared().encode_with_specials(text) {
            assert!(cursor.advance(token), "{text}");
        }
    }

    #[test]
    fn the_next_tokens_are_all_beginnings_of_the_rest() {
        let literals = [("red", 1), ("reduce", 2), ("blue", 3)];
        let mut cursor =
            Cursor::new(literals.map(|(text, meaning)| Literal::plain(text, meaning)).into_iter().collect());
        assert_eq!(next(&cursor), ["b", "bl", "blu", "blue", "r", "re", "red", "redu", "reduce"]);
        say(&mut cursor, "red");
        assert_eq!(cursor.complete(), Some(&1));
        assert_eq!(next(&cursor), ["u", "uc", "uce"]);
        say(&mut cursor, "uce");
        assert_eq!(cursor.complete(), Some(&2));
        assert!(next(&cursor).is_empty());
    }

    #[test]
    fn a_marker_is_its_token_and_no_byte() {
        let text = "<|channel|>final<|message|>";
        let mut cursor = Cursor::new(vec![Literal::marked(text, 1)]);
        assert_eq!(next(&cursor), ["<|channel|>"]);
        let byte = Tokenizer::shared().token_of(&[super::FIRST_MARKER + 1]).unwrap();
        assert!(!cursor.advance(byte));
        assert!(!cursor.advance(u32::MAX));
        say(&mut cursor, text);
        assert_eq!(cursor.complete(), Some(&1));
        let plain = Cursor::new(vec![Literal::plain(text, 1)]);
        assert!(next(&plain).contains(&"<".to_owned()));
    }
}
