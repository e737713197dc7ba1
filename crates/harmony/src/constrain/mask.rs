//! Sets of tokens in the making. It knows which ids are text and which are
//! special, and nothing about what they are for.

use std::sync::{Arc, LazyLock};

use chorale_plan::{TokenId, TokenMask};

use crate::tokenizer::{VOCABULARY_SIZE, special};

const NUM_WORDS: usize = VOCABULARY_SIZE.div_ceil(u32::BITS) as usize;

/// A [`TokenMask`] that can still change.
pub(super) struct MaskBuilder {
    words: Vec<u32>,
}

impl MaskBuilder {
    /// No token.
    pub(super) fn empty() -> Self {
        Self { words: vec![0; NUM_WORDS] }
    }

    /// The text tokens among these; special ones and what lies beyond the
    /// vocabulary are left out.
    pub(super) fn text_of(words: &[u32]) -> Self {
        let mut mask = Self::empty();
        let len = words.len().min(NUM_WORDS);
        mask.words[..len].copy_from_slice(&words[..len]);
        let first = special::FIRST as usize / 32;
        mask.words[first] &= (1 << (special::FIRST % 32)) - 1;
        mask.words[first + 1..].fill(0);
        mask
    }

    /// Every text token.
    fn text() -> Self {
        Self::text_of(&[u32::MAX; NUM_WORDS])
    }

    pub(super) fn allow(&mut self, token: TokenId) {
        if let Some(word) = self.words.get_mut(token as usize / 32) {
            *word |= 1 << (token % 32);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.words.iter().all(|&word| word == 0)
    }

    pub(super) fn finish(self) -> TokenMask {
        TokenMask(Arc::from(self.words))
    }
}

/// What free text ends in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FreeEnd {
    /// `<|end|>`: another message follows.
    End,
    /// `<|return|>`: it was the answer.
    Return,
}

impl FreeEnd {
    pub(super) fn token(self) -> TokenId {
        match self {
            Self::End => special::END,
            Self::Return => special::RETURN,
        }
    }
}

/// Any text, and one special token to end it. Shared: free text is most of what
/// a model says, and its mask costs a reference count.
pub(super) fn free_text(end: FreeEnd) -> TokenMask {
    static FREE: LazyLock<[TokenMask; 2]> = LazyLock::new(|| {
        [FreeEnd::End, FreeEnd::Return].map(|end| {
            let mut mask = MaskBuilder::text();
            mask.allow(end.token());
            mask.finish()
        })
    });
    match end {
        FreeEnd::End => FREE[0].clone(),
        FreeEnd::Return => FREE[1].clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::{FreeEnd, MaskBuilder, free_text};
    use crate::tokenizer::{VOCABULARY_SIZE, special};

    #[test]
    fn free_text_has_one_special_token() {
        let mask = free_text(FreeEnd::Return);
        assert!((0..special::FIRST).all(|token| mask.contains(token)));
        let specials: Vec<u32> =
            (special::FIRST..VOCABULARY_SIZE + 64).filter(|&token| mask.contains(token)).collect();
        assert_eq!(specials, [special::RETURN]);
    }

    #[test]
    fn tokens_beyond_the_vocabulary_are_nowhere() {
        let mut mask = MaskBuilder::empty();
        mask.allow(VOCABULARY_SIZE);
        mask.allow(u32::MAX);
        assert!(mask.is_empty());
    }
}
