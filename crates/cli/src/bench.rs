//! `chorale bench`: steps timed in this process, one JSON line a measurement.

use crate::args::{BenchArgs, Measurement, OfflineArgs};
use crate::device::DeviceKind;
use crate::engine::{self, Engine};
use crate::exit::UsageError;
use crate::output::Output;
use crate::setup::Setup;
use chorale_device::{DenseDtype, KvDtype};
use chorale_model::budget::{Budget, BudgetOptions, World};
use chorale_model::config::ModelConfig;
use chorale_model::offline::{OfflineLimits, OfflineSequence};
use chorale_plan::{SamplingParams, TokenId};
use serde::Serialize;
use std::time::Instant;

/// Runs the measurement.
pub(crate) fn run(args: &BenchArgs, setup: &Setup) -> anyhow::Result<()> {
    match &args.measurement {
        Measurement::Offline(args) => offline(args, setup),
    }
}

/// One line of output.
#[derive(Serialize)]
struct Line<'a> {
    measurement: &'static str,
    model: &'a str,
    device: &'static str,
    threads: usize,
    dense_dtype: &'static str,
    kv_cache_dtype: &'static str,
    batch: usize,
    prompt_tokens: usize,
    gen_tokens: usize,
    /// Which of the timed runs, from 1.
    run: u32,
    steps: usize,
    seconds: f64,
    tokens_per_s: f64,
    ms_per_step: f64,
    /// The least that a step reads, in expectation over uniform routing; for
    /// prefill every weight once a step.
    bytes_per_step: f64,
    gb_per_s: f64,
    peak_rss_bytes: Option<u64>,
}

/// Steps that took some time.
struct Timed {
    steps: usize,
    tokens: usize,
    seconds: f64,
}

fn offline(args: &OfflineArgs, setup: &Setup) -> anyhow::Result<()> {
    let checkpoint = Engine::open(setup)?;
    let config = checkpoint.config().clone();
    let load = Load::new(args, setup, &config)?;
    let mut engine = Engine::load(&checkpoint, load.limits, setup)?;
    for run in 0..args.warmup + args.repeat {
        let (prefill, decode) = load.run(&mut engine, &config)?;
        let Some(run) = (run + 1).checked_sub(args.warmup).filter(|&run| run > 0) else { continue };
        let line = |measurement, timed: &Timed, bytes_per_step: f64| {
            let bytes = bytes_per_step * timed.steps as f64;
            let line = Line {
                measurement,
                model: &setup.config.model,
                device: engine.device,
                threads: engine.num_threads,
                dense_dtype: load.dense_dtype.name(),
                kv_cache_dtype: engine.kv_dtype.name(),
                batch: load.batch,
                prompt_tokens: load.prompt_tokens,
                gen_tokens: load.gen_tokens,
                run,
                steps: timed.steps,
                seconds: timed.seconds,
                tokens_per_s: timed.tokens as f64 / timed.seconds,
                ms_per_step: timed.seconds * 1e3 / timed.steps as f64,
                bytes_per_step,
                gb_per_s: bytes / timed.seconds / 1e9,
                peak_rss_bytes: peak_rss_bytes(),
            };
            anyhow::Ok(Output::print(&format!("{}\n", serde_json::to_string(&line)?))?)
        };
        let kv_dtype = engine.kv_dtype;
        let rows = (load.prompt_tokens * load.batch) / prefill.steps.max(1);
        line("prefill", &prefill, load.bytes_per_step(&config, kv_dtype, rows, 0)?)?;
        if decode.steps > 0 {
            let context = load.prompt_tokens + load.gen_tokens / 2;
            line("decode", &decode, load.bytes_per_step(&config, kv_dtype, load.batch, context)?)?;
        }
    }
    Ok(())
}

/// What is computed.
struct Load {
    batch: usize,
    prompt_tokens: usize,
    gen_tokens: usize,
    limits: OfflineLimits,
    dense_dtype: DenseDtype,
}

impl Load {
    fn new(args: &OfflineArgs, setup: &Setup, config: &ModelConfig) -> anyhow::Result<Self> {
        let [batch, prompt_tokens, gen_tokens] =
            [args.batch, args.prompt_tokens, args.gen_tokens].map(|count| count as usize);
        let context = engine::max_model_len(setup, config)?;
        let max_tokens = prompt_tokens + gen_tokens;
        if max_tokens > context {
            return Err(UsageError(format!(
                "--prompt-tokens {prompt_tokens} and --gen-tokens {gen_tokens} exceed the context of {context}"
            ))
            .into());
        }
        let max_rows = setup.config.max_batch_tokens(DeviceKind::Cpu).max(batch);
        let max_slice_tokens = max_rows.min(prompt_tokens);
        let block_size = setup.config.kv_block_size;
        let limits =
            OfflineLimits { num_sequences: batch, max_tokens, max_slice_tokens, max_rows, block_size };
        let dense_dtype = setup.config.dense_dtype;
        Ok(Self { batch, prompt_tokens, gen_tokens, limits, dense_dtype })
    }

    /// Prompts that differ, and the first token of each; then the others, one a
    /// step for all sequences together.
    fn run(&self, engine: &mut Engine, config: &ModelConfig) -> anyhow::Result<(Timed, Timed)> {
        let prompts = (0..self.batch).map(|index| noise(index, self.prompt_tokens, config.vocab_size));
        let mut sequences: Vec<OfflineSequence> =
            prompts.enumerate().map(|(index, prompt)| engine.sequence(index, prompt)).collect();
        let mut prefill = self.time(engine, &mut sequences, 1)?;
        prefill.tokens = self.batch * self.prompt_tokens;
        let decode = self.time(engine, &mut sequences, self.gen_tokens)?;
        Ok((prefill, decode))
    }

    /// Steps until each sequence has `count` tokens of output.
    fn time(
        &self,
        engine: &mut Engine,
        sequences: &mut [OfflineSequence],
        count: usize,
    ) -> anyhow::Result<Timed> {
        let started = Instant::now();
        let greedy = SamplingParams::greedy();
        let mut timed = Timed { steps: 0, tokens: 0, seconds: 0.0 };
        while sequences.iter().any(|sequence| sequence.output().len() < count) {
            let mut budget = self.limits.max_rows;
            let mut slices = Vec::with_capacity(sequences.len());
            for sequence in sequences.iter_mut().filter(|sequence| sequence.output().len() < count) {
                if budget == 0 {
                    break;
                }
                let slice = sequence.take_slice(budget, &greedy);
                budget -= slice.tokens.len();
                slices.push(slice);
            }
            for sample in engine.step(slices)? {
                sequences[sample.sequence.0 as usize].push(sample.token);
                timed.tokens += 1;
            }
            timed.steps += 1;
        }
        timed.seconds = started.elapsed().as_secs_f64();
        Ok(timed)
    }

    fn bytes_per_step(
        &self,
        config: &ModelConfig,
        kv_dtype: KvDtype,
        rows: usize,
        context_tokens: usize,
    ) -> anyhow::Result<f64> {
        let options = BudgetOptions {
            world: World { tensor_parallel_size: 1, data_parallel_size: 1 },
            dense_dtype: self.dense_dtype,
            kv_dtype,
            kv_block_size: self.limits.block_size,
            max_model_len: None,
            max_batch_tokens: self.limits.max_rows,
            device_memory_bytes: None,
            memory_bandwidth_bytes_per_s: None,
            context_tokens,
        };
        Ok(Budget::step_floor(config, &options, rows)?.bytes_per_step)
    }
}

/// Tokens that are the same on each machine and differ between sequences
/// (Knuth's multiplicative hashing).
fn noise(sequence: usize, count: usize, vocab_size: usize) -> Vec<TokenId> {
    let mixed =
        |index: usize| ((sequence * count + index + 1) as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    (0..count).map(|index| (mixed(index) % vocab_size as u64) as TokenId).collect()
}

/// The most memory that this process held, where the kernel tells.
fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024)
}
