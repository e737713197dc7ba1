//! Who is the culprit, given who waits for whom. A pure function.

use chorale_plan::Rank;
use std::collections::{BTreeMap, BTreeSet};

/// The rank that holds the others up, `None` if nobody waits for anybody.
///
/// Everyone who waits is followed along whom it waits for, to a rank that waits
/// for nobody, or round in a circle. Of those ends the one that most lead to is the
/// culprit; of a circle, whom most of all wait for. The higher rank among equals.
pub(super) fn culprit(waits: &BTreeMap<Rank, Rank>) -> Option<Rank> {
    let mut votes: BTreeMap<Rank, u32> = BTreeMap::new();
    for &rank in waits.keys() {
        *votes.entry(end_of(rank, waits)).or_default() += 1;
    }
    votes.into_iter().max_by_key(|&(rank, votes)| (votes, rank)).map(|(rank, _)| rank)
}

fn end_of(start: Rank, waits: &BTreeMap<Rank, Rank>) -> Rank {
    let mut seen = BTreeSet::from([start]);
    let mut at = start;
    loop {
        match waits.get(&at) {
            None => return at,
            Some(&next) if !seen.insert(next) => return of_circle(next, waits),
            Some(&next) => at = next,
        }
    }
}

/// Whom most wait for, of a circle.
fn of_circle(start: Rank, waits: &BTreeMap<Rank, Rank>) -> Rank {
    let circle =
        std::iter::successors(Some(start), |rank| waits.get(rank).copied().filter(|next| *next != start));
    let num_waiting = |rank: Rank| waits.values().filter(|blamed| **blamed == rank).count();
    circle.take(waits.len()).max_by_key(|&rank| (num_waiting(rank), rank)).unwrap_or(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(waits: &[(u32, u32)]) -> Option<u32> {
        let waits = waits.iter().map(|&(rank, blamed)| (Rank(rank), Rank(blamed))).collect();
        culprit(&waits).map(|rank| rank.0)
    }

    #[test]
    fn a_chain_leads_to_its_end() {
        assert_eq!(found(&[]), None);
        assert_eq!(found(&[(0, 1)]), Some(1));
        assert_eq!(found(&[(0, 1), (1, 2), (3, 1)]), Some(2));
    }

    #[test]
    fn most_votes_count_and_the_higher_rank_among_equals() {
        assert_eq!(found(&[(0, 4), (1, 4), (2, 5)]), Some(4));
        assert_eq!(found(&[(0, 4), (2, 5)]), Some(5));
    }

    #[test]
    fn of_two_that_blame_each_other_the_one_that_more_blame() {
        assert_eq!(found(&[(0, 1), (1, 0)]), Some(1));
        assert_eq!(found(&[(0, 1), (1, 0), (2, 0)]), Some(0));
        assert_eq!(found(&[(0, 1), (1, 2), (2, 0), (3, 1)]), Some(1));
        assert_eq!(found(&[(0, 0)]), Some(0), "who blames itself");
    }
}
