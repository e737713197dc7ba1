//! The vocabulary as llguidance wants it: a trie of token texts, built once for
//! the process. It holds no grammar.

use std::sync::{Arc, LazyLock};

use chorale_plan::TokenId;
use llguidance::ParserFactory;
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, TokenizerEnv};

use crate::tokenizer::{Tokenizer, VOCABULARY_SIZE, special};

/// Work on one token mask, in llguidance's units: about 10 ms at worst.
const STEP_LEXER_FUEL_MAX: u64 = 150_000;
/// Earley items of one token mask: about 2 ms at worst.
const STEP_ITEMS_MAX: usize = 50_000;
/// Work on a grammar's expressions before the first mask: about 20 ms.
const COMPILE_LEXER_FUEL_MAX: u64 = 1_000_000;
/// Lexer states of one constraint, of one to two kilobytes each.
const LEXER_STATES_MAX: usize = 30_000;
/// Symbols in the productions of one grammar.
const GRAMMAR_SYMBOLS_MAX: usize = 100_000;

/// What compiles grammars over the shared vocabulary.
pub(super) fn parser_factory() -> Result<&'static ParserFactory, String> {
    static FACTORY: LazyLock<Result<ParserFactory, String>> =
        LazyLock::new(|| new_factory().map_err(|error| error.to_string()));
    FACTORY.as_ref().map_err(Clone::clone)
}

/// What a grammar calls the end of its text, where [`is_end`] finds it in masks.
const END_OF_TEXT: TokenId = special::RETURN;

/// Whether the text may end, by llguidance's mask.
pub(super) fn is_end(is_allowed: impl Fn(TokenId) -> bool) -> bool {
    is_allowed(END_OF_TEXT)
}

fn new_factory() -> Result<ParserFactory, impl std::fmt::Display> {
    let vocabulary: TokEnv = Arc::new(Vocabulary::new());
    let slices = SlicedBiasComputer::general_slices();
    let factory = ParserFactory::new(&vocabulary, InferenceCapabilities::default(), &slices);
    factory.map(|mut factory| {
        factory.quiet();
        let limits = factory.limits_mut();
        limits.step_lexer_fuel = STEP_LEXER_FUEL_MAX;
        limits.step_max_items = STEP_ITEMS_MAX;
        limits.initial_lexer_fuel = COMPILE_LEXER_FUEL_MAX;
        limits.max_lexer_states = LEXER_STATES_MAX;
        limits.max_grammar_size = GRAMMAR_SYMBOLS_MAX;
        limits.verbose_errors = false;
        factory
    })
}

/// The token texts. Special tokens have none: no grammar can say them, whatever
/// a client writes into it.
struct Vocabulary {
    trie: TokTrie,
}

impl Vocabulary {
    fn new() -> Self {
        let tokenizer = Tokenizer::shared();
        let text = |token: TokenId| match tokenizer.token_bytes(token) {
            Some(bytes) if !tokenizer.is_special(token) => bytes.to_vec(),
            _ => Vec::new(),
        };
        let texts: Vec<Vec<u8>> = (0..VOCABULARY_SIZE).map(text).collect();
        Self { trie: TokTrie::from(&TokRxInfo::new(VOCABULARY_SIZE, END_OF_TEXT), &texts) }
    }
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        let mut tokens = Vec::new();
        for chunk in bytes.utf8_chunks() {
            Tokenizer::shared().encode_text_into(chunk.valid(), &mut tokens);
            tokens.extend(self.trie.greedy_tokenize(chunk.invalid()));
        }
        tokens
    }
}
