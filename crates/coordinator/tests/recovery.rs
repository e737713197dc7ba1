//! Ranks that are lost while sequences run: clients see a pause and the tokens
//! that they would have had, and a sequence that kills ranks ends by itself.

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

use chorale_coordinator::{
    Answer, Constraint, ConstraintError, Ended, Engine, EngineStats, Executor, FinishReason, HomeConfig,
    Request, SchedulerConfig, StepError, Submission, TokenEvent, TokenStream,
};
use chorale_plan::{Rank, Sample, SequenceId, SliceTokens, StepOutput, StepPlan, TokenId, TokenMask};
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Semaphore;

/// A prompt that begins with this kills the ranks.
const POISON: TokenId = 666;

/// Says the number after the last one, and knows by heart what was computed:
/// a slice whose beginning it was never given is a mistake.
struct Fragile {
    /// Of each sequence, how many tokens are computed.
    computed: BTreeMap<SequenceId, u32>,
    poisoned: BTreeSet<SequenceId>,
    /// Calls, from 0, that are lost.
    lost: BTreeSet<u64>,
    /// Calls, from 0, before which the ranks move.
    moved: BTreeSet<u64>,
    num_calls: u64,
    seen: Seen,
}

#[derive(Clone)]
struct Seen {
    /// The tokens that grammars allowed, by call.
    allowed: Arc<Mutex<Vec<Option<TokenMask>>>>,
    /// Sequences of each lost step.
    losses: Arc<Mutex<Vec<usize>>>,
    /// Worlds that may come together.
    homes: Arc<Semaphore>,
    /// No world will.
    is_over: Arc<Mutex<bool>>,
}

impl Fragile {
    fn new(lost: impl IntoIterator<Item = u64>) -> Self {
        Self {
            computed: BTreeMap::new(),
            poisoned: BTreeSet::new(),
            lost: lost.into_iter().collect(),
            moved: BTreeSet::new(),
            num_calls: 0,
            seen: Seen {
                allowed: Arc::default(),
                losses: Arc::default(),
                homes: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)),
                is_over: Arc::default(),
            },
        }
    }
}

impl Executor for Fragile {
    fn step(&mut self, plan: Arc<StepPlan>) -> Answer {
        let answer = self.compute(&plan);
        Box::pin(async move {
            tokio::task::yield_now().await;
            answer
        })
    }

    async fn homes(&mut self) -> Result<Vec<HomeConfig>, Ended> {
        self.seen.homes.acquire().await.unwrap().forget();
        if *self.seen.is_over.lock().unwrap() {
            return Err(Ended { reason: "the coordinator ends".to_owned() });
        }
        Ok(config().homes)
    }
}

impl Fragile {
    fn compute(&mut self, plan: &StepPlan) -> Result<StepOutput, StepError> {
        let call = self.num_calls;
        self.num_calls += 1;
        for slice in &plan.slices {
            if matches!(&slice.tokens, SliceTokens::Known(tokens) if tokens[0] == POISON) {
                self.poisoned.insert(slice.sequence);
            }
            let masks = slice.sample.iter().map(|params| params.allowed.clone());
            self.seen.allowed.lock().unwrap().extend(masks);
        }
        if self.moved.contains(&call) {
            self.computed.clear();
            return Err(StepError::Moved { reason: "a rank joins".to_owned() });
        }
        let is_poisoned = plan.slices.iter().any(|slice| self.poisoned.contains(&slice.sequence));
        if is_poisoned || self.lost.contains(&call) {
            self.computed.clear();
            self.seen.losses.lock().unwrap().push(plan.slices.len());
            return Err(StepError::Lost { reason: "rank 1 died".to_owned() });
        }
        let mut samples = Vec::new();
        for slice in &plan.slices {
            let SliceTokens::Known(tokens) = &slice.tokens else { unreachable!("one step in flight") };
            let computed = self.computed.entry(slice.sequence).or_default();
            assert_eq!(slice.num_computed, *computed, "what was lost is computed again");
            *computed += tokens.len() as u32;
            let Some(params) = &slice.sample else { continue };
            let token = match &params.allowed {
                Some(mask) => (0..200).find(|&token| mask.contains(token)).unwrap(),
                None => tokens.last().unwrap() + 1,
            };
            samples.push(Sample { sequence: slice.sequence, token, logprob: None, top_logprobs: Vec::new() });
        }
        Ok(StepOutput { step: plan.step, samples })
    }
}

fn config() -> SchedulerConfig {
    SchedulerConfig {
        homes: vec![HomeConfig {
            rank: Rank(0),
            num_full_blocks: 640,
            num_sliding_blocks: 640,
            max_step_tokens: 64,
            max_step_slices: 16,
        }],
        block_size_tokens: 4,
        window_tokens: Some(8),
        max_context_tokens: 128,
        max_steps_in_flight: 1,
        max_waiting_requests: 20,
        max_waiting_tokens: 1000,
        max_waiting_ms: None,
        max_home_imbalance_sequences: 4,
        prefix_caching: false,
        prompt_token_cost: 1,
        output_token_cost: 2,
        eos_tokens: vec![99],
    }
}

fn request(prompt: &[TokenId], max_tokens: u32) -> Submission {
    Submission {
        request: Request::new(prompt.to_vec(), NonZeroU32::new(max_tokens).unwrap()),
        constraint: None,
    }
}

async fn collect(mut stream: TokenStream) -> (Vec<TokenId>, TokenEvent) {
    let mut tokens = Vec::new();
    loop {
        let event = tokio::time::timeout(Duration::from_secs(10), stream.next()).await.unwrap().unwrap();
        match event {
            TokenEvent::Token(sample) => tokens.push(sample.token),
            end @ (TokenEvent::Finished { .. } | TokenEvent::Failed { .. }) => return (tokens, end),
        }
    }
}

async fn reached(engine: &Engine, what: impl FnMut(&Arc<EngineStats>) -> bool) -> Arc<EngineStats> {
    let mut stats = engine.watch();
    tokio::time::timeout(Duration::from_secs(10), stats.wait_for(what)).await.unwrap().unwrap().clone()
}

#[tokio::test]
async fn streams_go_on_after_losses_with_the_tokens_they_would_have_had() {
    let mut executor = Fragile::new([0, 3, 4, 11]);
    executor.moved.insert(7);
    let engine = Engine::start(config(), executor).unwrap().0;
    let prompts: Vec<TokenId> = vec![100, 200, 300, 400];
    let mut streams = Vec::new();
    for prompt in &prompts {
        streams.push(engine.submit(request(&[*prompt; 9], 12)).await.unwrap());
    }
    for (prompt, stream) in prompts.iter().zip(streams) {
        let (tokens, end) = collect(stream).await;
        assert_eq!(tokens, (prompt + 1..=prompt + 12).collect::<Vec<_>>());
        let TokenEvent::Finished { reason, usage } = end else { panic!("{end:?}") };
        assert_eq!((reason, usage.output_tokens), (FinishReason::Length, 12));
    }
    let stats = reached(&engine, |stats| stats.scheduler.num_running == 0).await;
    assert_eq!((stats.num_lost_steps, stats.num_recoveries), (4, 5));
    assert!(!stats.is_reforming() && !stats.is_stopped);
}

/// Allows one token after the other, and remembers which it was asked for.
struct Rising(TokenId);

impl Constraint for Rising {
    fn allowed(&mut self) -> Result<Option<TokenMask>, ConstraintError> {
        let mut words = [0u32; 7];
        words[self.0 as usize / 32] |= 1 << (self.0 % 32);
        Ok(Some(TokenMask(words.as_slice().into())))
    }

    fn accept(&mut self, token: TokenId) -> Result<(), ConstraintError> {
        assert_eq!(token, self.0);
        self.0 += 1;
        Ok(())
    }
}

#[tokio::test]
async fn a_grammar_is_asked_again_for_the_token_that_was_lost() {
    let executor = Fragile::new([1, 2]);
    let seen = executor.seen.clone();
    let engine = Engine::start(config(), executor).unwrap().0;
    let constraint = Some(Box::new(Rising(10)) as Box<dyn Constraint>);
    let stream = engine.submit(Submission { constraint, ..request(&[1, 2, 3], 3) }).await.unwrap();
    assert_eq!(collect(stream).await.0, [10, 11, 12]);
    let allowed = seen.allowed.lock().unwrap().clone();
    let only = |mask: &Option<TokenMask>| (0..200).find(|&token| mask.as_ref().unwrap().contains(token));
    assert_eq!(
        allowed.iter().map(only).collect::<Vec<_>>(),
        [10, 11, 11, 11, 12].map(Some),
        "the void steps asked for the same token"
    );
}

#[tokio::test]
async fn while_ranks_are_missing_commands_are_taken_deadlines_pass_and_clients_may_leave() {
    let mut executor = Fragile::new([1]);
    executor.seen.homes = Arc::new(Semaphore::new(0));
    let seen = executor.seen.clone();
    let engine = Engine::start(config(), executor).unwrap().0;
    let running = engine.submit(request(&[1], 4)).await.unwrap();
    let stats = reached(&engine, |stats| stats.is_reforming()).await;
    assert_eq!(stats.reforming.as_ref().unwrap().reason, "rank 1 died");
    assert_eq!(stats.scheduler.homes[0].full.num_held, 0, "the pages are lost");

    let mut hasty = request(&[2], 4);
    hasty.request.deadline_ms = Some(1);
    let hasty = engine.submit(hasty).await.unwrap();
    let (_, end) = collect(hasty).await;
    assert!(matches!(end, TokenEvent::Finished { reason: FinishReason::Deadline, .. }), "{end:?}");
    let left = engine.submit(request(&[3], 4)).await.unwrap();
    let cancelled = engine.submit(request(&[4], 4)).await.unwrap();
    engine.cancel(cancelled.sequence()).await;
    let (_, end) = collect(cancelled).await;
    assert!(matches!(end, TokenEvent::Finished { reason: FinishReason::Cancelled, .. }), "{end:?}");
    drop(left);
    reached(&engine, |stats| stats.scheduler.num_waiting() == 1).await;

    let late = engine.submit(request(&[50], 2)).await.unwrap();
    seen.homes.add_permits(1);
    assert_eq!(collect(running).await.0, [2, 3, 4, 5]);
    assert_eq!(collect(late).await.0, [51, 52]);
    let stats = engine.stats();
    assert!(stats.last_pause > Duration::ZERO && stats.total_pause == stats.last_pause);
}

#[tokio::test]
async fn an_engine_without_ranks_can_be_stopped_and_ends_when_none_will_come() {
    for is_told in [true, false] {
        let mut executor = Fragile::new([0]);
        executor.seen.homes = Arc::new(Semaphore::new(0));
        let seen = executor.seen.clone();
        let engine = Engine::start(config(), executor).unwrap().0;
        let stream = engine.submit(request(&[1], 4)).await.unwrap();
        reached(&engine, |stats| stats.is_reforming()).await;
        if is_told {
            engine.stop().await;
        } else {
            *seen.is_over.lock().unwrap() = true;
            seen.homes.add_permits(1);
        }
        let (_, end) = collect(stream).await;
        let TokenEvent::Failed { reason } = end else { panic!("{end:?}") };
        assert!(reason.contains(if is_told { "stopped" } else { "the coordinator ends" }), "{reason}");
        reached(&engine, |stats| stats.is_stopped).await;
    }
}

#[tokio::test]
async fn an_engine_that_nobody_holds_does_not_wait_for_ranks() {
    let mut executor = Fragile::new([0]);
    executor.seen.homes = Arc::new(Semaphore::new(0));
    let (engine, running) = Engine::start(config(), executor).unwrap();
    let stream = engine.submit(request(&[1], 4)).await.unwrap();
    reached(&engine, |stats| stats.is_reforming()).await;
    drop((engine, stream));
    tokio::time::timeout(Duration::from_secs(10), running).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_sequence_that_kills_ranks_fails_and_the_others_finish() {
    let executor = Fragile::new([]);
    let seen = executor.seen.clone();
    let engine = Engine::start(config(), executor).unwrap().0;
    let mut streams = Vec::new();
    for index in 0..6 {
        let prompt = if index == 3 { [POISON, 7] } else { [index * 20, index * 20] };
        streams.push(engine.submit(request(&prompt, 8)).await.unwrap());
    }
    for (index, stream) in (0..6).zip(streams) {
        let (tokens, end) = collect(stream).await;
        if index == 3 {
            let TokenEvent::Failed { reason } = end else { panic!("{end:?}") };
            assert!(reason.contains("whenever they compute it: rank 1 died"), "{reason}");
        } else {
            assert_eq!(tokens, (index * 20 + 1..=index * 20 + 8).collect::<Vec<_>>());
            assert!(matches!(end, TokenEvent::Finished { .. }));
        }
    }
    assert!(seen.losses.lock().unwrap().len() <= 5, "{:?}", seen.losses);
}

#[tokio::test]
async fn several_killers_are_found_one_by_one() {
    let engine = Engine::start(config(), Fragile::new([])).unwrap().0;
    let mut streams = Vec::new();
    for index in 0..8 {
        let prompt = if index % 2 == 0 { [POISON, 7] } else { [index * 20, index * 20] };
        streams.push((index, engine.submit(request(&prompt, 8)).await.unwrap()));
    }
    for (index, stream) in streams {
        let (tokens, end) = collect(stream).await;
        assert_eq!(index % 2 == 0, matches!(end, TokenEvent::Failed { .. }), "{index}: {end:?}");
        assert_eq!(tokens.len(), if index % 2 == 0 { 0 } else { 8 });
    }
}
