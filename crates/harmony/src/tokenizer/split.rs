//! Cuts text into the pieces that byte pairs are merged within. It knows the
//! cutting rule of o200k, not its vocabulary.

use regex::Regex;
use tiktoken_rs::O200K_BASE_PAT_STR;

/// "White space, but leave its last character to what follows."
///
/// The one look-ahead of the pattern. Engines that know look-ahead backtrack,
/// and panic or refuse a long enough run of blanks; without it the rest runs in
/// linear time, and [`Splitter::next_len`] does the leaving.
const LOOK_AHEAD: &str = r"|\s+(?!\S)";

pub(crate) struct Splitter {
    pattern: Regex,
}

impl Splitter {
    pub(crate) fn new() -> Self {
        let linear = O200K_BASE_PAT_STR.replace(LOOK_AHEAD, "");
        let pattern = Regex::new(&format!(r"\A(?:{linear})")).expect("the pattern is a constant");
        Self { pattern }
    }

    /// The pieces of `text` in order; together they are `text`.
    pub(crate) fn pieces<'t>(&self, text: &'t str) -> impl Iterator<Item = &'t str> {
        let mut rest = text;
        std::iter::from_fn(move || {
            let (piece, after) = rest.split_at_checked(self.next_len(rest)?)?;
            rest = after;
            Some(piece)
        })
    }

    /// The length in bytes of the first piece, `None` at the end.
    fn next_len(&self, text: &str) -> Option<usize> {
        let first = text.chars().next()?;
        let Some(found) = self.pattern.find(text) else {
            // Every character is a letter, a number, white space or none of
            // these, so this is out of reach; a lone character loses nothing.
            return Some(first.len_utf8());
        };
        let piece = found.as_str();
        let last = piece.chars().next_back()?;
        // Only the plain white space alternatives end so: the one for line
        // breaks ends in a line break and all others in something visible.
        let is_blank_run = last.is_whitespace() && last != '\r' && last != '\n';
        let leaves_one = is_blank_run && piece.len() < text.len() && piece.len() > last.len_utf8();
        Some(if leaves_one { piece.len() - last.len_utf8() } else { piece.len() })
    }
}
