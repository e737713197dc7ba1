//! Sequences that are kept out of the queue for a while, because its owner wants
//! to see how a step goes without them.

use chorale_plan::SequenceId;

use crate::scheduler::Scheduler;
use crate::sequence::Phase;

impl Scheduler {
    /// Keeps a sequence that waits from being planned until it is released. It
    /// may still be cancelled or expire. False, and nothing happens, if it is
    /// over, has pages, or is held already.
    pub fn hold(&mut self, sequence: SequenceId) -> bool {
        let Some(&slot) = self.slots.get(&sequence) else { return false };
        let held = &mut self.sequences[slot];
        if held.phase != Phase::Waiting || held.is_held {
            return false;
        }
        held.is_held = true;
        let place = held.place(slot);
        self.num_held += 1;
        self.waiting.remove(place, &self.shares);
        self.shares.unqueued(place.account);
        true
    }

    /// Puts a sequence that was held in the queue again, at its old place.
    pub fn release(&mut self, sequence: SequenceId) {
        let Some(&slot) = self.slots.get(&sequence) else { return };
        let held = &mut self.sequences[slot];
        if std::mem::take(&mut held.is_held) {
            let place = held.place(slot);
            self.num_held -= 1;
            self.enqueue(place);
        }
    }
}
