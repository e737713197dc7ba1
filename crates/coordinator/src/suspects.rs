//! Which sequences may be the reason that steps are lost. Ranks die by themselves,
//! but a sequence that kills them whenever it is computed would do so for ever.
//!
//! A sequence that was in several lost steps without a token in between is a
//! suspect. While there are suspects, all sequences are held, and suspects are
//! computed again one at a time: the next when the one before has got a token,
//! beside it from then on. A step that is lost while a suspect has its turn is that
//! suspect's last. So whatever the sequences do, the losses that they can cause are
//! bounded, and the innocent lose no more than time.

use chorale_plan::SequenceId;
use std::collections::BTreeMap;

/// Steps that a sequence may lose in company before it is suspected.
const MAX_LOST_IN_COMPANY: u32 = 3;

/// Lost steps by sequence, since its last token.
#[derive(Debug, Default)]
pub(crate) struct Suspects {
    num_lost: BTreeMap<SequenceId, u32>,
    /// The suspect whose turn it is.
    called: Option<SequenceId>,
    is_trying: bool,
}

/// Who is to be released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    Nobody,
    Suspect(SequenceId),
    /// The last suspect is cleared or gone.
    Everybody,
}

impl Suspects {
    /// A step with these sequences was lost. Gives those that are to fail.
    pub(crate) fn lost(&mut self, sequences: impl Iterator<Item = SequenceId>) -> Vec<SequenceId> {
        let mut guilty = Vec::new();
        for sequence in sequences {
            *self.num_lost.entry(sequence).or_default() += 1;
            if self.called == Some(sequence) {
                guilty.push(sequence);
            }
        }
        guilty
    }

    /// It got a token, or is over.
    pub(crate) fn forget(&mut self, sequence: SequenceId) {
        self.num_lost.remove(&sequence);
        if self.called == Some(sequence) {
            self.called = None;
        }
    }

    /// In the order of their turns.
    fn all(&self) -> Vec<SequenceId> {
        let is_suspect = |(_, num): &(&SequenceId, &u32)| **num >= MAX_LOST_IN_COMPANY;
        self.num_lost.iter().filter(is_suspect).map(|(sequence, _)| *sequence).collect()
    }

    /// Everything starts over: nobody's turn. True if sequences are to be held.
    pub(crate) fn begin(&mut self) -> bool {
        self.called = None;
        self.is_trying = !self.all().is_empty();
        self.is_trying
    }

    /// True while sequences are held.
    pub(crate) fn is_trying(&self) -> bool {
        self.is_trying
    }

    /// Who is to be released now.
    pub(crate) fn next(&mut self) -> Turn {
        if !self.is_trying || self.called.is_some() {
            return Turn::Nobody;
        }
        self.called = self.all().first().copied();
        self.is_trying = self.called.is_some();
        self.called.map_or(Turn::Everybody, Turn::Suspect)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(range: std::ops::Range<u64>) -> impl Iterator<Item = SequenceId> {
        range.map(SequenceId)
    }

    #[test]
    fn who_was_in_three_lost_steps_is_tried_alone_and_fails_at_the_next() {
        let mut suspects = Suspects::default();
        for _ in 0..MAX_LOST_IN_COMPANY {
            assert!(!suspects.begin());
            assert_eq!(suspects.next(), Turn::Nobody);
            assert_eq!(suspects.lost(ids(0..2)), []);
        }
        assert!(suspects.begin());
        assert_eq!(suspects.next(), Turn::Suspect(SequenceId(0)));
        assert_eq!(suspects.next(), Turn::Nobody, "it is tried already");
        suspects.forget(SequenceId(0));
        assert_eq!(suspects.next(), Turn::Suspect(SequenceId(1)));
        assert_eq!(suspects.lost(ids(0..2)), [SequenceId(1)]);
        suspects.forget(SequenceId(1));
        assert!(suspects.is_trying());
        assert_eq!(suspects.next(), Turn::Everybody);
        assert!(!suspects.is_trying());
    }

    #[test]
    fn a_token_clears() {
        let mut suspects = Suspects::default();
        for _ in 0..20 {
            assert_eq!(suspects.lost(ids(0..1)), []);
            suspects.forget(SequenceId(0));
            assert!(!suspects.begin());
        }
    }
}
