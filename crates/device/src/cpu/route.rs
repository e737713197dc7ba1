//! Which experts a row goes to, and the rows of each expert.

use crate::device::{Choice, Routed};
use std::ops::Range;

/// The chosen experts of each row.
#[derive(Debug)]
pub struct Routing {
    top_k: usize,
    /// `[rows, top_k]`, by descending router logit.
    choices: Vec<Routed>,
}

impl Routing {
    pub(super) fn new(max_rows: usize, top_k: usize) -> Self {
        Self { top_k, choices: Vec::with_capacity(max_rows * top_k) }
    }

    /// Chooses from router logits `[rows, experts]`.
    pub(super) fn choose(&mut self, logits: &[f32], num_experts: usize) {
        assert!(self.top_k <= num_experts, "no more choices than experts");
        self.choices.clear();
        let mut order = Vec::with_capacity(num_experts);
        for logits in logits.chunks_exact(num_experts) {
            order.clear();
            order.extend(0u32..num_experts as u32);
            // A stable sort leaves the lowest number first among equals.
            order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
            order.truncate(self.top_k);
            let largest = logits[order[0] as usize];
            let exponentials = order.iter().map(|&expert| (logits[expert as usize] - largest).exp());
            let sum: f32 = exponentials.clone().sum();
            let weights = exponentials.map(|exponential| exponential / sum);
            self.choices.extend(order.iter().zip(weights).map(|(&expert, weight)| Routed { expert, weight }));
        }
    }

    /// The choices of each row, best first.
    pub(super) fn rows(&self) -> impl Iterator<Item = &[Routed]> {
        self.choices.chunks_exact(self.top_k)
    }
}

/// Rows grouped by local expert.
#[derive(Debug)]
pub struct Groups {
    /// The local index of each expert of the model that is here.
    local: Vec<Option<usize>>,
    /// Group `g` is `rows[offsets[g]..offsets[g + 1]]`.
    offsets: Vec<usize>,
    /// Rows in grouped order.
    pub(super) rows: Vec<u32>,
    /// Which group each grouped row belongs to.
    groups: Vec<usize>,
    /// The grouped row whose output goes to each slot.
    slots: Vec<Option<usize>>,
}

impl Groups {
    pub(super) fn new(local: &[u32]) -> Self {
        let num_known = local.iter().max().map_or(0, |&last| last as usize + 1);
        let mut index = vec![None; num_known];
        for (position, &expert) in local.iter().enumerate() {
            index[expert as usize] = Some(position);
        }
        Self {
            local: index,
            offsets: vec![0; local.len() + 1],
            rows: Vec::new(),
            groups: Vec::new(),
            slots: Vec::new(),
        }
    }

    /// Groups the rows of a routing; slots are its choices.
    pub(super) fn sort(&mut self, routing: &Routing) {
        let choices = routing.choices.iter().enumerate();
        let choices = choices.map(|(slot, choice)| ((slot / routing.top_k) as u32, choice.expert));
        self.sort_slots(choices.collect());
    }

    /// Groups the rows of a list; slots are its places.
    pub(super) fn sort_choices(&mut self, choices: &[Choice]) {
        self.sort_slots(choices.iter().map(|choice| (choice.row, choice.expert)).collect());
        assert!(self.slots.iter().all(Option::is_some), "every chosen expert is here");
    }

    /// A counting sort of slots, each a row and its expert: stable, so rows stay
    /// in order within a group.
    fn sort_slots(&mut self, slots: Vec<(u32, u32)>) {
        let local_of = |expert: u32| self.local.get(expert as usize).copied().flatten();
        let targets: Vec<Option<usize>> = slots.iter().map(|&(_, expert)| local_of(expert)).collect();

        self.offsets.fill(0);
        for &group in targets.iter().flatten() {
            self.offsets[group + 1] += 1;
        }
        for group in 1..self.offsets.len() {
            self.offsets[group] += self.offsets[group - 1];
        }
        let num_grouped = self.offsets[self.offsets.len() - 1];
        self.rows.resize(num_grouped, 0);
        self.groups.resize(num_grouped, 0);
        self.slots.clear();
        self.slots.resize(targets.len(), None);
        let mut next = self.offsets.clone();
        for (slot, (group, (row, _))) in targets.into_iter().zip(slots).enumerate() {
            let Some(group) = group else { continue };
            let index = next[group];
            next[group] += 1;
            self.rows[index] = row;
            self.groups[index] = group;
            self.slots[slot] = Some(index);
        }
    }

    /// Slots of all rows, here or elsewhere.
    pub(super) fn num_slots(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    pub(super) fn range(&self, group: usize) -> Range<usize> {
        self.offsets[group]..self.offsets[group + 1]
    }

    pub(super) fn rows_of(&self, group: usize) -> &[u32] {
        &self.rows[self.range(group)]
    }

    pub(super) fn group_of(&self, index: usize) -> usize {
        self.groups[index]
    }

    pub(super) fn index_of_slot(&self, slot: usize) -> Option<usize> {
        self.slots[slot]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routing(logits: &[f32], num_experts: usize, top_k: usize) -> Routing {
        let mut routing = Routing::new(1, top_k);
        routing.choose(logits, num_experts);
        routing
    }

    fn first(routing: &Routing) -> &[Routed] {
        routing.rows().next().unwrap()
    }

    #[test]
    fn equal_logits_go_to_the_lowest_number() {
        let routing = routing(&[1.0, 3.0, 3.0, 3.0], 4, 2);
        let experts: Vec<u32> = first(&routing).iter().map(|choice| choice.expert).collect();
        assert_eq!(experts, [1, 2]);
    }

    #[test]
    fn weights_are_a_softmax_over_the_chosen_alone() {
        let routing = routing(&[0.0, 2.0, 1.0], 3, 2);
        let weight = 1.0 / (1.0 + (-1.0f32).exp());
        assert!((first(&routing)[0].weight - weight).abs() < 1e-6);
        assert!((first(&routing).iter().map(|choice| choice.weight).sum::<f32>() - 1.0).abs() < 1e-6);
    }

    #[test]
    fn logits_that_are_not_numbers_do_not_panic() {
        let routing = routing(&[f32::NAN, 1.0, f32::INFINITY, f32::NEG_INFINITY], 4, 4);
        assert_eq!(first(&routing).len(), 4);
    }

    #[test]
    fn a_list_of_choices_names_rows_and_slots_itself() {
        let mut groups = Groups::new(&[2, 0]);
        let choice = |row, expert| Choice { row, expert };
        groups.sort_choices(&[choice(4, 0), choice(1, 2), choice(4, 2), choice(0, 0)]);
        assert_eq!(groups.rows_of(0), [1, 4], "expert 2");
        assert_eq!(groups.rows_of(1), [4, 0], "expert 0, in the order of the list");
        assert_eq!(groups.index_of_slot(3), Some(3));
        groups.sort_choices(&[]);
        assert_eq!((groups.num_slots(), groups.rows_of(1).len()), (0, 0));
    }

    #[test]
    fn grouping_keeps_rows_in_order_and_leaves_out_other_experts() {
        let routing = routing(&[3., 2., 0., 0., 3., 2., 2., 0., 3.], 3, 2);
        let mut groups = Groups::new(&[2, 0]);
        groups.sort(&routing);
        assert_eq!(groups.rows_of(0), [1, 2], "expert 2");
        assert_eq!(groups.rows_of(1), [0, 2], "expert 0");
        assert_eq!(groups.index_of_slot(1), None, "expert 1 is elsewhere");
        assert_eq!(groups.index_of_slot(4), Some(1), "row 2's first choice is expert 2");
    }
}
