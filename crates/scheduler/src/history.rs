//! Which tokens a sequence holds and how often, for its penalties. It grows by
//! one token at a time and is never computed anew.

use std::collections::HashMap;

use chorale_plan::{TokenCount, TokenId};

/// The distinct tokens of a prompt and its output, in the order in which each
/// first came.
#[derive(Clone, Debug)]
pub(crate) struct History {
    counts: Vec<TokenCount>,
    index: HashMap<TokenId, usize>,
}

impl History {
    pub(crate) fn new(prompt: &[TokenId]) -> Self {
        let mut history = Self { counts: Vec::new(), index: HashMap::new() };
        for &token in prompt {
            history.entry(token);
        }
        history
    }

    /// Counts a token of the output.
    pub(crate) fn push(&mut self, token: TokenId) {
        self.entry(token).num_in_output += 1;
    }

    pub(crate) fn counts(&self) -> &[TokenCount] {
        &self.counts
    }

    fn entry(&mut self, token: TokenId) -> &mut TokenCount {
        let next = self.counts.len();
        let index = *self.index.entry(token).or_insert(next);
        if index == next {
            self.counts.push(TokenCount { token, num_in_output: 0 });
        }
        &mut self.counts[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompt_tokens_are_known_and_output_tokens_counted() {
        let mut history = History::new(&[5, 6, 5]);
        for token in [6, 9, 6] {
            history.push(token);
        }
        let counts: Vec<_> =
            history.counts().iter().map(|count| (count.token, count.num_in_output)).collect();
        assert_eq!(counts, [(5, 0), (6, 2), (9, 1)]);
    }
}
