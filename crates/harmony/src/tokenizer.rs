//! `o200k_harmony`: text to token ids and back. The table is part of the
//! binary; nothing is fetched or read at run time.

mod merge;
pub mod special;
mod split;
mod stream;

use std::collections::HashMap;
use std::sync::LazyLock;

use chorale_plan::TokenId;

pub use stream::StreamDecoder;

use merge::merge;
use split::Splitter;

/// How many ids the vocabulary has, specials and reserved ones included.
///
/// The embedding of the released checkpoints has as many rows.
pub const VOCABULARY_SIZE: u32 = 201_088;

/// What stands for an id that is outside of the vocabulary.
const REPLACEMENT: &[u8] = "\u{fffd}".as_bytes();

/// The vocabulary of gpt-oss.
///
/// Encoding is exactly OpenAI's for every input and takes `n log n` at worst:
/// a megabyte of blanks or of one letter is neither an error nor slow.
pub struct Tokenizer {
    /// Every id's bytes; a special's are its spelling.
    bytes: Vec<Box<[u8]>>,
    /// Ordinary tokens only. An id is its merge rank as well.
    ids: HashMap<Box<[u8]>, TokenId>,
    /// Special tokens by spelling.
    specials: HashMap<Box<[u8]>, TokenId>,
    len_of_longest_special: usize,
    splitter: Splitter,
}

impl Tokenizer {
    /// The one vocabulary there is, built when first asked for.
    ///
    /// That takes a fraction of a second: a server asks for it before it says
    /// that it is ready.
    pub fn shared() -> &'static Self {
        static SHARED: LazyLock<Tokenizer> = LazyLock::new(Tokenizer::new);
        &SHARED
    }

    fn new() -> Self {
        let table = tiktoken_rs::o200k_base().expect("the table is compiled in");
        let ordinary = (0..special::FIRST)
            .map(|id| table.decode_bytes(&[id]).expect("ordinary ids are dense").into_boxed_slice());
        let spelled = (special::FIRST..VOCABULARY_SIZE).map(|id| special::spelling(id).into_bytes().into());
        let bytes: Vec<Box<[u8]>> = ordinary.chain(spelled).collect();

        let by_bytes =
            |ids: std::ops::Range<TokenId>| ids.map(|id| (bytes[id as usize].clone(), id)).collect();
        let ids = by_bytes(0..special::FIRST);
        let specials: HashMap<Box<[u8]>, TokenId> = by_bytes(special::FIRST..VOCABULARY_SIZE);
        let len_of_longest_special = specials.keys().map(|spelling| spelling.len()).max().unwrap_or(0);
        Self { bytes, ids, specials, len_of_longest_special, splitter: Splitter::new() }
    }

    /// Encodes plain text: `<|end|>` in it is seven characters, not a token.
    ///
    /// This is the way for everything that a client wrote.
    pub fn encode_text(&self, text: &str) -> Vec<TokenId> {
        let mut tokens = Vec::with_capacity(text.len() / 3);
        self.encode_text_into(text, &mut tokens);
        tokens
    }

    pub(crate) fn encode_text_into(&self, text: &str, tokens: &mut Vec<TokenId>) {
        for piece in self.splitter.pieces(text) {
            match self.ids.get(piece.as_bytes()) {
                Some(&id) => tokens.push(id),
                None => {
                    let rank = |bytes: &[u8]| self.ids.get(bytes).copied();
                    merge(piece.as_bytes(), rank, |id| tokens.push(id));
                }
            }
        }
    }

    /// Encodes text in which special spellings, reserved ones too, are tokens.
    ///
    /// For prompts that are written in harmony already, and for tests. The text
    /// of a client must not come here, lest it forge messages.
    pub fn encode_with_specials(&self, text: &str) -> Vec<TokenId> {
        let mut tokens = Vec::with_capacity(text.len() / 3);
        let mut plain_from = 0;
        let mut search_from = 0;
        while let Some(offset) = text[search_from..].find("<|") {
            let at = search_from + offset;
            match self.special_at(&text.as_bytes()[at..]) {
                Some(id) => {
                    self.encode_text_into(&text[plain_from..at], &mut tokens);
                    tokens.push(id);
                    plain_from = at + self.bytes[id as usize].len();
                    search_from = plain_from;
                }
                None => search_from = at + 1,
            }
        }
        self.encode_text_into(&text[plain_from..], &mut tokens);
        tokens
    }

    fn special_at(&self, text: &[u8]) -> Option<TokenId> {
        let window = &text[..text.len().min(self.len_of_longest_special)];
        let len = window.windows(2).position(|pair| pair == b"|>")? + 2;
        self.specials.get(&window[..len]).copied()
    }

    /// The text of all ids, special ones spelled; bytes that are not UTF-8
    /// become replacement characters, as do ids outside of the vocabulary.
    pub fn decode(&self, tokens: &[TokenId]) -> String {
        String::from_utf8_lossy(&self.decode_bytes(tokens)).into_owned()
    }

    /// The bytes of all ids; an id outside of the vocabulary is U+FFFD.
    pub fn decode_bytes(&self, tokens: &[TokenId]) -> Vec<u8> {
        tokens.iter().flat_map(|&token| self.bytes_or_replacement(token)).copied().collect()
    }

    /// The bytes of one id, which need not be whole characters; a special's are
    /// its spelling. `None` outside of the vocabulary.
    pub fn token_bytes(&self, token: TokenId) -> Option<&[u8]> {
        self.bytes.get(token as usize).map(|bytes| &**bytes)
    }

    /// The ordinary token of exactly these bytes.
    pub(crate) fn token_of(&self, bytes: &[u8]) -> Option<TokenId> {
        self.ids.get(bytes).copied()
    }

    /// Whether the id is not text. Ids outside of the vocabulary are not special.
    pub fn is_special(&self, token: TokenId) -> bool {
        (special::FIRST..VOCABULARY_SIZE).contains(&token)
    }

    fn bytes_or_replacement(&self, token: TokenId) -> &[u8] {
        self.token_bytes(token).unwrap_or(REPLACEMENT)
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("vocabulary_size", &self.bytes.len()).finish_non_exhaustive()
    }
}
