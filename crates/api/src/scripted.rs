//! An engine whose model reads from scripts, for the tests of both doors. The
//! scheduler and the loop are the real ones.

use crate::openai::{Limits, SystemDate};
use chorale_coordinator::{Answer, Engine, EngineStats, Executor, HomeConfig, SchedulerConfig};
use chorale_harmony::{TokenId, Tokenizer, VOCABULARY_SIZE, special};
use chorale_plan::{Rank, Sample, SequenceId, StepOutput, StepPlan, TokenLogprob};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

pub(crate) const CONTEXT: u32 = 2048;

/// Longer than anything in a test takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Samples what the scripts say: the first sequence the first, and so on in
/// turn. After a script's end comes `<|return|>`.
struct Scripted {
    scripts: Vec<Vec<TokenId>>,
    /// Which script, and how much of it was said.
    sequences: BTreeMap<SequenceId, (usize, usize)>,
    step_time: Duration,
}

impl Executor for Scripted {
    fn step(&mut self, plan: Arc<StepPlan>) -> Answer {
        let step_time = self.step_time;
        let mut samples = Vec::new();
        for slice in &plan.slices {
            let Some(params) = &slice.sample else { continue };
            let next = self.sequences.len();
            let (script, said) = self.sequences.entry(slice.sequence).or_insert((next, 0));
            let script = &self.scripts[*script % self.scripts.len()];
            let token = script.get(*said).copied().unwrap_or(special::RETURN);
            *said += 1;
            let likely = |rank: u32| TokenLogprob { token: 64 + rank, logprob: -0.5 - rank as f32 };
            samples.push(Sample {
                sequence: slice.sequence,
                token,
                logprob: params.num_logprobs.map(|_| -0.25 * *said as f32),
                top_logprobs: (0..params.num_logprobs.unwrap_or(0)).map(likely).collect(),
            });
        }
        Box::pin(async move {
            tokio::time::sleep(step_time).await;
            Ok(StepOutput { step: plan.step, samples })
        })
    }
}

/// Starts an engine that says what `scripts` say, a token every `step_time`.
pub(crate) fn start(scripts: Vec<Vec<TokenId>>, step_time: Duration, max_waiting_requests: u32) -> Engine {
    let config = SchedulerConfig {
        homes: vec![HomeConfig {
            rank: Rank(0),
            num_full_blocks: 4096,
            num_sliding_blocks: 4096,
            max_step_tokens: 4096,
            max_step_slices: 64,
        }],
        block_size_tokens: 16,
        window_tokens: Some(128),
        max_context_tokens: CONTEXT,
        max_steps_in_flight: 1,
        max_waiting_requests,
        max_waiting_tokens: 1 << 20,
        max_waiting_ms: None,
        max_home_imbalance_sequences: 8,
        prefix_caching: true,
        prompt_token_cost: 1,
        output_token_cost: 1,
        eos_tokens: special::STOP.to_vec(),
    };
    let executor = Scripted { scripts, sequences: BTreeMap::new(), step_time };
    let (engine, _task) = Engine::start(config, executor).unwrap();
    engine
}

/// Waits until no sequence is left in the engine.
pub(crate) async fn idle(engine: &Engine) {
    let mut stats = engine.watch();
    let is_idle = |stats: &Arc<EngineStats>| {
        stats.num_steps > 0 && stats.scheduler.num_running == 0 && stats.scheduler.num_waiting() == 0
    };
    let wait = stats.wait_for(is_idle);
    tokio::time::timeout(PATIENCE, wait).await.expect("sequences are left").unwrap();
}

pub(crate) fn limits() -> Limits {
    Limits {
        models: vec!["gpt-oss".into(), "alias".into()],
        vocabulary_size: VOCABULARY_SIZE,
        max_choices: 16,
        max_tools: 64,
        system_date: SystemDate::Omitted,
    }
}

pub(crate) fn tokens(script: &str) -> Vec<TokenId> {
    Tokenizer::shared().encode_with_specials(script)
}
