//! The plan of one step: who gets how many tokens, on which pages. It changes
//! what is planned; what is computed changes when the step is committed.

use chorale_plan::{BlockId, SequenceId, SequenceSlice, StepPlan};

use crate::block_pool::BlockPool;
use crate::home::{Demand, Home};
use crate::prefix_cache::{Prefix, longest_prefix};
use crate::queue::Place;
use crate::scheduler::{Scheduler, num_sliding};
use crate::sequence::Phase;

/// A step that was planned and not yet committed.
#[derive(Clone, Debug)]
pub(crate) struct StepInFlight {
    pub(crate) step: u64,
    pub(crate) slices: Vec<SliceInFlight>,
}

/// A slice of it. The sequence stays in its slot until the commit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SliceInFlight {
    pub(crate) slot: usize,
    /// Positions that are computed when the slice is.
    pub(crate) end: u32,
    pub(crate) is_sampled: bool,
}

/// Why the first in the queue could not be admitted, so that a long prompt is
/// not looked up in every step until something changes.
#[derive(Clone, Debug)]
pub(crate) struct Blocked {
    sequence: SequenceId,
    num_returns: u64,
    /// What each home lacked the room for; `None` if it was not asked.
    demands: Vec<Option<Demand>>,
}

/// A place for a sequence that waits.
struct Choice {
    home: usize,
    /// What is cached there.
    prefix: Prefix,
    demand: Demand,
}

/// The slices of a step so far, by home: a plan lists them in the order of
/// ranks, so that what the ranks give back, in that order, fits it.
struct Draft {
    now_ms: u64,
    slices: Vec<Vec<SequenceSlice>>,
    in_flight: Vec<Vec<SliceInFlight>>,
}

impl Draft {
    fn new(now_ms: u64, homes: &[Home]) -> Self {
        // Every sequence of a home has a slice, and some come in.
        let num_slices = |home: &Home| (home.running.len() + 8).min(home.config.max_step_slices as usize);
        Self {
            now_ms,
            slices: homes.iter().map(|home| Vec::with_capacity(num_slices(home))).collect(),
            in_flight: homes.iter().map(|home| Vec::with_capacity(num_slices(home))).collect(),
        }
    }
}

fn joined<T>(by_home: Vec<Vec<T>>) -> Vec<T> {
    let mut by_home = by_home.into_iter();
    let mut all = by_home.next().unwrap_or_default();
    by_home.for_each(|mut slices| all.append(&mut slices));
    all
}

impl Scheduler {
    /// The next step, or `None` if there is nothing to compute or as many steps
    /// are in flight as may be.
    ///
    /// With nothing in flight and a sequence neither over nor held there is always
    /// a step.
    pub fn schedule(&mut self, now_ms: u64) -> Option<StepPlan> {
        if self.in_flight.len() >= self.config.max_steps_in_flight as usize {
            return None;
        }
        let mut draft = Draft::new(now_ms, &self.homes);
        for home in 0..self.homes.len() {
            self.homes[home].open_step();
            self.plan_next_tokens(home, &mut draft);
        }
        self.plan_queue(&mut draft);

        let slices = joined(draft.slices);
        if slices.is_empty() {
            return None;
        }
        self.step += 1;
        self.in_flight.push_back(StepInFlight { step: self.step, slices: joined(draft.in_flight) });
        Some(StepPlan { step: self.step, in_halves: false, home_rows: Vec::new(), slices })
    }

    /// One token for each sequence of the home that has caught up. The home's
    /// slices are no more than its rows, so the budget suffices for all.
    fn plan_next_tokens(&mut self, home: usize, draft: &mut Draft) {
        let places: Vec<Place> = self.homes[home].running.iter().copied().collect();
        for place in places {
            let sequence = &self.sequences[place.slot];
            // Some of these lose their pages to others on the way.
            if sequence.phase != Phase::Sampling {
                continue;
            }
            if self.size.pages(sequence.max_positions()) > sequence.full.blocks.len() as u32 {
                self.homes[home].num_growing += 1;
            }
            if sequence.num_pending(self.step) > 0 && self.make_room(place, home) {
                self.plan_slice(place.slot, 1, draft);
            }
        }
    }

    /// Finds pages for a sequence's next token. Others lose theirs if need be,
    /// the least important first; perhaps the sequence itself is that.
    fn make_room(&mut self, place: Place, home: usize) -> bool {
        loop {
            let at = &mut self.homes[home];
            let (lacks_full, lacks_sliding) = at.lacks(&self.sequences[place.slot], self.size);
            if !lacks_full && !lacks_sliding {
                return true;
            }
            at.is_closed = true;
            // Room for every window is reserved, so sliding pages lack only
            // while a step in flight has more of them than it will keep.
            if !lacks_full || at.num_leaving > 0 {
                at.is_short = true;
                return false;
            }
            let victim = *at.running.last().expect("the sequence itself is at its home");
            self.preempt(victim);
            if victim == place {
                return false;
            }
        }
    }

    /// The rest of the budgets for those that have more to compute, by turns.
    fn plan_queue(&mut self, draft: &mut Draft) {
        let mut may_admit = true;
        // Those that got their slice, or cannot get one in this step.
        let mut served = Vec::new();
        loop {
            may_admit &= self.homes.iter().any(Home::can_admit);
            let waiting = if may_admit { self.waiting.first(&self.shares) } else { None };
            let may_fill = self.homes.iter().any(Home::can_fill);
            let filling = if may_fill { self.filling.first(&self.shares) } else { None };
            match (waiting, filling) {
                (Some((turn, place)), other) if other.is_none_or(|(other, _)| turn < other) => {
                    may_admit = self.admit(place, draft);
                }
                (_, Some((_, place))) => {
                    self.filling.remove(place, &self.shares);
                    served.push(place);
                    self.fill(place, draft);
                }
                (_, None) => break,
            }
        }
        for place in served {
            if self.sequences[place.slot].phase == Phase::Filling {
                self.filling.push(place, &self.shares);
            }
        }
    }

    /// As long a slice as budget and pages allow, perhaps none.
    fn fill(&mut self, place: Place, draft: &mut Draft) {
        let sequence = &self.sequences[place.slot];
        let home = &mut self.homes[sequence.home];
        if !home.can_fill() {
            return;
        }
        let num_sliding = num_sliding(sequence, self.size, &self.config);
        let num_pending = sequence.num_pending(self.step);
        let count = num_pending.min(home.slice_room(sequence, num_sliding, self.size));
        if count == 0 {
            home.is_closed = true;
            return;
        }
        self.plan_slice(place.slot, count, draft);
        if count == num_pending {
            self.sequences[place.slot].phase = Phase::Sampling;
            self.shares.unqueued(place.account);
        }
    }

    /// Gives a waiting sequence a home, if there is one for it.
    fn admit(&mut self, place: Place, draft: &mut Draft) -> bool {
        let Some(choice) = self.choose_home(place.slot) else {
            return false;
        };
        let sequence = &mut self.sequences[place.slot];
        sequence.home = choice.home;
        sequence.phase = Phase::Filling;
        let home = &mut self.homes[choice.home];
        home.admit(sequence, choice.prefix, choice.demand, self.size);
        home.running.insert(place);
        self.waiting.remove(place, &self.shares);
        if !sequence.has_started() {
            let num_cached = sequence.num_computed.min(sequence.num_prompt());
            sequence.usage.cached_tokens = num_cached;
            if self.config.prefix_caching && sequence.wants_prefix_caching() {
                self.queries_tokens += u64::from(sequence.num_prompt());
                self.hits_tokens += u64::from(num_cached);
            }
            self.start(place.slot, draft.now_ms);
        }
        self.filling.push(place, &self.shares);
        true
    }

    /// The home for a sequence that waits: of those that have the room and are
    /// not crowded the one with the longest prefix, then with the most room,
    /// then of the lowest rank.
    fn choose_home(&mut self, slot: usize) -> Option<Choice> {
        if self.is_still_blocked(slot) {
            return None;
        }
        let mut demands = Vec::with_capacity(self.homes.len());
        let mut choices = Vec::with_capacity(self.homes.len());
        for home in 0..self.homes.len() {
            if !self.may_admit(home, slot) {
                demands.push(None);
                continue;
            }
            let choice = self.look_up(slot, home);
            demands.push(Some(choice.demand));
            if self.homes[home].has_room(choice.demand, self.size) {
                choices.push(choice);
            }
        }
        let num_running = |choice: &Choice| self.homes[choice.home].running.len() as u32;
        let Some(emptiest) = choices.iter().map(num_running).min() else {
            let sequence = self.sequences[slot].id;
            self.blocked = Some(Blocked { sequence, num_returns: self.num_returns, demands });
            return None;
        };
        let most = emptiest.saturating_add(self.config.max_home_imbalance_sequences);
        choices.into_iter().filter(|choice| num_running(choice) <= most).max_by_key(|choice| {
            let spare = self.homes[choice.home].num_spare();
            (choice.prefix.full.len(), spare, std::cmp::Reverse(choice.home))
        })
    }

    /// What is cached of a sequence at a home, and what it would take there.
    fn look_up(&mut self, slot: usize, home: usize) -> Choice {
        let at = &self.homes[home];
        let sequence = &mut self.sequences[slot];
        let num_tokens = sequence.tokens.len() as u32;
        let mut names = &[][..];
        if self.config.prefix_caching && sequence.wants_prefix_caching() {
            // At least one token is always computed: its logits are wanted.
            let num_pages = (num_tokens - 1) / self.size.block;
            sequence.names.extend(&sequence.tokens, num_pages, self.size.block);
            names = &sequence.names.all()[..num_pages as usize];
        }
        let prefix = longest_prefix(names, &at.full, &at.sliding, self.size);
        let num_idle = |pool: &BlockPool, blocks: &[BlockId]| {
            blocks.iter().filter(|&&id| pool.is_idle(id)).count() as u32
        };
        let demand = Demand {
            num_new: self.size.pages(num_tokens) - prefix.full.len() as u32,
            num_idle_full: num_idle(&at.full, &prefix.full),
            num_idle_sliding: num_idle(&at.sliding, &prefix.sliding.blocks),
            num_sliding: num_sliding(sequence, self.size, &self.config).min(at.config.num_sliding_blocks),
        };
        Choice { home, prefix, demand }
    }

    /// True if the sequence was looked up before, and no home has gained the
    /// room that it lacked.
    fn is_still_blocked(&self, slot: usize) -> bool {
        let Some(blocked) = &self.blocked else { return false };
        let has_gained = |home: usize| {
            let has_room = |demand| self.homes[home].has_room(demand, self.size);
            self.may_admit(home, slot) && blocked.demands[home].is_none_or(has_room)
        };
        blocked.sequence == self.sequences[slot].id
            && blocked.num_returns == self.num_returns
            && !(0..self.homes.len()).any(has_gained)
    }

    fn may_admit(&self, home: usize, slot: usize) -> bool {
        let num_positions = self.sequences[slot].max_positions();
        self.homes[home].can_admit() && self.homes[home].can_hold(num_positions, self.size)
    }

    /// Plans a sequence's next `count` tokens, for which there is room.
    fn plan_slice(&mut self, slot: usize, count: u32, draft: &mut Draft) {
        let sequence = &mut self.sequences[slot];
        let index = sequence.home;
        let home = &mut self.homes[index];
        home.extend(sequence, count, self.size);
        self.shares.charge(sequence.account, sequence.pay(count), self.config.prompt_token_cost);
        let rank = home.config.rank;
        let slice = sequence.slice(count, self.step + 1, rank, self.size, &self.config.eos_tokens);
        let in_flight = SliceInFlight { slot, end: sequence.num_planned, is_sampled: slice.sample.is_some() };
        draft.in_flight[index].push(in_flight);
        draft.slices[index].push(slice);
    }
}
