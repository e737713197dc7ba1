//! Sequences that want more than their next token, in the order in which they
//! get it. It keeps order and nothing else: neither pages nor budgets.
//!
//! Inside a priority each account has a line, in the order of arrival, and the
//! account that has spent the least goes first. Every operation costs the
//! logarithm of the lines and of their lengths, however many wait.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use chorale_plan::SequenceId;

use crate::shares::{Account, Shares, Spent};

/// What a sequence's turn depends on, and where the sequence is.
///
/// Ordered by who is the last to lose its pages: priority, then arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// Lower is first.
    pub(crate) priority: i32,
    /// Sequences are numbered as they arrive.
    pub(crate) sequence: SequenceId,
    pub(crate) slot: usize,
    pub(crate) account: Account,
}

/// Whose turn comes first: priority, then what the account has spent, then arrival.
pub(crate) type Turn = (i32, Spent, SequenceId);

/// Lines of sequences.
#[derive(Clone, Debug, Default)]
pub(crate) struct FairQueue {
    levels: BTreeMap<i32, Level>,
    len: usize,
}

/// The sequences of one priority. No line is empty.
#[derive(Clone, Debug, Default)]
struct Level {
    /// Each line's turn when it was last looked at. What an account has spent
    /// only grows, so the first is right once it is fresh.
    turns: BTreeSet<(Spent, SequenceId, Account)>,
    lines: HashMap<Account, Line>,
}

#[derive(Clone, Debug, Default)]
struct Line {
    places: BTreeSet<Place>,
    /// Under what this line stands in `turns`.
    listed: Option<(Spent, SequenceId, Account)>,
}

impl FairQueue {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn push(&mut self, place: Place, shares: &Shares) {
        let level = self.levels.entry(place.priority).or_default();
        let fresh = level.lines.entry(place.account).or_default().places.insert(place);
        assert!(fresh, "sequence {} is in the queue already", place.sequence.0);
        level.list(place.account, shares);
        self.len += 1;
    }

    pub(crate) fn remove(&mut self, place: Place, shares: &Shares) {
        let level = self.levels.get_mut(&place.priority).expect("a place in the queue has a level");
        let line = level.lines.get_mut(&place.account).expect("a place in the queue has a line");
        let found = line.places.remove(&place);
        assert!(found, "sequence {} is not in the queue", place.sequence.0);
        level.list(place.account, shares);
        if level.lines.is_empty() {
            self.levels.remove(&place.priority);
        }
        self.len -= 1;
    }

    /// Whose turn it is.
    pub(crate) fn first(&mut self, shares: &Shares) -> Option<(Turn, Place)> {
        let (&priority, level) = self.levels.first_key_value()?;
        let mut turn = *level.turns.first().expect("levels are not empty");
        if shares.spent(turn.2) != turn.0 {
            let level = self.levels.get_mut(&priority)?;
            while shares.spent(turn.2) != turn.0 {
                level.list(turn.2, shares);
                turn = *level.turns.first().expect("levels are not empty");
            }
        }
        let (spent, sequence, account) = turn;
        let place = self.levels[&priority].lines[&account].places.first().copied();
        place.map(|place| ((priority, spent, sequence), place))
    }

    /// All places, in no order that may decide anything.
    pub(crate) fn places(&self) -> impl Iterator<Item = Place> {
        self.levels
            .values()
            .flat_map(|level| level.lines.values())
            .flat_map(|line| line.places.iter().copied())
    }
}

impl Level {
    /// Writes down a line's turn anew, or takes the line away if it is empty.
    fn list(&mut self, account: Account, shares: &Shares) {
        let line = self.lines.get_mut(&account).expect("a listed line exists");
        let turn = line.places.first().map(|first| (shares.spent(account), first.sequence, account));
        if line.listed == turn {
            return;
        }
        if let Some(listed) = line.listed {
            self.turns.remove(&listed);
        }
        line.listed = turn;
        match turn {
            Some(turn) => drop(self.turns.insert(turn)),
            None => drop(self.lines.remove(&account)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Share;
    use std::num::NonZeroU32;

    struct Desk {
        queue: FairQueue,
        shares: Shares,
    }

    impl Desk {
        fn new() -> Self {
            Self { queue: FairQueue::default(), shares: Shares::default() }
        }

        fn push(&mut self, sequence: u64, key: u64, priority: i32) -> Account {
            let account = self.shares.join(Share { key, weight: NonZeroU32::MIN });
            let place = Place { priority, sequence: SequenceId(sequence), slot: sequence as usize, account };
            self.shares.queued(account);
            self.queue.push(place, &self.shares);
            account
        }

        fn pop(&mut self) -> Option<u64> {
            let (_, place) = self.queue.first(&self.shares)?;
            self.queue.remove(place, &self.shares);
            Some(place.sequence.0)
        }

        fn all(&mut self) -> Vec<u64> {
            std::iter::from_fn(|| self.pop()).collect()
        }
    }

    #[test]
    fn one_key_is_served_in_the_order_of_arrival() {
        let mut desk = Desk::new();
        for sequence in [0, 2, 3, 1] {
            desk.push(sequence, 7, 0);
        }
        assert_eq!(desk.all(), [0, 1, 2, 3]);
    }

    #[test]
    fn lower_priorities_come_first_whoever_pays() {
        let mut desk = Desk::new();
        desk.push(0, 1, 5);
        let account = desk.push(1, 2, -5);
        desk.push(2, 1, 0);
        desk.shares.charge(account, 1000, 1);
        assert_eq!(desk.all(), [1, 2, 0]);
    }

    #[test]
    fn the_key_that_spent_the_least_comes_first() {
        let mut desk = Desk::new();
        let first = desk.push(0, 1, 0);
        desk.push(1, 1, 0);
        desk.push(2, 2, 0);
        assert_eq!(desk.pop(), Some(0));
        desk.shares.charge(first, 10, 1);
        assert_eq!(desk.all(), [2, 1]);
        assert_eq!(desk.queue.len(), 0);
    }

    #[test]
    fn keys_that_spent_the_same_come_in_the_order_of_arrival() {
        let mut desk = Desk::new();
        desk.push(0, 9, 0);
        desk.push(1, 3, 0);
        desk.push(2, 9, 0);
        assert_eq!(desk.all(), [0, 1, 2]);
    }
}
