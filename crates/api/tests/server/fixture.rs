//! The server under test, and the engine behind it. The engine answers every
//! prompt with ticks, and computes only as many steps as it is allowed.

use crate::client::A_WHILE;
use chorale_api::generation::Generator;
use chorale_api::openai::{Limits, OpenAi, SystemDate};
use chorale_api::{
    Drained, EngineStatus, KeySettings, Keyring, LoadStatus, Served, Server, ServerConfig, Shared,
    SharedConfig,
};
use chorale_coordinator::{Answer, Engine, Executor, HomeConfig, SchedulerConfig, StepError};
use chorale_harmony::{Tokenizer, special};
use chorale_plan::{Rank, Sample, SequenceId, StepOutput, StepPlan, TokenId};
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

pub(crate) const MODEL: &str = "openai/gpt-oss-20b";
pub(crate) const MAX_MODEL_LEN: u32 = 4096;

/// Says an opening, then ticks for ever.
struct Clock {
    steps: Arc<Semaphore>,
    said: HashMap<SequenceId, usize>,
    opening: Vec<TokenId>,
    tick: TokenId,
}

impl Executor for Clock {
    fn step(&mut self, plan: Arc<StepPlan>) -> Answer {
        let steps = Arc::clone(&self.steps);
        let mut samples = Vec::new();
        for slice in plan.slices.iter().filter(|slice| slice.sample.is_some()) {
            let said = self.said.entry(slice.sequence).or_default();
            let token = self.opening.get(*said).copied().unwrap_or(self.tick);
            *said += 1;
            samples.push(Sample { sequence: slice.sequence, token, logprob: None, top_logprobs: Vec::new() });
        }
        Box::pin(async move {
            let Ok(step) = steps.acquire().await else {
                return Err(StepError::Ended { reason: "the clock has stopped".to_owned() });
            };
            step.forget();
            Ok(StepOutput { step: plan.step, samples })
        })
    }
}

/// What differs between tests.
pub(crate) struct Setup {
    pub(crate) config: ServerConfig,
    pub(crate) keys: Vec<KeySettings>,
    pub(crate) max_active_requests: usize,
    pub(crate) max_waiting_requests: u32,
    /// Steps that are allowed from the start.
    pub(crate) steps: usize,
}

impl Default for Setup {
    fn default() -> Self {
        let config = ServerConfig {
            host: Ipv4Addr::LOCALHOST.into(),
            port: 0,
            max_body_bytes: 64 * 1024,
            max_header_bytes: 16 * 1024,
            header_timeout: Duration::from_secs(5),
            body_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(5),
            stalled_reader_timeout: Duration::from_secs(5),
            max_connections: 64,
            max_streams_per_connection: 64,
            cors_origins: Vec::new(),
            tls: None,
            metrics_need_key: false,
            drain_timeout: Duration::from_secs(5),
        };
        Self {
            config,
            keys: Vec::new(),
            max_active_requests: 64,
            max_waiting_requests: 64,
            steps: Semaphore::MAX_PERMITS / 2,
        }
    }
}

/// A server that runs.
pub(crate) struct Harness {
    pub(crate) address: SocketAddr,
    pub(crate) shared: Shared,
    pub(crate) status: watch::Sender<EngineStatus>,
    pub(crate) engine: Engine,
    steps: Arc<Semaphore>,
    server: JoinHandle<Drained>,
}

impl Setup {
    /// A server whose model is loaded.
    pub(crate) async fn start(self) -> Harness {
        let harness = self.start_loading().await;
        harness.become_ready();
        harness
    }

    /// A server whose model is not loaded yet.
    pub(crate) async fn start_loading(self) -> Harness {
        let steps = Arc::new(Semaphore::new(self.steps));
        let tokenizer = Tokenizer::shared();
        let clock = Clock {
            steps: steps.clone(),
            said: HashMap::new(),
            opening: tokenizer.encode_with_specials("<|channel|>final<|message|>"),
            tick: tokenizer.encode_text(" tick")[0],
        };
        let engine = Engine::start(scheduler(self.max_waiting_requests), clock).unwrap().0;
        let (status, follow) = watch::channel(EngineStatus::Loading(LoadStatus::new(1)));
        let shared = SharedConfig {
            served_model_names: vec![MODEL.to_owned(), "clock".to_owned()],
            max_model_len: MAX_MODEL_LEN,
            keyring: Keyring::new(self.keys).unwrap(),
            max_active_requests: self.max_active_requests,
            cluster: None,
        };
        let shared = Shared::new(shared, follow);
        let server = Server::bind(self.config, shared.clone()).await.unwrap();
        let address = server.address();
        Harness { address, shared, status, engine, steps, server: tokio::spawn(server.run()) }
    }
}

impl Harness {
    pub(crate) fn become_ready(&self) {
        let observer = Arc::new(self.shared.metrics().clone());
        let generator = Generator::new(self.engine.clone(), MAX_MODEL_LEN, observer);
        let limits = Limits {
            models: self.shared.served_model_names().to_vec(),
            vocabulary_size: chorale_harmony::VOCABULARY_SIZE,
            max_choices: 8,
            max_tools: 8,
            system_date: SystemDate::Omitted,
        };
        self.status.send_replace(EngineStatus::Ready(Arc::new(Served {
            engine: self.engine.clone(),
            openai: OpenAi::new(generator, limits, Duration::from_secs(15)),
            vocab_size: chorale_harmony::VOCABULARY_SIZE,
            max_model_len: MAX_MODEL_LEN,
            block_size_tokens: 16,
            prefix_caching: true,
            since: SystemTime::now(),
            experts: None,
        })));
    }

    /// Lets the engine compute this many steps more.
    pub(crate) fn allow_steps(&self, count: usize) {
        self.steps.add_permits(count);
    }

    /// Waits for something to be so.
    pub(crate) async fn eventually(&self, what: &str, mut is_so: impl FnMut(&Self) -> bool) {
        let started = tokio::time::Instant::now();
        while !is_so(self) {
            assert!(started.elapsed() < A_WHILE, "not so: {what}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Waits until the server has ended.
    pub(crate) async fn ended(self) -> Drained {
        tokio::time::timeout(A_WHILE, self.server).await.expect("the server does not end").unwrap()
    }
}

fn scheduler(max_waiting_requests: u32) -> SchedulerConfig {
    SchedulerConfig {
        homes: vec![HomeConfig {
            rank: Rank(0),
            num_full_blocks: 4096,
            num_sliding_blocks: 4096,
            max_step_tokens: 1024,
            max_step_slices: 32,
        }],
        block_size_tokens: 16,
        window_tokens: Some(128),
        max_context_tokens: MAX_MODEL_LEN,
        max_steps_in_flight: 1,
        max_waiting_requests,
        max_waiting_tokens: 1 << 20,
        max_waiting_ms: None,
        max_home_imbalance_sequences: 4,
        prefix_caching: true,
        prompt_token_cost: 1,
        output_token_cost: 2,
        eos_tokens: special::STOP.to_vec(),
    }
}
