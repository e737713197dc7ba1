//! Text from token ids that arrive one at a time. It knows bytes, not harmony:
//! special ids come out spelled.

use super::Tokenizer;
use chorale_plan::TokenId;

/// Decodes a stream of ids to text as it arrives.
///
/// A token need not end at a character's end, so up to three bytes wait for
/// the next one. What comes out, joined, is what [`Tokenizer::decode`] makes of
/// all ids at once, replacement characters included.
#[derive(Clone, Debug, Default)]
pub struct StreamDecoder {
    pending: Vec<u8>,
}

impl StreamDecoder {
    /// A decoder that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// The text that `token` completes; often all of its own, sometimes none.
    pub fn push(&mut self, token: TokenId) -> String {
        self.pending.extend_from_slice(Tokenizer::shared().bytes_or_replacement(token));
        let num_complete = self.pending.len() - num_unfinished(&self.pending);
        let text = String::from_utf8_lossy(&self.pending[..num_complete]).into_owned();
        self.pending.drain(..num_complete);
        text
    }

    /// What waited for a continuation that never came: a replacement character
    /// or nothing. The decoder is new again.
    pub fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        text
    }
}

/// How many bytes at the end are a character's beginning.
fn num_unfinished(bytes: &[u8]) -> usize {
    let tail = bytes.utf8_chunks().last().map_or(&[][..], |chunk| chunk.invalid());
    match std::str::from_utf8(tail) {
        Err(error) if error.error_len().is_none() => tail.len(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::num_unfinished;

    #[test]
    fn a_cut_character_is_unfinished_and_a_wrong_byte_is_not() {
        assert_eq!(num_unfinished(b""), 0);
        assert_eq!(num_unfinished(b"a"), 0);
        assert_eq!(num_unfinished("é".as_bytes()), 0);
        assert_eq!(num_unfinished(b"a\xf0\x9f\x98"), 3);
        assert_eq!(num_unfinished(b"a\xc3"), 1);
        assert_eq!(num_unfinished(b"a\x80"), 0);
        assert_eq!(num_unfinished(b"\xf0\x9f\xff"), 0);
        assert_eq!(num_unfinished(b"\xff\xf0\x9f"), 2);
    }
}
