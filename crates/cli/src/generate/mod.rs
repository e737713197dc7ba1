//! `chorale generate`: one answer to one prompt, streamed as it comes.

mod answer;
mod display;
mod prompt;
mod report;

use crate::args::GenerateArgs;
use crate::device::DeviceKind;
use crate::engine::{self, Engine};
use crate::exit::UsageError;
use crate::setup::Setup;
use answer::Answer;
use chorale_model::config::ModelConfig;
use chorale_model::offline::OfflineLimits;
use chorale_plan::{Penalties, SamplingParams, TokenId};
use display::Display;
use report::Timings;
use std::hash::{BuildHasher, RandomState};

/// Room for an answer when `--max-tokens` does not say: keys and values take
/// memory only as they are written, but the space must be there.
const MAX_TOKENS_DEFAULT: usize = 32_768;

/// Runs the command.
pub(crate) fn run(args: &GenerateArgs, setup: &Setup) -> anyhow::Result<()> {
    let text = prompt::read(args)?;
    let checkpoint = Engine::open(setup)?;
    let config = checkpoint.config().clone();
    let prompt = prompt::tokens(&text, args, setup, &config)?;
    let sampling = sampling(args, setup, &config)?;
    let max_tokens = max_tokens(prompt.len(), setup, &config)?;
    let max_slice_tokens = setup.config.max_batch_tokens(DeviceKind::Cpu).min(prompt.len());
    let limits = OfflineLimits {
        num_sequences: 1,
        max_tokens: prompt.len() + max_tokens,
        max_slice_tokens,
        max_rows: max_slice_tokens,
        block_size: setup.config.kv_block_size,
    };
    let engine = Engine::load(&checkpoint, limits, setup)?;
    let stops = if args.ignore_eos { Vec::new() } else { prompt::stops(args, &config) };
    let run = Run { engine, sampling, stops, max_tokens };
    if args.json {
        let mut answer = Answer::new(args.raw);
        let timings = run.generate(prompt, |sample, last| {
            answer.push(sample, last);
            Ok(())
        })?;
        return report::print_json(&setup.config.model, &answer, &timings);
    }
    let mut display = Display::new(args.raw, setup)?;
    let timings = run.generate(prompt, |sample, _| display.push(sample.token))?;
    display.finish()?;
    report::print_summary(&timings, setup);
    Ok(())
}

/// One sequence and how it goes on.
struct Run {
    engine: Engine,
    sampling: SamplingParams,
    stops: Vec<TokenId>,
    max_tokens: usize,
}

impl Run {
    /// Generates until a stop token or the limit. Each token goes to `on_token`
    /// with why it was the last, if it was.
    fn generate(
        mut self,
        prompt: Vec<TokenId>,
        mut on_token: impl FnMut(&chorale_plan::Sample, Option<FinishReason>) -> anyhow::Result<()>,
    ) -> anyhow::Result<Timings> {
        let mut timings = Timings::start(prompt.len());
        let mut sequence = self.engine.sequence(0, prompt);
        loop {
            let slice = sequence.take_slice(self.engine.limits.max_slice_tokens, &self.sampling);
            for sample in self.engine.step(vec![slice])? {
                timings.count_token();
                sequence.push(sample.token);
                let finish = if self.stops.contains(&sample.token) {
                    Some(FinishReason::Stop)
                } else {
                    (sequence.output().len() == self.max_tokens).then_some(FinishReason::Length)
                };
                on_token(&sample, finish)?;
                if finish.is_some() {
                    return Ok(timings);
                }
            }
        }
    }
}

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
enum FinishReason {
    /// The model said so.
    Stop,
    /// There was no room for more.
    Length,
}

fn max_tokens(num_prompt_tokens: usize, setup: &Setup, config: &ModelConfig) -> anyhow::Result<usize> {
    let context = engine::max_model_len(setup, config)?;
    let room = context.saturating_sub(num_prompt_tokens);
    if room == 0 {
        return Err(UsageError(format!(
            "the prompt has {num_prompt_tokens} tokens, and the context of {context} leaves no room for an \
             answer; shorten the prompt or raise --max-model-len (the model's own limit is {})",
            config.max_position_embeddings
        ))
        .into());
    }
    match setup.config.max_tokens {
        None => Ok(room.min(MAX_TOKENS_DEFAULT)),
        Some(wanted) if wanted as usize <= room => Ok(wanted as usize),
        Some(wanted) => Err(UsageError(format!(
            "--max-tokens is {wanted}: with {num_prompt_tokens} tokens of prompt the context of {context} has \
             room for {room}"
        ))
        .into()),
    }
}

fn sampling(args: &GenerateArgs, setup: &Setup, config: &ModelConfig) -> anyhow::Result<SamplingParams> {
    for bias in &args.logit_bias {
        if bias.token as usize >= config.vocab_size {
            return Err(UsageError(format!(
                "--logit-bias names token {}, which is not in the model's vocabulary of {}; ids must be below it",
                bias.token, config.vocab_size
            ))
            .into());
        }
    }
    let settings = &setup.config;
    let penalties = Penalties {
        repetition: settings.repetition_penalty,
        presence: settings.presence_penalty,
        frequency: settings.frequency_penalty,
        history: Vec::new(),
    };
    let is_neutral = (penalties.repetition, penalties.presence, penalties.frequency) == (1.0, 0.0, 0.0);
    Ok(SamplingParams {
        temperature: settings.temperature,
        top_k: settings.top_k,
        top_p: settings.top_p,
        min_p: settings.min_p,
        penalties: (!is_neutral).then_some(penalties),
        allowed: None,
        logit_bias: args.logit_bias.iter().map(|bias| (bias.token, bias.bias)).collect(),
        // The hasher's keys are drawn anew for each process.
        seed: args.seed.unwrap_or_else(|| RandomState::new().hash_one(std::process::id())),
        num_logprobs: args.logprobs,
    })
}
