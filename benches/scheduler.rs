//! What a step costs the scheduler: 256 sequences run, 10,000 requests wait.
//!
//! A step is `expire`, `schedule` and `commit`, a new request for each that
//! ended, and the drop of the plan. The target for prompts of 1k is 100 µs. What
//! is above it is what the contract carries: block tables grow with the context,
//! and penalties take their history along.

use std::collections::VecDeque;
use std::hint::black_box;
use std::num::NonZeroU32;

use chorale_plan::{Penalties, Rank, Sample, SamplingParams, StepOutput, StepPlan};
use chorale_scheduler::{Config, HomeConfig, Progress, Request, Scheduler, Share};
use criterion::{Criterion, criterion_group, criterion_main};

const NUM_RUNNING: u32 = 256;
const NUM_WAITING: u32 = 10_000;

/// What the requests are like.
#[derive(Clone)]
struct Load {
    prompt_tokens: u32,
    max_tokens: u32,
    num_keys: u64,
    num_homes: u32,
    max_steps_in_flight: u32,
    has_penalties: bool,
}

const CHAT: Load = Load {
    prompt_tokens: 1024,
    max_tokens: 512,
    num_keys: 16,
    num_homes: 1,
    max_steps_in_flight: 1,
    has_penalties: false,
};

struct Bench {
    scheduler: Scheduler,
    load: Load,
    num_submitted: u32,
    now_ms: u64,
    in_flight: VecDeque<(StepPlan, StepOutput)>,
}

fn config(load: &Load) -> Config {
    let pages = (load.prompt_tokens + load.max_tokens).div_ceil(16) + 1;
    let home = |rank| HomeConfig {
        rank: Rank(rank),
        num_full_blocks: pages * (NUM_RUNNING / load.num_homes + 16),
        num_sliding_blocks: 16 * NUM_RUNNING + 1024,
        max_step_tokens: 8192,
        max_step_slices: NUM_RUNNING / load.num_homes,
    };
    Config {
        homes: (0..load.num_homes).map(home).collect(),
        block_size_tokens: 16,
        window_tokens: Some(128),
        max_context_tokens: 131_072,
        max_steps_in_flight: load.max_steps_in_flight,
        max_waiting_requests: 2 * NUM_WAITING,
        max_waiting_tokens: u64::MAX,
        max_waiting_ms: Some(u64::MAX),
        max_home_imbalance_sequences: 8,
        prefix_caching: true,
        prompt_token_cost: 1,
        output_token_cost: 2,
        eos_tokens: vec![200_002, 200_012],
    }
}

impl Bench {
    /// A scheduler in the middle of its work, with sequences of all ages.
    fn new(load: Load) -> Self {
        let scheduler = Scheduler::new(config(&load)).expect("the configuration is valid");
        let in_flight = VecDeque::new();
        let mut bench = Self { scheduler, load, num_submitted: 0, now_ms: 0, in_flight };
        let max_tokens = bench.load.max_tokens;
        for age in 0..NUM_RUNNING {
            bench.load.max_tokens = 1 + max_tokens * (age + 1) / NUM_RUNNING;
            bench.submit();
        }
        bench.load.max_tokens = max_tokens;
        (0..NUM_WAITING).for_each(|_| bench.submit());
        (0..2 * max_tokens).for_each(|_| bench.step());
        bench
    }

    fn submit(&mut self) {
        let prompt_tokens = self.load.prompt_tokens;
        let own = self.num_submitted;
        self.num_submitted += 1;
        // A third of the prompt is the same for all.
        let token = |position: u32| if position < prompt_tokens / 3 { position } else { own ^ position };
        let prompt = (0..prompt_tokens).map(token).collect();
        let max_tokens = NonZeroU32::new(self.load.max_tokens).expect("an output has tokens");
        let mut request = Request::new(prompt, max_tokens);
        request.share = Share { key: u64::from(own) % self.load.num_keys, weight: NonZeroU32::MIN };
        request.deadline_ms = Some(1_000_000_000);
        let penalties = Penalties { repetition: 1.1, presence: 0.0, frequency: 0.0, history: Vec::new() };
        let penalties = self.load.has_penalties.then_some(penalties);
        request.sampling = SamplingParams { penalties, temperature: 1.0, ..SamplingParams::greedy() };
        self.scheduler.submit(request, self.now_ms).expect("the queue is long enough");
    }

    /// One step, and a new request for each that ended in it.
    fn step(&mut self) {
        self.now_ms += 1;
        black_box(self.scheduler.expire(self.now_ms));
        while self.in_flight.len() < self.load.max_steps_in_flight as usize {
            let Some(plan) = self.scheduler.schedule(self.now_ms) else { break };
            let sampled = plan.slices.iter().filter(|slice| slice.sample.is_some());
            let token = 1000 + self.now_ms as u32 % 1000;
            let sample = |sequence| Sample { sequence, token, logprob: None, top_logprobs: Vec::new() };
            let samples = sampled.map(|slice| sample(slice.sequence)).collect();
            let output = StepOutput { step: plan.step, samples };
            self.in_flight.push_back((plan, output));
        }
        let Some((plan, output)) = self.in_flight.pop_front() else { return };
        let progress = self.scheduler.commit(&plan, &output);
        let ended = progress.iter().filter(|progress| matches!(progress, Progress::Finished { .. }));
        for _ in 0..ended.count() {
            self.submit();
        }
    }
}

fn steps(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("a step of 256 with 10000 waiting");
    let loads = [
        ("prompts of 1k, outputs of 512", CHAT),
        ("two steps in flight", Load { max_steps_in_flight: 2, ..CHAT }),
        ("eight homes", Load { num_homes: 8, ..CHAT }),
        ("a key for each request", Load { num_keys: 20_000, ..CHAT }),
        ("prompts of 8k", Load { prompt_tokens: 8192, ..CHAT }),
        ("with penalties", Load { has_penalties: true, ..CHAT }),
    ];
    for (name, load) in loads {
        let mut bench = Bench::new(load);
        let stats = bench.scheduler.stats();
        assert!(stats.num_running > NUM_RUNNING - 8 && stats.num_waiting() > NUM_WAITING - 8, "{stats:?}");
        group.bench_function(name, |bencher| bencher.iter(|| bench.step()));
    }
}

criterion_group!(benches, steps);
criterion_main!(benches);
