//! The scheduler's state and all that changes it outside of a step: requests
//! that come, leave or run out of time, and homes that are lost. Planning is in
//! `plan`, what a step brings back in `commit`.

use std::collections::{BTreeSet, HashMap, VecDeque};

use chorale_plan::SequenceId;
use slab::Slab;

use crate::config::{Config, ConfigError, HomeConfig, check_homes};
use crate::home::Home;
use crate::pages::PageSize;
use crate::plan::{Blocked, StepInFlight};
use crate::progress::{FinishReason, Progress, Stats, Usage};
use crate::queue::{FairQueue, Place};
use crate::request::{Pool, Rejected, Request};
use crate::sequence::{Phase, Sequence};
use crate::shares::Shares;

/// Decides which tokens run next; the crate's documentation has the order.
///
/// The calls of a step are `expire`, `schedule`, then `commit` with what the
/// workers gave back. Up to `max_steps_in_flight` steps may be planned before
/// the first is committed; commits come in the order of the plans.
#[derive(Clone, Debug)]
pub struct Scheduler {
    pub(crate) config: Config,
    pub(crate) size: PageSize,
    pub(crate) homes: Vec<Home>,
    pub(crate) sequences: Slab<Sequence>,
    /// Sequences that are not over.
    pub(crate) slots: HashMap<SequenceId, usize>,
    /// Sequences without pages.
    pub(crate) waiting: FairQueue,
    /// Sequences with pages that have more than one token to compute.
    pub(crate) filling: FairQueue,
    pub(crate) shares: Shares,
    /// When to look at which sequence's time.
    pub(crate) expiries: BTreeSet<(u64, SequenceId)>,
    pub(crate) in_flight: VecDeque<StepInFlight>,
    /// The latest step that was planned.
    pub(crate) step: u64,
    /// Steps up to this one will not be committed: their homes are lost.
    pub(crate) void_step: u64,
    next_sequence: u64,
    /// Sequences that are held.
    pub(crate) num_held: u32,
    pub(crate) num_unstarted: u32,
    pub(crate) unstarted_tokens: u64,
    /// Counts up whenever a sequence returns its pages.
    pub(crate) num_returns: u64,
    pub(crate) blocked: Option<Blocked>,
    pub(crate) num_preemptions: u64,
    pub(crate) queries_tokens: u64,
    pub(crate) hits_tokens: u64,
}

impl Scheduler {
    /// A scheduler with empty pools.
    pub fn new(mut config: Config) -> Result<Self, ConfigError> {
        config.check()?;
        config.homes.sort_by_key(|home| home.rank);
        Ok(Self {
            size: PageSize { block: config.block_size_tokens, window: config.window_tokens },
            homes: config.homes.iter().copied().map(Home::new).collect(),
            config,
            sequences: Slab::new(),
            slots: HashMap::new(),
            waiting: FairQueue::default(),
            filling: FairQueue::default(),
            shares: Shares::default(),
            expiries: BTreeSet::new(),
            in_flight: VecDeque::new(),
            step: 0,
            void_step: 0,
            next_sequence: 0,
            num_held: 0,
            num_unstarted: 0,
            unstarted_tokens: 0,
            num_returns: 0,
            blocked: None,
            num_preemptions: 0,
            queries_tokens: 0,
            hits_tokens: 0,
        })
    }

    /// Puts a request in the queue.
    pub fn submit(&mut self, request: Request, now_ms: u64) -> Result<SequenceId, Rejected> {
        let max_tokens = self.max_tokens(&request)?;
        if let Some(rejected) = self.too_long(max_tokens - 1) {
            return Err(rejected);
        }
        let num_prompt = request.prompt.len() as u64;
        let too_many = self.num_unstarted >= self.config.max_waiting_requests
            || (self.num_unstarted > 0
                && self.unstarted_tokens + num_prompt > self.config.max_waiting_tokens);
        if too_many {
            return Err(Rejected::QueueFull {
                waiting_requests: self.num_unstarted,
                waiting_tokens: self.unstarted_tokens,
            });
        }
        let id = SequenceId(self.next_sequence);
        self.next_sequence += 1;
        self.num_unstarted += 1;
        self.unstarted_tokens += num_prompt;

        let account = self.shares.join(request.share);
        let slot = self.sequences.insert(Sequence::new(id, request, account, max_tokens, now_ms));
        self.slots.insert(id, slot);
        self.list_expiry(slot);
        self.shares.queued(account);
        self.waiting.push(self.sequences[slot].place(slot), &self.shares);
        Ok(id)
    }

    /// Ends a sequence whose caller left; `None` if it is over already.
    pub fn cancel(&mut self, sequence: SequenceId) -> Option<Progress> {
        let slot = *self.slots.get(&sequence)?;
        Some(self.finish(slot, FinishReason::Cancelled))
    }

    /// Ends the sequences whose time is up.
    pub fn expire(&mut self, now_ms: u64) -> Vec<Progress> {
        let mut ended = Vec::new();
        while let Some(&(expires_ms, id)) = self.expiries.first()
            && expires_ms <= now_ms
        {
            let slot = self.slots[&id];
            let deadline_ms = self.sequences[slot].deadline_ms();
            let is_late = deadline_ms.is_some_and(|deadline_ms| deadline_ms <= now_ms);
            let reason = if is_late { FinishReason::Deadline } else { FinishReason::WaitedTooLong };
            ended.push(self.finish(slot, reason));
        }
        ended
    }

    /// Marks all tokens of all sequences uncomputed: a rank was lost, and the
    /// pages with it. Steps in flight are void; their commits do nothing.
    pub fn uncompute_all(&mut self) {
        for home in &mut self.homes {
            *home = Home::new(home.config);
        }
        self.in_flight.clear();
        self.void_step = self.step;
        self.blocked = None;
        let slots: Vec<usize> = self.sequences.iter().map(|(slot, _)| slot).collect();
        for slot in slots {
            let sequence = &mut self.sequences[slot];
            let (phase, place) = (sequence.phase, sequence.place(slot));
            sequence.uncompute();
            match phase {
                Phase::Waiting => {}
                Phase::Filling => {
                    self.filling.remove(place, &self.shares);
                    self.waiting.push(place, &self.shares);
                }
                Phase::Sampling | Phase::Leaving => self.enqueue(place),
                Phase::Over => drop(self.sequences.remove(slot)),
            }
        }
    }

    /// Goes on with other homes, computing everything again. Sequences that no
    /// home can hold any more are over.
    pub fn rehome(&mut self, mut homes: Vec<HomeConfig>) -> Result<Vec<Progress>, ConfigError> {
        check_homes(&homes)?;
        homes.sort_by_key(|home| home.rank);
        self.homes = homes.iter().copied().map(Home::new).collect();
        self.config.homes = homes;
        self.uncompute_all();
        let is_lost = |(_, sequence): &(usize, &Sequence)| self.too_long(sequence.max_positions()).is_some();
        let lost: Vec<usize> = self.sequences.iter().filter(is_lost).map(|(slot, _)| slot).collect();
        Ok(lost.into_iter().map(|slot| self.finish(slot, FinishReason::NoRoom)).collect())
    }

    /// What a sequence took so far; `None` if it is over.
    pub fn usage(&self, sequence: SequenceId) -> Option<Usage> {
        self.slots.get(&sequence).map(|&slot| self.sequences[slot].usage)
    }

    /// True if there is nothing to plan and nothing to commit.
    pub fn is_idle(&self) -> bool {
        self.slots.is_empty() && self.in_flight.is_empty()
    }

    /// The numbers for metrics.
    pub fn stats(&self) -> Stats {
        let num_waiting = self.waiting.len() as u32 + self.num_held;
        Stats {
            num_running: self.slots.len() as u32 - num_waiting,
            num_waiting_capacity: self.num_unstarted,
            num_waiting_deferred: num_waiting - self.num_unstarted,
            waiting_tokens: self.unstarted_tokens,
            prefix_cache_queries_tokens: self.queries_tokens,
            prefix_cache_hits_tokens: self.hits_tokens,
            num_preemptions: self.num_preemptions,
            homes: self.homes.iter().map(Home::stats).collect(),
        }
    }

    /// Tokens of the request at its longest.
    fn max_tokens(&self, request: &Request) -> Result<u32, Rejected> {
        let prompt_tokens = request.prompt.len() as u64;
        let max_context_tokens = self.config.max_context_tokens;
        if prompt_tokens == 0 {
            return Err(Rejected::EmptyPrompt);
        }
        if prompt_tokens >= u64::from(max_context_tokens) {
            return Err(Rejected::ContextExceeded { prompt_tokens, max_context_tokens });
        }
        let longest = prompt_tokens + u64::from(request.max_tokens.get());
        Ok(longest.min(u64::from(max_context_tokens)) as u32)
    }

    /// Why no home could hold that many positions, if none could.
    fn too_long(&self, num_positions: u32) -> Option<Rejected> {
        if self.homes.iter().any(|home| home.can_hold(num_positions, self.size)) {
            return None;
        }
        let usable = || self.homes.iter().map(|home| home.config).filter(|home| home.max_step_slices > 0);
        let needed = self.size.pages(num_positions);
        let available = usable().map(|home| home.num_full_blocks).max().unwrap_or(0);
        if available < needed {
            return Some(Rejected::TooLong { pool: Pool::Full, needed, available });
        }
        // Where the full pages suffice, the sliding ones do not.
        let roomy = usable().filter(|home| home.num_full_blocks >= needed);
        let available = roomy.map(|home| home.num_sliding_blocks).max().unwrap_or(0);
        let needed = self.size.sliding_pages(num_positions, 1);
        Some(Rejected::TooLong { pool: Pool::Sliding, needed, available })
    }

    /// Ends a sequence. Its pages return when nothing of it is in flight.
    pub(crate) fn finish(&mut self, slot: usize, reason: FinishReason) -> Progress {
        let sequence = &mut self.sequences[slot];
        let (id, usage, phase) = (sequence.id, sequence.usage, sequence.phase);
        let was_held = std::mem::take(&mut sequence.is_held);
        let place = sequence.place(slot);
        if let Some(expires_ms) = sequence.expires_ms.take() {
            self.expiries.remove(&(expires_ms, id));
        }
        if !sequence.has_started() {
            self.num_unstarted -= 1;
            self.unstarted_tokens -= u64::from(sequence.num_prompt());
        }
        match phase {
            Phase::Waiting if was_held => self.num_held -= 1,
            Phase::Waiting => {
                self.waiting.remove(place, &self.shares);
                self.shares.unqueued(place.account);
            }
            Phase::Filling | Phase::Sampling => self.leave_home(place),
            Phase::Leaving => self.homes[sequence.home].num_leaving -= 1,
            Phase::Over => unreachable!("a sequence ends once"),
        }
        self.slots.remove(&id);
        self.shares.leave(place.account);
        if self.sequences[slot].num_in_flight == 0 {
            if phase != Phase::Waiting {
                self.return_pages(slot);
            }
            self.sequences.remove(slot);
        } else {
            self.linger(slot, Phase::Over);
        }
        Progress::Finished { sequence: id, reason, usage }
    }

    /// Takes the pages of a sequence, which is computed again later.
    pub(crate) fn preempt(&mut self, place: Place) {
        self.num_preemptions += 1;
        self.sequences[place.slot].usage.num_preemptions += 1;
        self.leave_home(place);
        if self.sequences[place.slot].num_in_flight == 0 {
            self.requeue(place.slot);
        } else {
            self.linger(place.slot, Phase::Leaving);
        }
    }

    /// Returns the pages of a sequence and puts it in the queue again.
    pub(crate) fn requeue(&mut self, slot: usize) {
        self.return_pages(slot);
        let sequence = &mut self.sequences[slot];
        sequence.uncompute();
        let place = sequence.place(slot);
        self.enqueue(place);
    }

    /// Keeps the pages of a sequence until its slices in flight are committed.
    fn linger(&mut self, slot: usize, phase: Phase) {
        let sequence = &mut self.sequences[slot];
        sequence.phase = phase;
        self.homes[sequence.home].num_leaving += 1;
    }

    pub(crate) fn enqueue(&mut self, place: Place) {
        self.shares.queued(place.account);
        self.waiting.push(place, &self.shares);
    }

    /// Takes a sequence off its home's list, and off the queue if it is there.
    fn leave_home(&mut self, place: Place) {
        let sequence = &self.sequences[place.slot];
        let home = &mut self.homes[sequence.home];
        home.running.remove(&place);
        if sequence.phase == Phase::Filling {
            home.promised_full -=
                self.size.pages(sequence.tokens.len() as u32) - sequence.full.blocks.len() as u32;
            self.filling.remove(place, &self.shares);
            self.shares.unqueued(place.account);
        }
    }

    pub(crate) fn return_pages(&mut self, slot: usize) {
        let sequence = &mut self.sequences[slot];
        let num_sliding = num_sliding(sequence, self.size, &self.config);
        let home = &mut self.homes[sequence.home];
        home.return_all(sequence, num_sliding.min(home.config.num_sliding_blocks));
        self.num_returns += 1;
    }

    /// A sequence gets its first slice.
    pub(crate) fn start(&mut self, slot: usize, now_ms: u64) {
        let sequence = &mut self.sequences[slot];
        sequence.usage.queue_ms = Some(now_ms.saturating_sub(sequence.arrived_ms));
        self.num_unstarted -= 1;
        self.unstarted_tokens -= u64::from(sequence.num_prompt());
        self.list_expiry(slot);
    }

    /// Lists a sequence under the time at which something ends for it.
    fn list_expiry(&mut self, slot: usize) {
        let sequence = &mut self.sequences[slot];
        if let Some(expires_ms) = sequence.expires_ms.take() {
            self.expiries.remove(&(expires_ms, sequence.id));
        }
        let max_waiting_ms = self.config.max_waiting_ms.filter(|_| !sequence.has_started());
        let waited_ms = max_waiting_ms.map(|max_ms| sequence.arrived_ms.saturating_add(max_ms));
        sequence.expires_ms = [waited_ms, sequence.deadline_ms()].into_iter().flatten().min();
        if let Some(expires_ms) = sequence.expires_ms {
            self.expiries.insert((expires_ms, sequence.id));
        }
    }
}

/// Sliding pages that a sequence needs at the most, one token at a time.
pub(crate) fn num_sliding(sequence: &Sequence, size: PageSize, config: &Config) -> u32 {
    size.sliding_pages(sequence.max_positions(), config.max_steps_in_flight)
}
