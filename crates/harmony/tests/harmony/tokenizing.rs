//! The vocabulary against `tokenizer.json` and against tiktoken.

use std::time::{Duration, Instant};

use chorale_harmony::{StreamDecoder, TokenId, Tokenizer, VOCABULARY_SIZE, special};
use serde::Deserialize;

use crate::wire::fixture;

#[derive(Deserialize)]
struct Fixture {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<TokenId>,
    ids_with_specials: Option<Vec<TokenId>>,
}

#[test]
fn texts_encode_as_the_reference_encodes_them() {
    let tokenizer = Tokenizer::shared();
    let cases = fixture::<Fixture>("harmony/tokenizer.json").cases;
    assert_eq!(cases.len(), 26);
    for Case { text, ids, ids_with_specials } in cases {
        assert_eq!(tokenizer.encode_text(&text), ids, "{text:?}");
        assert_eq!(tokenizer.decode(&ids), text);
        let ids_with_specials = ids_with_specials.unwrap_or(ids);
        assert_eq!(tokenizer.encode_with_specials(&text), ids_with_specials, "{text:?}");
        assert_eq!(tokenizer.decode(&ids_with_specials), text);
    }
}

#[test]
fn special_tokens_are_spelled_as_the_reference_spells_them() {
    let tokenizer = Tokenizer::shared();
    let reference = tiktoken_rs::o200k_harmony().unwrap();
    for id in 0..VOCABULARY_SIZE {
        let bytes = reference.decode_bytes(&[id]).unwrap();
        assert_eq!(tokenizer.token_bytes(id), Some(bytes.as_slice()), "{id}");
    }
    assert_eq!(tokenizer.encode_with_specials("<|call|>"), [special::CALL]);
    assert!(tokenizer.encode_with_specials("<|<|end|>|>").contains(&special::END));
}

#[test]
fn ids_outside_of_the_vocabulary_are_replacement_characters() {
    let tokenizer = Tokenizer::shared();
    for id in [VOCABULARY_SIZE, VOCABULARY_SIZE + 1, u32::MAX] {
        assert_eq!(tokenizer.token_bytes(id), None);
        assert!(!tokenizer.is_special(id));
        assert_eq!(tokenizer.decode(&[64, id, 65]), "a\u{fffd}b");
        assert_eq!(StreamDecoder::new().push(id), "\u{fffd}");
    }
}

/// A megabyte of what makes backtracking engines give up and simple merge loops
/// crawl. The bound is far above what any takes (about a second, unoptimised)
/// and far below what quadratic time would.
#[test]
fn huge_monotonous_texts_are_encoded_in_time() {
    let tokenizer = Tokenizer::shared();
    for unit in
        ["a", "A", "aB", " ", "\n", " \n", "\t", "!", "7", "汉", "é", "<|", "<|end", "\u{fffd}", " x", "'s"]
    {
        let text = unit.repeat(1_000_000 / unit.len());
        let start = Instant::now();
        let tokens = tokenizer.encode_with_specials(&text);
        assert!(start.elapsed() < Duration::from_secs(20), "{unit:?} took {:?}", start.elapsed());
        assert_eq!(tokenizer.decode(&tokens), text, "{unit:?}");
    }
}
