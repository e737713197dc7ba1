//! What the parser had to guess, counted. The counts say how well a model keeps
//! to the format; they change nothing.

/// A mistake of the model that the parser put right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Repair {
    /// A message began without `<|start|>`.
    MissingStart,
    /// `<|start|>` stood where a header was open already.
    RepeatedStart,
    /// The author was nobody known; taken for the assistant.
    UnknownAuthor,
    /// An assistant's message named no channel.
    MissingChannel,
    /// An assistant's message was on a channel that does not exist.
    UnknownChannel,
    /// A header named two channels; the last one counts.
    RepeatedChannel,
    /// A header named two recipients; the last one counts.
    RepeatedRecipient,
    /// A function was called outside of the commentary channel.
    CallOffCommentary,
    /// A function was called without `<|constrain|>`.
    MissingConstrain,
    /// A header held words that mean nothing there.
    StrayHeaderText,
    /// A header did not end in `<|message|>`.
    MissingMessage,
    /// A header ended, or the stream did, and there was no message.
    EmptyHeader,
    /// A message ended because the next one began.
    MissingEnd,
    /// A call did not end in `<|call|>`, or something else did.
    WrongEnd,
    /// A special token where it means nothing.
    StraySpecial,
    /// An id outside of the vocabulary.
    UnknownToken,
}

impl Repair {
    /// All kinds, in the order of their declaration.
    pub const ALL: [Self; 16] = [
        Self::MissingStart,
        Self::RepeatedStart,
        Self::UnknownAuthor,
        Self::MissingChannel,
        Self::UnknownChannel,
        Self::RepeatedChannel,
        Self::RepeatedRecipient,
        Self::CallOffCommentary,
        Self::MissingConstrain,
        Self::StrayHeaderText,
        Self::MissingMessage,
        Self::EmptyHeader,
        Self::MissingEnd,
        Self::WrongEnd,
        Self::StraySpecial,
        Self::UnknownToken,
    ];
}

/// How often each kind of repair was needed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Repairs {
    counts: [u32; Repair::ALL.len()],
}

impl Repairs {
    /// How often this one was.
    pub fn count(&self, repair: Repair) -> u32 {
        self.counts[repair as usize]
    }

    /// How many there were of all kinds.
    pub fn total(&self) -> u32 {
        self.counts.iter().fold(0, |total, count| total.saturating_add(*count))
    }

    /// The kinds that were needed, and how often.
    pub fn iter(&self) -> impl Iterator<Item = (Repair, u32)> {
        Repair::ALL.into_iter().map(|repair| (repair, self.count(repair))).filter(|(_, count)| *count > 0)
    }

    pub(super) fn add(&mut self, repair: Repair) {
        let count = &mut self.counts[repair as usize];
        *count = count.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::{Repair, Repairs};

    #[test]
    fn each_kind_has_its_own_count() {
        for (index, repair) in Repair::ALL.into_iter().enumerate() {
            assert_eq!(repair as usize, index);
        }
        let mut repairs = Repairs::default();
        repairs.add(Repair::WrongEnd);
        repairs.add(Repair::WrongEnd);
        assert_eq!((repairs.count(Repair::WrongEnd), repairs.total()), (2, 2));
        assert_eq!(repairs.iter().collect::<Vec<_>>(), [(Repair::WrongEnd, 2)]);
    }
}
