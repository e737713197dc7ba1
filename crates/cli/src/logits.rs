//! `chorale logits`: what a model computes for given tokens, for comparing
//! engines. Positions are those of the prompt; nothing is sampled but by
//! `--generate`.

use crate::args::LogitsArgs;
use crate::engine::{self, Engine};
use crate::exit::UsageError;
use crate::setup::Setup;
use anyhow::Context;
use chorale_model::config::ModelConfig;
use chorale_model::offline::{OfflineLimits, OfflineSequence};
use chorale_plan::{SamplingParams, TokenId};
use safetensors::tensor::{Dtype, TensorView};
use std::collections::BTreeMap;
use std::path::Path;

/// Tokens of a slice if `--slice` does not say.
const SLICE_TOKENS_DEFAULT: usize = 512;

/// Token ids by name.
type Prompts = BTreeMap<String, Vec<TokenId>>;

/// Runs the command.
pub(crate) fn run(args: &LogitsArgs, setup: &Setup) -> anyhow::Result<()> {
    let prompts = read_prompts(&args.tokens)?;
    let checkpoint = Engine::open(setup)?;
    let config = checkpoint.config().clone();
    let num_generated = args.generate.unwrap_or(0) as usize;
    let longest = check(&prompts, num_generated, args, setup, &config)?;
    let max_slice_tokens = args.slice.map_or(SLICE_TOKENS_DEFAULT, |slice| slice as usize).min(longest);
    let limits = OfflineLimits {
        num_sequences: 1,
        max_tokens: longest + num_generated,
        max_slice_tokens,
        max_rows: max_slice_tokens,
        block_size: setup.config.kv_block_size,
    };
    let mut engine = Engine::load(&checkpoint, limits, setup)?;
    let mut tensors = Vec::new();
    for (name, prompt) in prompts {
        let last = args.last.map_or(prompt.len(), |last| (last as usize).min(prompt.len()));
        let result = compute(&mut engine, prompt, last, num_generated)?;
        tensors.extend(result.tensors(&name, &config));
    }
    write(tensors, &args.out).with_context(|| format!("cannot write {}", args.out.display()))
}

fn read_prompts(path: &Path) -> anyhow::Result<Prompts> {
    let file = path.display();
    let text = std::fs::read(path).with_context(|| format!("cannot read {file}"))?;
    serde_json::from_slice(&text)
        .with_context(|| format!("{file} is not a JSON object of token ids by name, {{\"p1\": [1, 2, 3]}}"))
}

/// Refuses prompts that the model cannot compute; gives the longest's length.
fn check(
    prompts: &Prompts,
    num_generated: usize,
    args: &LogitsArgs,
    setup: &Setup,
    config: &ModelConfig,
) -> anyhow::Result<usize> {
    let file = args.tokens.display();
    let context = engine::max_model_len(setup, config);
    for (name, prompt) in prompts {
        let what = format!("{file}: `{name}`");
        if prompt.is_empty() {
            return Err(UsageError(format!("{what} holds no tokens")).into());
        }
        engine::check_tokens(prompt, config, &what)?;
        if prompt.len() + num_generated > context {
            return Err(UsageError(format!(
                "{what} has {} tokens, and with {num_generated} generated ones it exceeds the context of {context}",
                prompt.len()
            ))
            .into());
        }
    }
    let longest = prompts.values().map(Vec::len).max();
    longest.ok_or_else(|| UsageError(format!("{file} holds no prompts")).into())
}

/// What was computed of one prompt.
struct Computed {
    first_position: usize,
    logits: Vec<f32>,
    generated: Vec<TokenId>,
}

fn compute(
    engine: &mut Engine,
    prompt: Vec<TokenId>,
    last: usize,
    num_generated: usize,
) -> anyhow::Result<Computed> {
    let greedy = SamplingParams::greedy();
    let first_position = prompt.len() - last;
    let mut sequence = engine.sequence(0, prompt);
    let mut logits = Vec::new();
    while sequence.num_pending() > 0 {
        let slice = sequence.take_slice(engine.limits.max_slice_tokens, &greedy);
        let wanted = last.saturating_sub(sequence.num_pending()).min(slice.tokens.len());
        logits.extend(engine.model.logits(&[slice], wanted, &mut ())?);
    }
    if num_generated > 0 {
        let vocab_size = engine.model.config().vocab_size;
        sequence.push(argmax(&logits[logits.len() - vocab_size..]));
        generate(engine, &mut sequence, num_generated)?;
    }
    Ok(Computed { first_position, logits, generated: sequence.output().to_vec() })
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

/// One tensor of the file.
struct Tensor {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Tensor {
    fn i64s(name: String, values: impl Iterator<Item = i64>) -> Self {
        let bytes: Vec<u8> = values.flat_map(i64::to_le_bytes).collect();
        Self { name, dtype: Dtype::I64, shape: vec![bytes.len() / size_of::<i64>()], bytes }
    }
}

impl Computed {
    fn tensors(self, name: &str, config: &ModelConfig) -> Vec<Tensor> {
        let num_positions = self.logits.len() / config.vocab_size;
        let positions = (self.first_position as i64..).take(num_positions);
        let mut tensors = vec![
            Tensor {
                name: format!("{name}.logits"),
                dtype: Dtype::F32,
                shape: vec![num_positions, config.vocab_size],
                bytes: self.logits.into_iter().flat_map(f32::to_le_bytes).collect(),
            },
            Tensor::i64s(format!("{name}.positions"), positions),
        ];
        if !self.generated.is_empty() {
            let generated = self.generated.into_iter().map(i64::from);
            tensors.push(Tensor::i64s(format!("{name}.generated"), generated));
        }
        tensors
    }
}

/// Writes beside the file and renames, so that a half-written one is never there.
fn write(tensors: Vec<Tensor>, path: &Path) -> anyhow::Result<()> {
    let views = tensors
        .iter()
        .map(|tensor| Ok((&tensor.name, TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes)?)))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    safetensors::serialize_to_file(views, None, Path::new(&partial))?;
    Ok(std::fs::rename(&partial, path)?)
}
