//! The engine loop over ranks that count: what clients get, and what becomes of
//! sequences whose clients leave, whose grammar fails, whose ranks die.

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

use chorale_coordinator::{
    Answer, Constraint, ConstraintError, Engine, Executor, FinishReason, HomeConfig, Rejected, Request,
    SchedulerConfig, StepError, Submission, SubmitError, TokenEvent, TokenStream,
};
use chorale_plan::{Rank, Sample, SequenceId, SliceTokens, StepOutput, StepPlan, TokenId, TokenMask};
use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Semaphore;

/// Ends a sequence.
const END: TokenId = 99;

/// Says the number after the last one; the first allowed one under a grammar.
#[derive(Clone)]
struct Counting {
    /// Steps that may run; none left holds the engine still.
    permits: Arc<Semaphore>,
    steps: Arc<AtomicU64>,
    dies_at: Option<u64>,
    /// What was said last, for steps that are planned before it is known.
    said: Arc<Mutex<HashMap<SequenceId, TokenId>>>,
}

impl Counting {
    fn free() -> Self {
        Self {
            permits: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)),
            steps: Arc::default(),
            dies_at: None,
            said: Arc::default(),
        }
    }

    fn held() -> Self {
        Self { permits: Arc::new(Semaphore::new(0)), ..Self::free() }
    }
}

impl Executor for Counting {
    fn step(&mut self, plan: Arc<StepPlan>) -> Answer {
        let this = self.clone();
        Box::pin(async move {
            this.permits.acquire().await.unwrap().forget();
            let step = this.steps.fetch_add(1, Ordering::Relaxed);
            if this.dies_at == Some(step) {
                return Err(StepError::Ended { reason: "rank 3 did not answer".to_owned() });
            }
            let sampled = plan.slices.iter().filter_map(|slice| {
                let params = slice.sample.as_ref()?;
                let mut said = this.said.lock().unwrap();
                let free = match &slice.tokens {
                    SliceTokens::Known(tokens) => tokens.last().unwrap() + 1,
                    SliceTokens::SampledBefore => said[&slice.sequence] + 1,
                };
                let token = match &params.allowed {
                    Some(mask) => (0..200).find(|&token| mask.contains(token)).unwrap(),
                    None => free,
                };
                said.insert(slice.sequence, token);
                Some(Sample { sequence: slice.sequence, token, logprob: None, top_logprobs: Vec::new() })
            });
            Ok(StepOutput { step: plan.step, samples: sampled.collect() })
        })
    }
}

fn config() -> SchedulerConfig {
    SchedulerConfig {
        homes: vec![HomeConfig {
            rank: Rank(0),
            num_full_blocks: 64,
            num_sliding_blocks: 64,
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
        prefix_caching: true,
        prompt_token_cost: 1,
        output_token_cost: 2,
        eos_tokens: vec![END],
    }
}

fn start(executor: Counting) -> Engine {
    start_ahead(executor, 1)
}

/// With so many steps in flight.
fn start_ahead(executor: Counting, max_steps_in_flight: u32) -> Engine {
    Engine::start(SchedulerConfig { max_steps_in_flight, ..config() }, executor).unwrap().0
}

fn request(prompt: &[TokenId], max_tokens: u32) -> Submission {
    Submission {
        request: Request::new(prompt.to_vec(), NonZeroU32::new(max_tokens).unwrap()),
        constraint: None,
    }
}

/// Every token, and how it ended.
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

#[tokio::test]
async fn tokens_come_in_order_until_the_length_or_the_end() {
    for ahead in [1, 2] {
        let engine = start_ahead(Counting::free(), ahead);
        let (tokens, end) = collect(engine.submit(request(&[5, 6], 4)).await.unwrap()).await;
        assert_eq!(tokens, [7, 8, 9, 10]);
        assert!(matches!(end, TokenEvent::Finished { reason: FinishReason::Length, .. }));
        let (tokens, end) = collect(engine.submit(request(&[96], 50)).await.unwrap()).await;
        assert_eq!(tokens, [97, 98, END]);
        let TokenEvent::Finished { reason, usage } = end else { panic!("{end:?}") };
        assert_eq!(reason, FinishReason::StopToken(END));
        assert_eq!((usage.prompt_tokens, usage.output_tokens), (1, 3));
    }
}

#[tokio::test]
async fn many_clients_share_steps_and_get_their_own_tokens() {
    for ahead in [1, 2] {
        let engine = start_ahead(Counting::free(), ahead);
        let clients = (0..40u32).map(|index| {
            let engine = engine.clone();
            tokio::spawn(async move {
                let submission = || request(&[index], 10);
                // The queue is shorter than the crowd: who is refused comes again.
                let stream = loop {
                    match engine.submit(submission()).await {
                        Ok(stream) => break stream,
                        Err(SubmitError::Rejected(Rejected::QueueFull { .. })) => {
                            tokio::task::yield_now().await
                        }
                        Err(error) => panic!("{error}"),
                    }
                };
                let (tokens, _) = collect(stream).await;
                let until_end = (index + 1..=END).take(10);
                assert_eq!(tokens, until_end.collect::<Vec<_>>());
            })
        });
        for client in clients.collect::<Vec<_>>() {
            client.await.unwrap();
        }
        let mut stats = engine.watch();
        let is_empty = |stats: &Arc<chorale_coordinator::EngineStats>| {
            stats.scheduler.num_running == 0
                && stats
                    .scheduler
                    .homes
                    .iter()
                    .all(|home| home.full.num_held == 0 && home.sliding.num_held == 0)
        };
        tokio::time::timeout(Duration::from_secs(10), stats.wait_for(is_empty)).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_pages_before_the_next_step() {
    let executor = Counting::held();
    let engine = start(executor.clone());
    let mut stream = engine.submit(request(&[1], 100)).await.unwrap();
    executor.permits.add_permits(3);
    for expected in 2..5 {
        let Some(TokenEvent::Token(sample)) = stream.next().await else { panic!() };
        assert_eq!(sample.token, expected);
    }
    drop(stream);
    // The step that is running may end; no other may begin.
    executor.permits.add_permits(1);
    let mut stats = engine.watch();
    let gone = stats.wait_for(|stats| stats.scheduler.num_running == 0);
    tokio::time::timeout(Duration::from_secs(10), gone).await.unwrap().unwrap();
    assert!(executor.steps.load(Ordering::Relaxed) <= 4);
}

#[tokio::test]
async fn cancelling_by_number_ends_the_stream() {
    for ahead in [1, 2] {
        let executor = Counting::held();
        let engine = start_ahead(executor.clone(), ahead);
        let stream = engine.submit(request(&[1], 100)).await.unwrap();
        engine.cancel(stream.sequence()).await;
        executor.permits.add_permits(2);
        let (_, end) = collect(stream).await;
        assert!(matches!(end, TokenEvent::Finished { reason: FinishReason::Cancelled, .. }), "{end:?}");
    }
}

#[tokio::test]
async fn what_cannot_be_answered_is_refused_at_once() {
    let engine = start(Counting::held());
    let error = engine.submit(request(&[], 1)).await.unwrap_err();
    assert_eq!(error, SubmitError::Rejected(Rejected::EmptyPrompt));
    let error = engine.submit(request(&[1; 128], 1)).await.unwrap_err();
    assert!(matches!(error, SubmitError::Rejected(Rejected::ContextExceeded { .. })), "{error}");
}

#[tokio::test]
async fn ranks_that_fail_end_every_stream_with_the_reason() {
    for ahead in [1, 2] {
        let engine = start_ahead(Counting { dies_at: Some(2), ..Counting::free() }, ahead);
        let streams = [engine.submit(request(&[1], 50)).await, engine.submit(request(&[2], 50)).await];
        for stream in streams.into_iter().flatten() {
            let (_, end) = collect(stream).await;
            let TokenEvent::Failed { reason } = end else { panic!("{end:?}") };
            assert!(reason.contains("rank 3 did not answer"), "{reason}");
        }
        let mut stats = engine.watch();
        let stopped = stats.wait_for(|stats| stats.is_stopped);
        tokio::time::timeout(Duration::from_secs(10), stopped).await.unwrap().unwrap();
        assert_eq!(engine.submit(request(&[1], 1)).await.unwrap_err(), SubmitError::Stopping);
    }
}

/// Says 10, 20, 30 and then only the end; fails where it is told to.
struct Tens {
    next: TokenId,
    fails_at: TokenId,
}

impl Constraint for Tens {
    fn allowed(&mut self) -> Result<Option<TokenMask>, ConstraintError> {
        if self.next == self.fails_at {
            return Err(ConstraintError { reason: "no token fits".to_owned() });
        }
        let mut words = [0u32; 7];
        let token = if self.next > 30 { END } else { self.next };
        words[token as usize / 32] |= 1 << (token % 32);
        Ok(Some(TokenMask(words.as_slice().into())))
    }

    fn accept(&mut self, token: TokenId) -> Result<(), ConstraintError> {
        assert!(token == self.next || token == END);
        self.next += 10;
        Ok(())
    }
}

#[tokio::test]
async fn a_grammar_is_asked_before_each_token_and_told_each() {
    for ahead in [1, 2] {
        let engine = start_ahead(Counting::free(), ahead);
        let constraint = Some(Box::new(Tens { next: 10, fails_at: 1000 }) as Box<dyn Constraint>);
        let stream = engine.submit(Submission { constraint, ..request(&[1, 2, 3], 50) }).await.unwrap();
        assert_eq!(collect(stream).await.0, [10, 20, 30, END]);

        let constraint = Some(Box::new(Tens { next: 10, fails_at: 20 }) as Box<dyn Constraint>);
        let stream = engine.submit(Submission { constraint, ..request(&[1, 2, 3], 50) }).await.unwrap();
        let free = engine.submit(request(&[50], 5)).await.unwrap();
        let (_, end) = collect(stream).await;
        assert!(matches!(end, TokenEvent::Failed { reason } if reason.contains("no token fits")));
        assert_eq!(collect(free).await.0, [51, 52, 53, 54, 55], "others go on");
    }
}
