//! Which experts change places: pure arithmetic on how often each was read.
//!
//! An expert's heat is the number of recent calls of its layer that it was hot
//! in, older ones counting less and less. One that lies with the host takes the
//! place of one on the GPU if it is clearly hotter, so that two that are read
//! alike do not change places for ever.

use std::cmp::Reverse;

/// What a call adds to the heat.
const CALL_HEAT: u32 = 64;
/// Of the heat, `1 / 2^this` is lost in each round.
const COOLING_LOG: u32 = 4;
/// A hotter expert is hotter by this share of the other's heat, as `1 / 2^this`,
const CLEARLY_LOG: u32 = 2;
/// and by so much: two calls that the other did not have.
const CLEARLY_MIN: u32 = 2 * CALL_HEAT;

/// An expert that may change its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) heat: u32,
    pub(super) is_on_gpu: bool,
}

/// What changes places in a round, by index: one goes to the GPU, perhaps instead of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) up: usize,
    pub(super) down: Option<usize>,
}

/// How much may be changed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Changes that begin at a time.
    pub(super) changes: usize,
    /// Places on the GPU that nobody has and nobody needs to keep free.
    pub(super) unused: usize,
}

/// The heat after a round with so many calls.
pub(super) fn warmed(heat: u32, calls: u32) -> u32 {
    (heat - heat.div_ceil(1 << COOLING_LOG)).saturating_add(calls.saturating_mul(CALL_HEAT))
}

/// The changes of a round, the most useful first.
pub(super) fn choose(candidates: &[Candidate], limits: Limits) -> Vec<Change> {
    let with = |is_on_gpu| {
        let those = candidates.iter().enumerate().filter(move |(_, one)| one.is_on_gpu == is_on_gpu);
        those.map(|(index, one)| (one.heat, index))
    };
    let mut up: Vec<(u32, usize)> = with(false).filter(|&(heat, _)| heat > 0).collect();
    up.sort_unstable_by_key(|&(heat, index)| (Reverse(heat), index));
    up.truncate(limits.changes);
    let mut down: Vec<(u32, usize)> = with(true).collect();
    down.sort_unstable();
    let (unused, mut down) = (limits.unused, down.into_iter());
    let change = |(turn, (heat, up)): (usize, (u32, usize))| {
        if turn < unused {
            return Some(Change { up, down: None });
        }
        let (cold, index) = down.next()?;
        let bar = cold.saturating_add(cold >> CLEARLY_LOG).saturating_add(CLEARLY_MIN);
        (heat > bar).then_some(Change { up, down: Some(index) })
    };
    // Pairs get less and less useful, so the first that is not ends it.
    up.into_iter().enumerate().map_while(change).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(host: &[u32], gpu: &[u32]) -> Vec<Candidate> {
        let of = |is_on_gpu| move |&heat: &u32| Candidate { heat, is_on_gpu };
        host.iter().map(of(false)).chain(gpu.iter().map(of(true))).collect()
    }

    fn chosen(host: &[u32], gpu: &[u32], changes: usize, unused: usize) -> Vec<(usize, Option<usize>)> {
        let changes = choose(&candidates(host, gpu), Limits { changes, unused });
        changes.into_iter().map(|change| (change.up, change.down)).collect()
    }

    #[test]
    fn the_hottest_takes_the_place_of_the_coldest() {
        assert_eq!(chosen(&[10, 900, 500], &[700, 0, 100], 8, 0), [(1, Some(4)), (2, Some(5))]);
    }

    #[test]
    fn no_more_change_places_than_may() {
        assert_eq!(chosen(&[900, 800, 700], &[0, 0, 0], 2, 0), [(0, Some(3)), (1, Some(4))]);
        assert!(chosen(&[900], &[0], 0, 0).is_empty());
    }

    #[test]
    fn a_little_hotter_is_not_enough() {
        assert!(chosen(&[1000 + 250 + CLEARLY_MIN], &[1000], 8, 0).is_empty());
        assert_eq!(chosen(&[1000 + 251 + CLEARLY_MIN], &[1000], 8, 0), [(0, Some(1))]);
        assert!(chosen(&[CLEARLY_MIN], &[0], 8, 0).is_empty());
    }

    #[test]
    fn unused_places_are_taken_first_and_by_none_that_nobody_reads() {
        assert_eq!(chosen(&[1, 0, 2], &[5000], 8, 3), [(2, None), (0, None)]);
        assert_eq!(chosen(&[900, 800], &[0], 8, 1), [(0, None), (1, Some(2))]);
    }

    #[test]
    fn nothing_changes_without_a_gpu_or_without_a_host() {
        assert!(chosen(&[900], &[], 8, 0).is_empty());
        assert!(chosen(&[], &[0], 8, 4).is_empty());
    }

    #[test]
    fn heat_fades_to_nothing_and_does_not_overflow() {
        let mut heat = warmed(0, 1000);
        assert_eq!(heat, 1000 * CALL_HEAT);
        for _ in 0..1000 {
            heat = warmed(heat, 0);
        }
        assert_eq!(heat, 0);
        assert_eq!(warmed(u32::MAX, u32::MAX), u32::MAX);
    }

    /// Skewed and shifting: after some rounds what is read most is on the GPU, and
    /// while nothing shifts nothing moves.
    #[test]
    fn what_is_read_most_comes_to_the_gpu_and_stays() {
        let (num_experts, num_on_gpu) = (64_usize, 16);
        let mut places: Vec<Candidate> =
            (0..num_experts).map(|index| Candidate { heat: 0, is_on_gpu: index < num_on_gpu }).collect();
        let calls = |index: usize, phase: usize| {
            let rank = (index + phase) % num_experts;
            if rank < 12 { 12 } else { u32::from(rank.is_multiple_of(8)) }
        };
        for phase in [20, 45] {
            let mut last = usize::MAX;
            for _ in 0..60 {
                for (index, place) in places.iter_mut().enumerate() {
                    place.heat = warmed(place.heat, calls(index, phase));
                }
                let changes = choose(&places, Limits { changes: 4, unused: 0 });
                last = changes.len();
                for change in changes {
                    places[change.up].is_on_gpu = true;
                    places[change.down.unwrap()].is_on_gpu = false;
                }
            }
            assert_eq!(last, 0);
            let hot = (0..num_experts).filter(|&index| (index + phase) % num_experts < 12);
            assert!(hot.clone().all(|index| places[index].is_on_gpu), "phase {phase}");
        }
    }
}
