//! Drives a scheduler, plays its workers and its callers, and knows what each
//! sequence's tokens really are.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::num::NonZeroU32;

use crate::device::{Device, Touched};
use chorale_plan::{
    BlockTable, Penalties, Sample, SequenceId, SequenceSlice, SliceTokens, StepOutput, StepPlan,
};
use chorale_scheduler::{Config, FinishReason, HomeConfig, Progress, Rejected, Request, Scheduler, Share};

pub(crate) const EOS: u32 = 1;
const STOP: u32 = 5;

#[derive(Clone, Debug)]
pub(crate) enum Operation {
    Submit(Prompt),
    Schedule,
    /// With the seed of what is sampled.
    Commit(u32),
    /// The n-th of those that live.
    Cancel(usize),
    Wait(u64),
    Uncompute,
    /// The n-th of those that live.
    Hold(usize),
    Release(usize),
    Rehome(Vec<HomeConfig>),
}

#[derive(Clone, Debug)]
pub(crate) struct Prompt {
    /// Its first tokens are those of one of two texts.
    pub(crate) stream: u32,
    pub(crate) num_shared: usize,
    /// Then come its own, of which there are few enough to coincide.
    pub(crate) own: Vec<u32>,
    pub(crate) max_tokens: u32,
    pub(crate) priority: i32,
    pub(crate) key: u64,
    pub(crate) weight: u32,
    pub(crate) salt: u8,
    pub(crate) prefix_caching: bool,
    pub(crate) penalties: bool,
    pub(crate) min_tokens: u32,
    pub(crate) deadline_in_ms: Option<u64>,
}

struct Truth {
    prompt: Prompt,
    num_prompt: usize,
    max_tokens: usize,
    /// Prompt and all that was sampled, committed or not.
    tokens: Vec<u32>,
    num_committed: usize,
    planned_end: u32,
    num_preemptions: u32,
    /// It may start over: it was just submitted or everything was lost.
    is_fresh: bool,
}

pub(crate) struct World {
    scheduler: Scheduler,
    config: Config,
    device: Device,
    live: BTreeMap<SequenceId, Truth>,
    /// Cancelled sequences whose slices are still in flight are here, too.
    in_flight: VecDeque<(StepPlan, StepOutput, Touched)>,
    sampled_before: HashMap<SequenceId, u32>,
    now_ms: u64,
    last_step: u64,
    draws: u32,
    pub(crate) plans: Vec<StepPlan>,
}

impl World {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            scheduler: Scheduler::new(config.clone()).unwrap(),
            device: Device::new(&config),
            config,
            live: BTreeMap::new(),
            in_flight: VecDeque::new(),
            sampled_before: HashMap::new(),
            now_ms: 0,
            last_step: 0,
            draws: 0,
            plans: Vec::new(),
        }
    }

    pub(crate) fn apply(&mut self, operation: Operation) {
        match operation {
            Operation::Submit(prompt) => self.submit(prompt),
            Operation::Schedule => drop(self.schedule()),
            Operation::Commit(seed) => {
                self.draws = self.draws.wrapping_add(seed);
                self.commit();
            }
            Operation::Cancel(index) => {
                let id = self.live.keys().nth(index).copied();
                let ended = id.and_then(|id| self.scheduler.cancel(id));
                assert_eq!(id.is_some(), ended.is_some());
                self.take_in(ended);
            }
            Operation::Wait(ms) => {
                self.now_ms += ms;
                let ended = self.scheduler.expire(self.now_ms);
                self.take_in(ended);
            }
            Operation::Uncompute => {
                self.scheduler.uncompute_all();
                self.lose();
            }
            Operation::Hold(index) => {
                if let Some(&id) = self.live.keys().nth(index) {
                    self.scheduler.hold(id);
                }
            }
            Operation::Release(index) => {
                if let Some(&id) = self.live.keys().nth(index) {
                    self.scheduler.release(id);
                }
            }
            Operation::Rehome(homes) => {
                self.config.homes = homes.clone();
                let ended = self.scheduler.rehome(homes).unwrap();
                self.lose();
                self.take_in(ended);
            }
        }
        self.scheduler.check_invariants();
    }

    /// Runs until all sequences are over.
    pub(crate) fn drain(&mut self) {
        for &id in self.live.keys() {
            self.scheduler.release(id);
        }
        for _ in 0..20_000 {
            let is_idle = self.in_flight.is_empty();
            let planned = self.schedule();
            if is_idle {
                assert_eq!(planned, !self.live.is_empty(), "with nothing in flight there is always a step");
            }
            if self.live.is_empty() && self.in_flight.is_empty() {
                assert!(self.scheduler.is_idle());
                let stats = self.scheduler.stats();
                assert_eq!((stats.num_running, stats.num_waiting()), (0, 0));
                assert!(stats.homes.iter().all(|home| home.full.num_held + home.sliding.num_held == 0));
                return;
            }
            self.scheduler.check_invariants();
            self.commit();
            self.scheduler.check_invariants();
        }
        panic!("{} sequences never end", self.live.len());
    }

    fn submit(&mut self, prompt: Prompt) {
        let shared = (0..prompt.num_shared).map(|position| 10 + prompt.stream * 100 + position as u32);
        let tokens: Vec<u32> = shared.chain(prompt.own.iter().copied()).collect();
        let penalties = Penalties { repetition: 1.5, presence: 0.5, frequency: 0.5, history: Vec::new() };
        let mut request = Request::new(tokens.clone(), NonZeroU32::new(prompt.max_tokens).unwrap());
        request.sampling.penalties = prompt.penalties.then_some(penalties);
        request.stop_tokens = vec![STOP];
        request.min_tokens = prompt.min_tokens;
        request.priority = prompt.priority;
        request.share = Share { key: prompt.key, weight: NonZeroU32::new(prompt.weight).unwrap() };
        request.cache_salt = vec![prompt.salt];
        request.prefix_caching = prompt.prefix_caching;
        request.deadline_ms = prompt.deadline_in_ms.map(|ms| self.now_ms + ms);
        let context = self.config.max_context_tokens as usize;
        match self.scheduler.submit(request, self.now_ms) {
            Ok(id) => {
                let max_tokens = (tokens.len() + prompt.max_tokens as usize).min(context);
                let num_prompt = tokens.len();
                let truth = Truth {
                    prompt,
                    num_prompt,
                    max_tokens,
                    num_committed: num_prompt,
                    tokens,
                    planned_end: 0,
                    num_preemptions: 0,
                    is_fresh: true,
                };
                self.live.insert(id, truth);
            }
            Err(Rejected::ContextExceeded { .. }) => assert!(tokens.len() >= context),
            Err(Rejected::TooLong { needed, available, .. }) => assert!(needed > available),
            Err(Rejected::QueueFull { waiting_requests, waiting_tokens }) => {
                assert!(waiting_requests >= 12 || waiting_tokens + tokens.len() as u64 > 200);
            }
            Err(Rejected::EmptyPrompt) => panic!("the prompt is not empty"),
        }
    }

    fn schedule(&mut self) -> bool {
        let may_plan = self.in_flight.len() < self.config.max_steps_in_flight as usize;
        let Some(plan) = self.scheduler.schedule(self.now_ms) else { return false };
        assert!(may_plan, "more steps are in flight than may be");
        assert_eq!(plan.step, self.last_step + 1);
        self.last_step = plan.step;
        self.check_budgets(&plan);
        let touched = self.device.touched(&plan);
        touched.check_beside(&touched);
        for (_, _, other) in &self.in_flight {
            touched.check_beside(other);
        }
        let before = std::mem::take(&mut self.sampled_before);
        let mut samples = Vec::new();
        for slice in &plan.slices {
            if let Some(token) = self.run(slice, &before) {
                self.sampled_before.insert(slice.sequence, token);
                let sample = Sample { sequence: slice.sequence, token, logprob: None, top_logprobs: vec![] };
                samples.push(sample);
            }
        }
        self.plans.push(plan.clone());
        let output = StepOutput { step: plan.step, samples };
        self.in_flight.push_back((plan, output, touched));
        true
    }

    fn check_budgets(&self, plan: &StepPlan) {
        assert!(plan.slices.is_sorted_by_key(|slice| slice.home), "slices are listed by rank");
        let mut ids: Vec<SequenceId> = plan.slices.iter().map(|slice| slice.sequence).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), plan.slices.len(), "a sequence has one slice in a step");
        for home in &self.config.homes {
            let here = plan.slices.iter().filter(|slice| slice.home == home.rank);
            assert!(here.clone().count() <= home.max_step_slices as usize);
            let num_rows: usize = here.map(|slice| slice.tokens.len()).sum();
            assert!(num_rows <= home.max_step_tokens as usize);
        }
    }

    /// Computes a slice as a worker would, after a worker's checks.
    fn run(&mut self, slice: &SequenceSlice, before: &HashMap<SequenceId, u32>) -> Option<u32> {
        let home = *self.config.homes.iter().find(|home| home.rank == slice.home).unwrap();
        check_tables(slice, home, &self.config);
        let num_preemptions = self.scheduler.usage(slice.sequence).unwrap().num_preemptions;
        let truth = self.live.get_mut(&slice.sequence).expect("only live sequences are planned");
        let start = slice.num_computed;
        if truth.is_fresh || truth.num_preemptions < num_preemptions {
            let is_cached = truth.prompt.prefix_caching && self.config.prefix_caching;
            assert!(start == 0 || (is_cached && start.is_multiple_of(self.config.block_size_tokens)));
        } else {
            assert_eq!(start, truth.planned_end, "tokens are computed in order, and once");
        }
        (truth.is_fresh, truth.num_preemptions) = (false, num_preemptions);

        let range = start as usize..start as usize + slice.tokens.len();
        match &slice.tokens {
            SliceTokens::Known(tokens) => {
                assert!(!tokens.is_empty());
                assert_eq!(tokens[..], truth.tokens[range.clone()]);
                assert!(range.end <= truth.num_committed, "what is not committed is not known");
            }
            SliceTokens::SampledBefore => {
                assert_eq!(before.get(&slice.sequence), truth.tokens.get(range.start));
                assert!(!truth.prompt.penalties, "penalties need all tokens");
            }
        }
        truth.planned_end = range.end as u32;
        let prefixes = prefixes(slice.sequence, truth);
        self.device.run(slice, &prefixes);

        assert_eq!(slice.sample.is_some(), range.end == truth.tokens.len());
        let sampling = slice.sample.as_ref()?;
        if let Some(penalties) = &sampling.penalties {
            check_history(penalties, truth);
        }
        let num_output = (truth.tokens.len() - truth.num_prompt) as u32;
        assert_eq!(sampling.logit_bias.is_empty(), num_output >= truth.prompt.min_tokens);
        self.draws = self.draws.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
        let token = match (self.draws >> 16) % 12 {
            0 => EOS,
            1 => STOP,
            other => 2 + other % 2,
        };
        truth.tokens.push(token);
        assert!(truth.tokens.len() <= truth.max_tokens, "no token beyond the last is planned");
        Some(token)
    }

    fn commit(&mut self) {
        let Some((plan, output, _)) = self.in_flight.pop_front() else { return };
        let progress = self.scheduler.commit(&plan, &output);
        self.take_in(progress);
    }

    fn take_in(&mut self, progress: impl IntoIterator<Item = Progress>) {
        for progress in progress {
            match progress {
                Progress::Sampled(sample) => {
                    let truth = self.live.get_mut(&sample.sequence).expect("it is not over");
                    assert_eq!(sample.token, truth.tokens[truth.num_committed]);
                    truth.num_committed += 1;
                    assert_eq!(truth.end_before_last(), None, "it goes on after its end");
                }
                Progress::Finished { sequence, reason, usage } => {
                    let truth = self.live.remove(&sequence).expect("it ends once");
                    assert_eq!(usage.prompt_tokens as usize, truth.num_prompt);
                    assert_eq!(usage.output_tokens as usize, truth.num_committed - truth.num_prompt);
                    match reason {
                        FinishReason::StopToken(_) | FinishReason::Length => {
                            assert_eq!(truth.end(truth.num_committed), Some(reason));
                        }
                        FinishReason::Deadline => {
                            assert!(truth.prompt.deadline_in_ms.is_some());
                        }
                        FinishReason::WaitedTooLong => assert_eq!(usage.queue_ms, None),
                        FinishReason::Cancelled | FinishReason::NoRoom => {}
                    }
                }
            }
        }
    }

    /// All ranks were lost: what is in flight counts no more.
    fn lose(&mut self) {
        self.device.lose();
        self.sampled_before.clear();
        for truth in self.live.values_mut() {
            truth.tokens.truncate(truth.num_committed);
            truth.is_fresh = true;
        }
        for (plan, output, _) in std::mem::take(&mut self.in_flight) {
            assert_eq!(self.scheduler.commit(&plan, &output), [], "void steps do nothing");
        }
    }
}

impl Truth {
    /// Why the sequence is over at that many tokens, if it is.
    fn end(&self, num_tokens: usize) -> Option<FinishReason> {
        let token = self.tokens[num_tokens - 1];
        let num_output = (num_tokens - self.num_prompt) as u32;
        if num_output > self.prompt.min_tokens && (token == EOS || token == STOP) {
            return Some(FinishReason::StopToken(token));
        }
        (num_tokens == self.max_tokens).then_some(FinishReason::Length)
    }

    fn end_before_last(&self) -> Option<FinishReason> {
        (self.num_prompt + 1..self.num_committed).find_map(|num_tokens| self.end(num_tokens))
    }
}

/// Names the tokens up to each position; equal only where sharing is allowed.
fn prefixes(id: SequenceId, truth: &Truth) -> Vec<u64> {
    let own = if truth.prompt.prefix_caching { 0 } else { id.0 + 1 };
    let mut name = 0xcbf2_9ce4_8422_2325 ^ u64::from(truth.prompt.salt) << 32 ^ own << 40;
    let tokens = truth.tokens.iter().map(|&token| {
        name = (name ^ u64::from(token)).wrapping_mul(0x100_0000_01b3).rotate_left(23);
        name
    });
    tokens.collect()
}

fn check_history(penalties: &Penalties, truth: &Truth) {
    let mut counts = BTreeMap::new();
    for (index, &token) in truth.tokens.iter().enumerate() {
        *counts.entry(token).or_insert(0) += u32::from(index >= truth.num_prompt);
    }
    let history = penalties.history.iter().map(|count| (count.token, count.num_in_output));
    assert_eq!(penalties.history.len(), counts.len());
    assert_eq!(history.collect::<BTreeMap<_, _>>(), counts);
}

fn check_tables(slice: &SequenceSlice, home: HomeConfig, config: &Config) {
    let positions = slice.num_computed..slice.num_computed + slice.tokens.len() as u32;
    assert!(positions.end <= config.max_context_tokens);
    let covers = |table: &BlockTable, window, num_blocks| {
        let span = BlockTable::span(positions.clone(), window, config.block_size_tokens);
        let end = table.first + table.blocks.len() as u32;
        assert!(table.first <= span.start && end >= span.end, "{table:?} does not cover {span:?}");
        assert!(table.blocks.iter().all(|block| block.0 < num_blocks));
    };
    covers(&slice.full_blocks, None, home.num_full_blocks);
    if config.window_tokens.is_some() {
        covers(&slice.sliding_blocks, config.window_tokens, home.num_sliding_blocks);
    }
}
