//! What the HTTP door costs: CPU time for each request and for each streamed
//! token, above what the engine takes for the same load. Prints JSON lines.
//!
//!     cargo bench -p chorale-benches --bench serve [-- STREAMS]
//!
//! The model is a script, so the engine's part is that of its loop and its
//! streams. The clients are another process, so their part is not counted. Time
//! is the whole process's, the system's part included, from `/proc/self/stat`.
//!
//! A door has a fixed price and one for each token: two lengths of answers tell
//! them apart. Paced steps are what a model does, each token a write of its own;
//! without a pause there are several in a write, and what differs between the
//! two loads is also how many sequences share a step.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark prints, and stops when it cannot run"
)]

use chorale_api::generation::Generator;
use chorale_api::openai::{Limits, OpenAi, SystemDate};
use chorale_api::{EngineStatus, Keyring, LoadStatus, Served, Server, ServerConfig, Shared, SharedConfig};
use chorale_coordinator::{
    Answer, Engine, Executor, HomeConfig, Request, SchedulerConfig, Submission, TokenEvent,
};
use chorale_harmony::{Conversation, Message, RenderOptions, SystemContent, Tokenizer, VOCABULARY_SIZE};
use chorale_harmony::{render_for_completion, special};
use chorale_plan::{Rank, Sample, SequenceId, StepOutput, StepPlan, TokenId};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::num::NonZeroU32;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::watch;

const MODEL: &str = "script";
const MAX_MODEL_LEN: u32 = 2048;
/// As `chorale serve` has.
const ASYNC_THREADS: usize = 2;
const STREAMS: usize = 64;
/// What a step takes where steps are paced, and about what a small model needs.
const STEP_TIME: Duration = Duration::from_millis(4);
/// Between these two, only the number of tokens differs.
const SHORT: Answers = Answers { num_tokens: 1, num_each: 64 };
const LONG: Answers = Answers { num_tokens: 512, num_each: 2 };
/// The kernel counts time in hundredths of a second, whatever its own clock is.
const TICK: Duration = Duration::from_millis(10);
/// Starts this program as its own client.
const CLIENT: &str = "--client";

/// What each of the streams is given.
#[derive(Clone, Copy)]
struct Answers {
    /// Tokens of content in an answer.
    num_tokens: usize,
    /// Answers, one after the other.
    num_each: usize,
}

/// What a load took.
struct Cost {
    cpu: Duration,
    wall: Duration,
    num_steps: u64,
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [client, address, streams, num_tokens, num_each] = words.as_slice()
        && client == CLIENT
    {
        let answers =
            Answers { num_tokens: num_tokens.parse().unwrap(), num_each: num_each.parse().unwrap() };
        return run_clients(address.parse().unwrap(), streams.parse().unwrap(), answers);
    }
    let streams = words.iter().find_map(|word| word.parse().ok()).unwrap_or(STREAMS);
    for step_time in [STEP_TIME, Duration::ZERO] {
        measure(streams, step_time);
    }
}

fn measure(streams: usize, step_time: Duration) {
    let mut above = Vec::new();
    for answers in [SHORT, LONG] {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(ASYNC_THREADS)
            .enable_all()
            .build()
            .unwrap();
        let (engine, address) = runtime.block_on(serve(streams, step_time, answers.num_tokens));
        let cost_of = |load: &dyn Fn()| {
            // Once before: connections, caches and the prompt's pages.
            load();
            let (cpu, started, steps) = (cpu_time(), Instant::now(), engine.stats().num_steps);
            load();
            Cost {
                cpu: cpu_time() - cpu,
                wall: started.elapsed(),
                num_steps: engine.stats().num_steps - steps,
            }
        };
        let alone = cost_of(&|| runtime.block_on(submit_all(&engine, streams, answers)));
        let http = cost_of(&|| start_clients(address, streams, answers));
        let num_answers = streams * answers.num_each;
        for (load, cost) in [("engine", &alone), ("http", &http)] {
            println!(
                "{{\"bench\":\"serve\",\"load\":\"{load}\",\"step_ms\":{},\"streams\":{streams},\"answers\":{num_answers},\"tokens_each\":{},\"cpu_ms\":{},\"wall_ms\":{},\"steps\":{}}}",
                step_time.as_millis(),
                answers.num_tokens,
                cost.cpu.as_millis(),
                cost.wall.as_millis(),
                cost.num_steps,
            );
        }
        above.push((http.cpu.as_secs_f64() - alone.cpu.as_secs_f64()) * 1e6 / num_answers as f64);
    }
    let us_per_token = (above[1] - above[0]) / (LONG.num_tokens - SHORT.num_tokens) as f64;
    let us_per_request = above[0] - us_per_token * SHORT.num_tokens as f64;
    println!(
        "{{\"bench\":\"front_door\",\"step_ms\":{},\"streams\":{streams},\"us_per_request\":{us_per_request:.1},\"us_per_token\":{us_per_token:.2}}}",
        step_time.as_millis(),
    );
}

/// What this process has used so far, on all threads.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    // The name, which may hold anything, ends in the last parenthesis.
    let fields = stat.rsplit_once(')').unwrap().1;
    let ticks: u32 =
        fields.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u32>().unwrap()).sum();
    TICK * ticks
}

/// Says the opening of a final message, the same word so many times, and no more.
struct Script {
    step_time: Duration,
    answer: Vec<TokenId>,
    said: HashMap<SequenceId, usize>,
}

impl Executor for Script {
    fn step(&mut self, plan: Arc<StepPlan>) -> Answer {
        let step_time = self.step_time;
        let mut samples = Vec::with_capacity(plan.slices.len());
        for slice in plan.slices.iter().filter(|slice| slice.sample.is_some()) {
            let said = self.said.entry(slice.sequence).or_default();
            let token = self.answer[*said];
            *said += 1;
            if *said == self.answer.len() {
                self.said.remove(&slice.sequence);
            }
            samples.push(Sample { sequence: slice.sequence, token, logprob: None, top_logprobs: Vec::new() });
        }
        Box::pin(async move {
            if !step_time.is_zero() {
                tokio::time::sleep(step_time).await;
            }
            Ok(StepOutput { step: plan.step, samples })
        })
    }
}

async fn serve(streams: usize, step_time: Duration, num_tokens: usize) -> (Engine, SocketAddr) {
    let tokenizer = Tokenizer::shared();
    let mut answer = tokenizer.encode_with_specials("<|channel|>final<|message|>");
    answer.resize(answer.len() + num_tokens, tokenizer.encode_text(" tick")[0]);
    answer.push(special::RETURN);
    let script = Script { step_time, answer, said: HashMap::new() };
    let engine = Engine::start(scheduler(streams), script).unwrap().0;

    let (status, follow) = watch::channel(EngineStatus::Loading(LoadStatus::new(1)));
    let shared = SharedConfig {
        served_model_names: vec![MODEL.to_owned()],
        max_model_len: MAX_MODEL_LEN,
        keyring: Keyring::new(Vec::new()).unwrap(),
        max_active_requests: 2 * streams,
        cluster: None,
    };
    let shared = Shared::new(shared, follow);
    let server = Server::bind(door(streams), shared.clone()).await.unwrap();
    let address = server.address();
    let generator = Generator::new(engine.clone(), MAX_MODEL_LEN, Arc::new(shared.metrics().clone()));
    let limits = Limits {
        models: vec![MODEL.to_owned()],
        vocabulary_size: VOCABULARY_SIZE,
        max_choices: 1,
        max_tools: 1,
        system_date: SystemDate::Omitted,
    };
    status.send_replace(EngineStatus::Ready(Arc::new(Served {
        engine: engine.clone(),
        openai: OpenAi::new(generator, limits, Duration::from_secs(15)),
        vocab_size: VOCABULARY_SIZE,
        max_model_len: MAX_MODEL_LEN,
        block_size_tokens: 16,
        prefix_caching: true,
        since: SystemTime::now(),
        experts: None,
    })));
    tokio::spawn(async move {
        let _status = status;
        server.run().await
    });
    (engine, address)
}

fn door(streams: usize) -> ServerConfig {
    let long = Duration::from_secs(60);
    ServerConfig {
        host: Ipv4Addr::LOCALHOST.into(),
        port: 0,
        max_body_bytes: 1 << 20,
        max_header_bytes: 1 << 16,
        header_timeout: long,
        body_timeout: long,
        idle_timeout: long,
        stalled_reader_timeout: long,
        max_connections: 2 * streams,
        max_streams_per_connection: 64,
        cors_origins: Vec::new(),
        tls: None,
        metrics_need_key: false,
        drain_timeout: Duration::ZERO,
    }
}

fn scheduler(streams: usize) -> SchedulerConfig {
    let num_blocks = streams as u32 * MAX_MODEL_LEN / 16;
    SchedulerConfig {
        homes: vec![HomeConfig {
            rank: Rank(0),
            num_full_blocks: num_blocks,
            num_sliding_blocks: num_blocks,
            max_step_tokens: 8192,
            max_step_slices: streams as u32,
        }],
        block_size_tokens: 16,
        window_tokens: Some(128),
        max_context_tokens: MAX_MODEL_LEN,
        max_steps_in_flight: 1,
        max_waiting_requests: streams as u32,
        max_waiting_tokens: 1 << 20,
        max_waiting_ms: None,
        max_home_imbalance_sequences: 8,
        prefix_caching: true,
        prompt_token_cost: 1,
        output_token_cost: 2,
        eos_tokens: special::STOP.to_vec(),
    }
}

/// The load without a door: the same prompt, handed to the engine.
async fn submit_all(engine: &Engine, streams: usize, answers: Answers) {
    let conversation = Conversation::new([Message::system(SystemContent::default()), Message::user("Hi")]);
    let prompt = render_for_completion(&conversation, &RenderOptions::default()).unwrap();
    let clients = (0..streams).map(|_| {
        let (engine, prompt) = (engine.clone(), prompt.clone());
        tokio::spawn(async move {
            for _ in 0..answers.num_each {
                let request = Request::new(prompt.clone(), NonZeroU32::new(1024).unwrap());
                let submission = Submission { request, constraint: None };
                let mut stream = engine.submit(submission).await.unwrap();
                let mut num_tokens = 0;
                while let Some(event) = stream.next().await {
                    num_tokens += usize::from(matches!(event, TokenEvent::Token(_)));
                }
                // The opening and the end are tokens, too.
                assert_eq!(num_tokens, answers.num_tokens + 4);
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
}

/// The load through the door, from another process.
fn start_clients(address: SocketAddr, streams: usize, answers: Answers) {
    let numbers = [streams, answers.num_tokens, answers.num_each].map(|number| number.to_string());
    let program = std::env::current_exe().unwrap();
    let status = Command::new(program).arg(CLIENT).arg(address.to_string()).args(numbers).status().unwrap();
    assert!(status.success());
}

/// The other process.
fn run_clients(address: SocketAddr, streams: usize, answers: Answers) {
    let clients: Vec<_> =
        (0..streams).map(|_| std::thread::spawn(move || run_client(address, answers))).collect();
    for client in clients {
        client.join().unwrap();
    }
}

/// One stream after the other, on one connection.
fn run_client(address: SocketAddr, answers: Answers) {
    let body = format!(
        "{{\"model\":\"{MODEL}\",\"stream\":true,\"temperature\":0,\"messages\":[{{\"role\":\"user\",\"content\":\"Hi\"}}]}}"
    );
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut connection = TcpStream::connect(address).unwrap();
    connection.set_nodelay(true).unwrap();
    let mut piece = vec![0; 1 << 16];
    for _ in 0..answers.num_each {
        connection.write_all(request.as_bytes()).unwrap();
        let mut response = Vec::new();
        while !response.ends_with(b"data: [DONE]\n\n\r\n0\r\n\r\n") {
            let len = connection.read(&mut piece).unwrap();
            assert!(len > 0, "{}", String::from_utf8_lossy(&response));
            response.extend_from_slice(&piece[..len]);
        }
        let ticks = response.windows(5).filter(|window| window == b" tick").count();
        assert_eq!(ticks, answers.num_tokens);
    }
}
