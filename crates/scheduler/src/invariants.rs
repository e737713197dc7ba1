//! What is true after every call, computed anew from the sequences. For tests:
//! it costs more than a step.

use std::collections::BTreeSet;

use crate::home::Home;
use crate::scheduler::{Scheduler, num_sliding};
use crate::sequence::{Phase, Sequence};

impl Scheduler {
    /// Panics unless pages are conserved in every pool, none that is written is
    /// shared, and all that is counted or listed twice agrees.
    pub fn check_invariants(&self) {
        for (index, home) in self.homes.iter().enumerate() {
            let has_pages = |sequence: &Sequence| sequence.phase != Phase::Waiting && sequence.home == index;
            let here: Vec<(usize, &Sequence)> =
                self.sequences.iter().filter(|(_, sequence)| has_pages(sequence)).collect();
            self.check_home(home, &here);
        }
        for (_, sequence) in &self.sequences {
            self.check_sequence(sequence);
        }
        self.check_queue();
    }

    fn check_home(&self, home: &Home, here: &[(usize, &Sequence)]) {
        let mut full = vec![0; home.full.num_blocks() as usize];
        let mut sliding = vec![0; home.sliding.num_blocks() as usize];
        for (_, sequence) in here {
            sequence.full.blocks.iter().for_each(|id| full[id.0 as usize] += 1);
            sequence.sliding.blocks.iter().for_each(|id| sliding[id.0 as usize] += 1);
        }
        home.full.check(&full);
        home.sliding.check(&sliding);
        for (_, sequence) in here {
            let first_open = sequence.num_computed / self.size.block;
            let open = sequence.full.blocks.iter().skip(first_open as usize);
            assert!(open.into_iter().all(|id| full[id.0 as usize] == 1), "a page that is written is shared");
            let open = first_open.saturating_sub(sequence.sliding.first);
            let open = sequence.sliding.blocks.iter().skip(open as usize);
            assert!(
                open.into_iter().all(|id| sliding[id.0 as usize] == 1),
                "a page that is written is shared"
            );
        }

        let is_running = |phase| matches!(phase, Phase::Filling | Phase::Sampling);
        let running: BTreeSet<_> = here
            .iter()
            .filter(|(_, sequence)| is_running(sequence.phase))
            .map(|(slot, sequence)| sequence.place(*slot))
            .collect();
        assert_eq!(running, home.running);
        assert!(running.len() as u32 <= home.config.max_step_slices);
        assert_eq!((here.len() - running.len()) as u32, home.num_leaving);
        let filling = here.iter().filter(|(_, sequence)| sequence.phase == Phase::Filling);
        let promised = filling.map(|(_, sequence)| {
            self.size.pages(sequence.tokens.len() as u32) - sequence.full.blocks.len() as u32
        });
        assert_eq!(promised.sum::<u32>(), home.promised_full);
        let reserved = here.iter().map(|(_, sequence)| {
            num_sliding(sequence, self.size, &self.config).min(home.config.num_sliding_blocks)
        });
        assert_eq!(reserved.sum::<u32>(), home.reserved_sliding);
    }

    fn check_sequence(&self, sequence: &Sequence) {
        let num_known = sequence.tokens.len() as u32;
        let num_full = sequence.full.blocks.len() as u32;
        assert!(sequence.num_computed <= sequence.num_planned);
        assert!(num_full == self.size.pages(sequence.num_planned));
        if self.size.window.is_some() && num_full > 0 {
            let end = sequence.sliding.first + sequence.sliding.blocks.len() as u32;
            assert_eq!(end, num_full);
        }
        match sequence.phase {
            Phase::Waiting => {
                assert_eq!((sequence.num_planned, sequence.num_in_flight, sequence.num_unknown), (0, 0, 0));
            }
            Phase::Filling => assert!(sequence.num_planned < num_known),
            Phase::Sampling => assert_eq!(sequence.num_planned + 1, num_known + sequence.num_unknown),
            Phase::Leaving | Phase::Over => assert!(sequence.num_in_flight > 0),
        }
    }

    fn check_queue(&self) {
        let places = |phase| {
            let of_phase = self
                .sequences
                .iter()
                .filter(move |(_, sequence)| sequence.phase == phase && !sequence.is_held);
            of_phase.map(|(slot, sequence)| sequence.place(slot)).collect::<BTreeSet<_>>()
        };
        assert_eq!(self.waiting.places().collect::<BTreeSet<_>>(), places(Phase::Waiting));
        assert_eq!(self.filling.places().collect::<BTreeSet<_>>(), places(Phase::Filling));
        assert_eq!(self.waiting.len() + self.filling.len(), {
            self.sequences.iter().filter(|(_, sequence)| sequence.is_queued()).count()
        });

        let held = self.sequences.iter().filter(|(_, sequence)| sequence.is_held);
        assert!(held.clone().all(|(_, sequence)| sequence.phase == Phase::Waiting));
        assert_eq!(held.count() as u32, self.num_held);

        let live = || self.sequences.iter().filter(|(_, sequence)| sequence.phase != Phase::Over);
        let accounts: Vec<_> = live().map(|(_, sequence)| (sequence.account, sequence.is_queued())).collect();
        self.shares.check(&accounts);
        assert_eq!(self.slots.len(), live().count());
        for (slot, sequence) in live() {
            assert_eq!(self.slots.get(&sequence.id), Some(&slot));
            let listed = sequence.expires_ms.map(|expires_ms| (expires_ms, sequence.id));
            assert!(listed.is_none_or(|listed| self.expiries.contains(&listed)));
        }
        let num_listed = live().filter(|(_, sequence)| sequence.expires_ms.is_some()).count();
        assert_eq!(num_listed, self.expiries.len());
        let unstarted = live().filter(|(_, sequence)| !sequence.has_started());
        assert_eq!(unstarted.clone().count() as u32, self.num_unstarted);
        let tokens = unstarted.map(|(_, sequence)| u64::from(sequence.num_prompt()));
        assert_eq!(tokens.sum::<u64>(), self.unstarted_tokens);
    }
}
