//! One layer's exchange of rows as this rank sees it: what its own rows asked
//! of whom, and what was asked of it. Pure bookkeeping between dispatch and
//! combine.

use crate::layout::Layout;
use crate::rows::{self, Wanted};
use chorale_device::{Choice, Routed};
use chorale_plan::Rank;

/// What a rank's group asked of one rank.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asked {
    /// The choices, by row, then by preference. Rows count those that are sent.
    pub(crate) wanted: Vec<Wanted>,
    /// For each choice its slot at home: row × top-k + preference.
    pub(crate) slots: Vec<u32>,
    /// The rows that go, ascending.
    pub(crate) rows: Vec<u32>,
}

/// What one group asked of this rank: a run of the rows that it computes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Task {
    pub(crate) num_choices: usize,
    pub(crate) digest: u64,
}

/// From dispatch to combine.
#[derive(Debug, Default)]
pub(crate) struct Round {
    /// Rows of the rank's own group.
    pub(crate) num_rows: usize,
    /// By rank.
    pub(crate) asked: Vec<Asked>,
    /// By group.
    pub(crate) tasks: Vec<Task>,
    /// All tasks' choices in turn; rows count the rows that arrived.
    pub(crate) wanted: Vec<Wanted>,
    /// What this rank's experts answer its own group.
    pub(crate) own_answers: Vec<f32>,
}

impl Round {
    /// Distributes the group's choices over the ranks that hold the experts.
    pub(crate) fn ask(layout: &Layout, holders: &[Vec<Rank>], routes: &[Vec<Routed>]) -> Self {
        let mut asked = vec![Asked::default(); layout.shape.num_ranks as usize];
        let mut slot = 0;
        for (row, choices) in routes.iter().enumerate() {
            for &Routed { expert, weight } in choices {
                let runner = layout.runner(&holders[expert as usize], row);
                let asked = &mut asked[runner.0 as usize];
                if asked.rows.last() != Some(&(row as u32)) {
                    asked.rows.push(row as u32);
                }
                let choice = Choice { row: asked.rows.len() as u32 - 1, expert };
                asked.wanted.push(Wanted { choice, weight });
                asked.slots.push(slot);
                slot += 1;
            }
        }
        Self { num_rows: routes.len(), asked, ..Self::default() }
    }

    /// True if any of the group's rows go out from this very rank.
    pub(crate) fn is_sent(&self, layout: &Layout) -> bool {
        layout.sends_to().any(|to| !self.asked[to.0 as usize].rows.is_empty())
    }

    /// Adds what a group asks of this rank; its rows are the next that arrived,
    /// from `first_row` on.
    pub(crate) fn add_task(&mut self, wanted: &[Wanted], first_row: u32) {
        self.tasks.push(Task { num_choices: wanted.len(), digest: rows::digest(wanted) });
        self.wanted.extend(wanted.iter().map(|wanted| Wanted {
            choice: Choice { row: wanted.choice.row + first_row, ..wanted.choice },
            ..*wanted
        }));
    }
}

/// Sums each row's outputs, weighted, in the order of its choices.
pub(crate) fn sums(wanted: &[Wanted], outputs: &[f32], cols: usize) -> Vec<f32> {
    let mut sums = Vec::new();
    let mut outputs = outputs.chunks_exact(cols);
    for row in wanted.chunk_by(|one, next| one.choice.row == next.choice.row) {
        let start = sums.len();
        sums.resize(start + cols, 0.0);
        for (wanted, output) in row.iter().zip(&mut outputs) {
            add(&mut sums[start..], output.iter().map(|value| wanted.weight * value));
        }
    }
    sums
}

pub(crate) fn add(sum: &mut [f32], values: impl Iterator<Item = f32>) {
    sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use chorale_plan::Shape;

    #[test]
    fn each_choice_is_asked_once_and_each_row_goes_once_to_a_rank() {
        let shape = Shape { tensor_parallel_size: 1, data_parallel_size: 2, num_ranks: 3 };
        let holders = [vec![Rank(0)], vec![Rank(2)], vec![Rank(1), Rank(2)], vec![Rank(0), Rank(2)]];
        let route = |experts: [u32; 3]| experts.map(|expert| Routed { expert, weight: 1.0 }).to_vec();
        let routes = [route([1, 3, 0]), route([2, 1, 3])];
        let round = Round::ask(&Layout::new(shape, Rank(0)), &holders, &routes);
        assert_eq!(round.asked[0].slots, [1, 2, 5]);
        assert_eq!(round.asked[0].rows, [0, 1]);
        assert_eq!(round.asked[2].slots, [0, 3, 4], "row 1's copy is spread to rank 2");
        assert_eq!(round.asked[2].rows, [0, 1]);
        assert!(round.asked[1].rows.is_empty());
    }

    #[test]
    fn sums_are_weighted_by_row() {
        let wanted = |row, weight| Wanted { choice: Choice { row, expert: 0 }, weight };
        let list = [wanted(4, 0.5), wanted(4, 0.25), wanted(5, 1.0)];
        assert_eq!(sums(&list, &[2.0, 4.0, 4.0, 8.0, 1.0, 3.0], 2), [2.0, 4.0, 1.0, 3.0]);
    }
}
