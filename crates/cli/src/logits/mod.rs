//! `chorale logits`: what a model computes for given tokens, for comparing
//! engines. Positions are those of the prompt; nothing is sampled but by
//! `--generate`.

mod file;
mod prompts;

use crate::args::LogitsArgs;
use crate::device::DeviceKind;
use crate::engine::{self, Engine};
use crate::setup::Setup;
use chorale_model::offline::{OfflineLimits, OfflineSequence};
use chorale_plan::{SamplingParams, TokenId};
use file::{Entry, LogitsFile};
use prompts::Prompts;

/// Tokens of a slice if `--slice` does not say.
const SLICE_TOKENS_DEFAULT: usize = 512;

/// Runs the command.
pub(crate) fn run(args: &LogitsArgs, setup: &Setup) -> anyhow::Result<()> {
    let prompts = Prompts::read(&args.tokens)?;
    let target = file::check_target(&args.out)?;
    let checkpoint = Engine::open(setup)?;
    let config = checkpoint.config().clone();
    let num_generated = args.generate.unwrap_or(0) as usize;
    let context = engine::max_model_len(setup, &config)?;
    let longest = prompts.check(&args.tokens, num_generated, context, &config)?;
    let slice_default = SLICE_TOKENS_DEFAULT.min(setup.config.max_batch_tokens(DeviceKind::Cpu));
    let max_slice_tokens = args.slice.map_or(slice_default, |slice| slice as usize).min(longest);
    let limits = OfflineLimits {
        num_sequences: 1,
        max_tokens: longest + num_generated,
        max_slice_tokens,
        max_rows: max_slice_tokens,
        block_size: setup.config.kv_block_size,
    };
    let mut engine = Engine::load(&checkpoint, limits, setup)?;

    let last = |prompt: &[TokenId]| args.last.map_or(prompt.len(), |last| (last as usize).min(prompt.len()));
    let entry = |(name, prompt): (&String, &Vec<TokenId>)| Entry {
        name: name.clone(),
        first_position: prompt.len() - last(prompt),
        num_positions: last(prompt),
        num_generated,
    };
    let entries: Vec<Entry> = prompts.0.iter().map(entry).collect();
    let mut file = LogitsFile::create(target, &entries, config.vocab_size)?;
    for (prompt, entry) in prompts.0.into_values().zip(&entries) {
        compute(&mut engine, prompt, entry, &mut file)?;
    }
    file.finish()
}

fn compute(
    engine: &mut Engine,
    prompt: Vec<TokenId>,
    entry: &Entry,
    file: &mut LogitsFile,
) -> anyhow::Result<()> {
    let greedy = SamplingParams::greedy();
    let mut sequence = engine.sequence(0, prompt);
    let mut next = 0;
    while sequence.num_pending() > 0 {
        let slice = sequence.take_slice(engine.limits.max_slice_tokens, &greedy);
        let wanted = entry.num_positions.saturating_sub(sequence.num_pending()).min(slice.tokens.len());
        let logits = engine.logits(&[slice], wanted)?;
        file.logits(&logits)?;
        if let Some(row) = logits.chunks_exact(engine.config().vocab_size).next_back() {
            next = argmax(row);
        }
    }
    if entry.num_generated > 0 {
        sequence.push(next);
        generate(engine, &mut sequence, entry.num_generated)?;
        file.generated(sequence.output())?;
    }
    Ok(())
}

fn generate(engine: &mut Engine, sequence: &mut OfflineSequence, count: usize) -> anyhow::Result<()> {
    while sequence.output().len() < count {
        let slice = sequence.take_slice(1, &SamplingParams::greedy());
        for sample in engine.step(vec![slice])? {
            sequence.push(sample.token);
        }
    }
    Ok(())
}

/// The lowest of the largest, as a greedy sample is.
fn argmax(logits: &[f32]) -> TokenId {
    let mut best = 0;
    for (token, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = token;
        }
    }
    best as TokenId
}
