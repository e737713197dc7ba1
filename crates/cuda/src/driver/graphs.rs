//! Which lists of launches are replayed as graphs: those that come again.
//!
//! A list's first time is its last for most prompts, so it is launched one by
//! one and only its hash is remembered. At its second time a graph is made.

use crate::launch::Launches;
use rustc_hash::FxBuildHasher;
use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher;

/// Lists that are shorter gain nothing.
const LAUNCHES_MIN: usize = 8;
/// Graphs that are kept: more than there are batch sizes in use at a time.
const GRAPHS_MAX: usize = 64;
/// Hashes of lists that are remembered.
const SEEN_MAX: usize = 256;

/// How launches were made, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Lists that became graphs.
    pub graphs_made: u64,
    /// Lists that a graph replayed.
    pub graphs_replayed: u64,
    /// Lists for which CUDA would not make a graph.
    pub graphs_refused: u64,
    /// Kernels that were launched one by one.
    pub eager_launches: u64,
}

/// What to do with a list.
pub(super) enum Decision<'a, G> {
    /// Launch one by one.
    Eager,
    /// Make a graph, and keep it.
    Make,
    /// Launch this graph.
    Replay(&'a G),
}

/// Graphs by the lists that they replay; the one not used for longest goes first.
pub(super) struct Graphs<G> {
    made: HashMap<Launches, Entry<G>, FxBuildHasher>,
    seen: VecDeque<u64>,
    uses: u64,
}

struct Entry<G> {
    /// None where CUDA would not make one.
    graph: Option<G>,
    last_use: u64,
}

impl<G> Graphs<G> {
    pub(super) fn new() -> Self {
        Self { made: HashMap::default(), seen: VecDeque::with_capacity(SEEN_MAX), uses: 0 }
    }

    /// What to do with a list that is to be launched now.
    pub(super) fn decide(&mut self, launches: &Launches) -> Decision<'_, G> {
        if launches.iter().len() < LAUNCHES_MIN {
            return Decision::Eager;
        }
        self.uses += 1;
        // Looked up twice: a borrow that is returned would last through the rest.
        if self.made.contains_key(launches) {
            let entry = self.made.get_mut(launches).map(|entry| {
                entry.last_use = self.uses;
                &entry.graph
            });
            return entry.and_then(Option::as_ref).map_or(Decision::Eager, Decision::Replay);
        }
        let hash = FxBuildHasher.hash_one(launches);
        if self.seen.contains(&hash) {
            return Decision::Make;
        }
        if self.seen.len() == SEEN_MAX {
            self.seen.pop_front();
        }
        self.seen.push_back(hash);
        Decision::Eager
    }

    /// Keeps a list's graph, or that there is none to be had.
    pub(super) fn keep(&mut self, launches: &Launches, graph: Option<G>) {
        let hash = FxBuildHasher.hash_one(launches);
        self.seen.retain(|&seen| seen != hash);
        if self.made.len() == GRAPHS_MAX && !self.made.contains_key(launches) {
            let oldest =
                self.made.iter().min_by_key(|(_, entry)| entry.last_use).map(|(list, _)| list.clone());
            oldest.and_then(|oldest| self.made.remove(&oldest));
        }
        self.made.insert(launches.clone(), Entry { graph, last_use: self.uses });
    }

    /// Gives back all graphs, for they hold memory.
    pub(super) fn clear(&mut self) {
        self.made.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::Kernel;

    fn list(launches: u32, row_count: u64) -> Launches {
        let mut list = Launches::default();
        for _ in 0..launches {
            list.push(Kernel { name: "a", threads: 32 }, [1, 1, 1], 0, &[row_count; 4]);
        }
        list
    }

    /// Launches a list; graphs are numbered in the order in which they are made.
    fn launch(graphs: &mut Graphs<u32>, list: &Launches, number: u32) -> String {
        match graphs.decide(list) {
            Decision::Eager => "eager".to_owned(),
            Decision::Replay(graph) => format!("graph {graph}"),
            Decision::Make => {
                graphs.keep(list, Some(number));
                format!("made {number}")
            }
        }
    }

    #[test]
    fn a_list_is_replayed_from_its_third_time_on() {
        let mut graphs = Graphs::new();
        let list = list(8, 1);
        let outcomes: Vec<String> = (0..4).map(|_| launch(&mut graphs, &list, 7)).collect();
        assert_eq!(outcomes, ["eager", "made 7", "graph 7", "graph 7"]);
    }

    #[test]
    fn a_list_with_another_argument_is_another_one() {
        let mut graphs = Graphs::new();
        let outcomes: Vec<String> = (0..4).map(|row| launch(&mut graphs, &list(8, row), 7)).collect();
        assert_eq!(outcomes, ["eager"; 4]);
    }

    #[test]
    fn a_short_list_is_never_a_graph() {
        let mut graphs = Graphs::new();
        let list = list(7, 1);
        let outcomes: Vec<String> = (0..3).map(|_| launch(&mut graphs, &list, 7)).collect();
        assert_eq!(outcomes, ["eager"; 3]);
    }

    #[test]
    fn a_list_that_cuda_refused_is_launched_one_by_one() {
        let mut graphs = Graphs::<u32>::new();
        let list = list(8, 1);
        assert!(matches!(graphs.decide(&list), Decision::Eager));
        assert!(matches!(graphs.decide(&list), Decision::Make));
        graphs.keep(&list, None);
        assert!(matches!(graphs.decide(&list), Decision::Eager));
    }

    #[test]
    fn the_graph_not_used_for_longest_makes_room() {
        let mut graphs = Graphs::new();
        for row in 0..GRAPHS_MAX as u64 {
            launch(&mut graphs, &list(8, row), 0);
            launch(&mut graphs, &list(8, row), u32::try_from(row).unwrap_or(0));
        }
        assert_eq!(launch(&mut graphs, &list(8, 0), 0), "graph 0");
        launch(&mut graphs, &list(8, 1000), 0);
        assert_eq!(launch(&mut graphs, &list(8, 1000), 1000), "made 1000");
        assert_eq!(graphs.made.len(), GRAPHS_MAX);
        assert_eq!(launch(&mut graphs, &list(8, 0), 0), "graph 0");
        assert_eq!(launch(&mut graphs, &list(8, 1), 0), "eager");
        // One that is kept anew needs no room.
        graphs.keep(&list(8, 0), None);
        assert_eq!(graphs.made.len(), GRAPHS_MAX);
        assert_eq!(launch(&mut graphs, &list(8, 2), 0), "graph 2");
    }
}
