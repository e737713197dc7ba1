//! Sets of tokens. A grammar allows nearly nothing or nearly everything, so its
//! masks are mostly a few runs; the others travel as they are.

use super::v1;
use super::v1::token_mask::Set;
use crate::InvalidField;
use bytes::{BufMut, Bytes, BytesMut};
use chorale_plan::TokenMask;
use std::sync::Arc;

/// More than any vocabulary has.
const MAX_WORDS: u32 = 1 << 16;
const WORD_BITS: u32 = u32::BITS;
/// What a length takes at most where it is shorter than a vocabulary.
const RUN_BYTES: usize = 3;

impl From<TokenMask> for v1::TokenMask {
    fn from(TokenMask(words): TokenMask) -> Self {
        let set = match runs(&words, words.len() * size_of::<u32>() / RUN_BYTES) {
            Some(lengths) => Set::Runs(v1::TokenRuns { lengths }),
            None => Set::Words(little_endian(&words)),
        };
        Self { num_words: u32::try_from(words.len()).unwrap_or(u32::MAX), set: Some(set) }
    }
}

fn little_endian(words: &[u32]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(size_of_val(words));
    words.iter().for_each(|word| bytes.put_u32_le(*word));
    bytes.freeze()
}

/// Lengths of runs of tokens out of the set and in it, unless they are too many.
fn runs(words: &[u32], max_runs: usize) -> Option<Vec<u32>> {
    let mut lengths = Vec::new();
    // Of the run that is being counted: its length, and all ones if it is in.
    let (mut length, mut side) = (0, 0u32);
    for word in words {
        // Ones where a bit differs from the run's.
        let mut word = word ^ side;
        let mut num_left = WORD_BITS;
        while word != 0 {
            let same = word.trailing_zeros();
            lengths.push(length + same);
            if lengths.len() > max_runs {
                return None;
            }
            num_left -= same;
            word = !(word >> same) & u32::MAX >> (WORD_BITS - num_left);
            (length, side) = (0, !side);
        }
        length += num_left;
    }
    if side != 0 {
        lengths.push(length);
    }
    Some(lengths)
}

impl TryFrom<v1::TokenMask> for TokenMask {
    type Error = InvalidField;

    fn try_from(v1::TokenMask { num_words, set }: v1::TokenMask) -> Result<Self, InvalidField> {
        if num_words > MAX_WORDS {
            return Err(InvalidField::new("num_words", format_args!("must be at most {MAX_WORDS}")));
        }
        match crate::field::present("set", set)? {
            Set::Words(bytes) => {
                let (words, rest) = bytes.as_chunks();
                if !rest.is_empty() || words.len() != num_words as usize {
                    let reason = format_args!("must be {num_words} words, not {} bytes", bytes.len());
                    return Err(InvalidField::new("words", reason));
                }
                Ok(Self(words.iter().map(|word| u32::from_le_bytes(*word)).collect()))
            }
            Set::Runs(v1::TokenRuns { lengths }) => filled(num_words, &lengths).map(Self),
        }
    }
}

fn filled(num_words: u32, lengths: &[u32]) -> Result<Arc<[u32]>, InvalidField> {
    let mut words = vec![0; num_words as usize];
    let num_tokens = num_words * WORD_BITS;
    let mut end = 0u32;
    for (index, length) in lengths.iter().enumerate() {
        let start = end;
        end = start.checked_add(*length).filter(|end| *end <= num_tokens).ok_or_else(|| {
            InvalidField::new("runs.lengths", format_args!("must end before token {num_tokens}"))
        })?;
        if *length == 0 && index > 0 {
            return Err(InvalidField::new("runs.lengths", "must be above 0 but for the first"));
        }
        if index % 2 == 1 {
            fill(&mut words, start, end);
        }
    }
    Ok(words.into())
}

/// Sets the bits from `start` to before `end`.
fn fill(words: &mut [u32], start: u32, end: u32) {
    let mut bit = start;
    while bit < end {
        let (word, from) = (bit / WORD_BITS, bit % WORD_BITS);
        let count = (WORD_BITS - from).min(end - bit);
        words[word as usize] |= (u32::MAX >> (WORD_BITS - count)) << from;
        bit += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use prost::Message;

    fn round_trip(words: &[u32]) -> (v1::TokenMask, Result<TokenMask, InvalidField>) {
        let message = v1::TokenMask::from(TokenMask(words.into()));
        (message.clone(), TokenMask::try_from(message))
    }

    proptest! {
        #[test]
        fn any_set_comes_back(words in proptest::collection::vec(
            prop_oneof![Just(0u32), Just(u32::MAX), any::<u32>(), (0..32u32).prop_map(|bit| 1 << bit)],
            0..50,
        )) {
            let (_, mask) = round_trip(&words);
            prop_assert_eq!(mask, Ok(TokenMask(words.into())));
        }
    }

    #[test]
    fn nearly_nothing_and_nearly_all_are_short() {
        let num_words = 201_088 / 32;
        let mut few = vec![0; num_words];
        few[7] = 1 << 31;
        few[8] = 1;
        few[6000] = 5;
        let most: Vec<u32> = few.iter().map(|word| !word).collect();
        for words in [few, most] {
            let (message, mask) = round_trip(&words);
            assert!(message.encoded_len() < 40, "{}", message.encoded_len());
            assert_eq!(mask, Ok(TokenMask(words.into())));
        }
        let (message, _) = round_trip(&vec![0x5555_5555; num_words]);
        assert!(message.encoded_len() < num_words * 4 + 16, "{}", message.encoded_len());
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let runs = |num_words, lengths: &[u32]| {
            let set = Some(Set::Runs(v1::TokenRuns { lengths: lengths.to_vec() }));
            TokenMask::try_from(v1::TokenMask { num_words, set })
        };
        assert!(runs(1, &[0, 32]).is_ok());
        assert!(runs(1, &[0, 33]).is_err());
        assert!(runs(1, &[u32::MAX, 2]).is_err());
        assert!(runs(1, &[4, 0, 4]).is_err());
        assert!(runs(MAX_WORDS + 1, &[]).is_err());
        let words = Some(Set::Words(Bytes::from_static(&[0; 7])));
        assert!(TokenMask::try_from(v1::TokenMask { num_words: 2, set: words }).is_err());
        assert!(TokenMask::try_from(v1::TokenMask { num_words: 2, set: None }).is_err());
    }
}
