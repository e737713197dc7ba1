//! What narrower types cost in accuracy: every position's distribution over the
//! next token, with dense weights in int8 and keys and values in bf16 or fp8,
//! against bf16 weights with f32 keys and values. Prints JSON lines.
//!
//!     cargo bench -p chorale-benches --bench accuracy [-- --model DIR] [--text FILE] [--tokens N]
//!
//! All are fed the same tokens, whatever they would have said. Without a model:
//! the demo model, on the answers to the prompts that its training did not see;
//! the golden checkpoints, whose weights are random, so that nothing is near
//! certain and every error shows; then how many of all evaluation prompts the
//! demo model answers alike, token for token. A model of gpt-oss's vocabulary is
//! fed the file's text, or this repository's own.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark prints, and stops when it cannot run"
)]

use chorale_device::{Cpu, DenseDtype, KvDtype};
use chorale_harmony::{Tokenizer, VOCABULARY_SIZE};
use chorale_hub::unpack_demo;
use chorale_link::Solo;
use chorale_model::GptOss;
use chorale_model::checkpoint::Checkpoint;
use chorale_model::offline::{OfflineLimits, OfflineSequence};
use chorale_model::shard::ShardSpec;
use chorale_plan::{SamplingParams, StepPlan, TokenId};
use rayon::prelude::*;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// What all others are compared with.
const EXACT: Kept = Kept { dense: DenseDtype::Bf16, kv: KvDtype::F32 };

const NARROW: [Kept; 5] = [
    Kept { dense: DenseDtype::Int8, kv: KvDtype::F32 },
    Kept { dense: DenseDtype::Bf16, kv: KvDtype::Bf16 },
    Kept { dense: DenseDtype::Bf16, kv: KvDtype::Fp8 },
    Kept { dense: DenseDtype::Int8, kv: KvDtype::Bf16 },
    Kept { dense: DenseDtype::Int8, kv: KvDtype::Fp8 },
];

/// Positions that are compared if nobody says, and of each sequence of a text.
const TOKENS: usize = 2048;
const TEXT_TOKENS: usize = 1024;
/// Positions of a step: their logits of all models are held at once.
const SLICE: usize = 64;
/// Evaluation prompts that are answered together.
const BATCH: usize = 41;

const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// What weights, keys and values are kept in.
#[derive(Clone, Copy)]
struct Kept {
    dense: DenseDtype,
    kv: KvDtype,
}

/// Tokens, and the first of them that is to be foretold.
struct Sequence {
    tokens: Vec<TokenId>,
    first: usize,
}

fn main() {
    let (mut model, mut text, mut num_tokens) = (None, None, TOKENS);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--model" => model = Some(PathBuf::from(words.next().unwrap())),
            "--text" => text = Some(PathBuf::from(words.next().unwrap())),
            "--tokens" => num_tokens = words.next().unwrap().parse().unwrap(),
            // Cargo's own.
            "--bench" => {}
            word => panic!("{word} is none of --model DIR, --text FILE and --tokens N"),
        }
    }
    if let Some(folder) = model {
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let vocabulary = checkpoint.config().vocab_size;
        assert!(vocabulary >= VOCABULARY_SIZE as usize, "{vocabulary} tokens are not gpt-oss's vocabulary");
        let file = text.unwrap_or_else(|| Path::new(REPOSITORY).join("README.md"));
        let sequences = sequences_of(&std::fs::read_to_string(file).unwrap());
        compare(&folder.display().to_string(), &checkpoint, sequences, num_tokens);
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let demo = Checkpoint::open(&unpack_demo(folder.path(), &|_| ()).unwrap()).unwrap();
    let evals = evals();
    let held_out = evals
        .iter()
        .filter(|eval| eval.is_held_out)
        .map(|eval| Sequence { tokens: [&eval.prompt[..], &eval.answer].concat(), first: eval.prompt.len() });
    compare("demo", &demo, held_out.collect(), num_tokens);
    for name in ["a-small", "b-awkward", "c-ratio"] {
        let fixtures = Path::new(REPOSITORY).join("tests/fixtures");
        let checkpoint = Checkpoint::open(&fixtures.join("models").join(name)).unwrap();
        let prompts = json(&fixtures.join("goldens").join(name).join("prompts.json"));
        let prompts = prompts["prompts"].as_array().unwrap().iter().rev();
        let sequences = prompts.map(|prompt| Sequence { tokens: ids(&prompt["ids"]), first: 1 });
        compare(name, &checkpoint, sequences.filter(|one| one.tokens.len() > 1).collect(), num_tokens);
    }
    answer(&demo, &evals);
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<TokenId> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as TokenId).collect()
}

/// A text, cut.
fn sequences_of(text: &str) -> Vec<Sequence> {
    let tokens = Tokenizer::shared().encode_text(text);
    let cut = tokens.chunks(TEXT_TOKENS).filter(|tokens| tokens.len() > 1);
    cut.map(|tokens| Sequence { tokens: tokens.to_vec(), first: 1 }).collect()
}

/// A model that is kept one way, with room for some sequences.
struct Engine {
    model: GptOss<Cpu, Solo<Cpu>>,
    limits: OfflineLimits,
    step: u64,
}

impl Engine {
    fn load(checkpoint: &Checkpoint, limits: OfflineLimits, kept: Kept) -> Self {
        let config = checkpoint.config();
        let mut device = Cpu::new(None).unwrap();
        let link = Solo::new(&mut device, config.num_experts as u32).unwrap();
        let spec = ShardSpec { dense_dtype: kept.dense, ..ShardSpec::whole(config) };
        let room = limits.room(config, kept.kv);
        let model = GptOss::load(device, link, checkpoint, &spec, &room, &mut |_| ()).unwrap();
        Self { model, limits, step: 0 }
    }

    fn sequence(&self, index: usize, tokens: &[TokenId]) -> OfflineSequence {
        OfflineSequence::new(index, tokens.to_vec(), self.limits, self.model.config())
    }
}

/// What one way of keeping things has shown so far.
#[derive(Default)]
struct Score {
    divergences: Vec<f64>,
    num_agreeing: usize,
    /// Sums of what the real next tokens would have surprised by, in nats.
    surprise: f64,
    exact_surprise: f64,
}

/// Feeds all models the same tokens and compares what they foretell.
fn compare(name: &str, checkpoint: &Checkpoint, sequences: Vec<Sequence>, num_tokens: usize) {
    let longest = sequences.iter().map(|sequence| sequence.tokens.len()).max().unwrap();
    let limits = OfflineLimits {
        num_sequences: 1,
        max_tokens: longest,
        max_slice_tokens: SLICE,
        max_rows: SLICE,
        block_size: 64,
    };
    // The files are mapped once: models share what they keep as it is.
    let mut exact = Engine::load(checkpoint, limits, EXACT);
    let mut narrow = NARROW.map(|kept| Engine::load(checkpoint, limits, kept));
    let mut scores = NARROW.map(|_| Score::default());
    let vocabulary = checkpoint.config().vocab_size;
    let mut left = num_tokens;
    for Sequence { tokens, first } in sequences {
        let mut fed = exact.sequence(0, &tokens[..tokens.len() - 1]);
        while fed.num_pending() > 0 && left > 0 {
            let slice = fed.take_slice(SLICE, &SamplingParams::greedy());
            let end = slice.num_computed as usize + slice.tokens.len();
            let count = end.saturating_sub(first - 1).min(slice.tokens.len());
            let next = &tokens[end + 1 - count..=end];
            let slices = std::slice::from_ref(&slice);
            let expected = exact.model.logits(slices, count, &mut ()).unwrap();
            for (engine, score) in narrow.iter_mut().zip(&mut scores) {
                let found = engine.model.logits(slices, count, &mut ()).unwrap();
                score.add(&expected, &found, next, vocabulary);
            }
            left = left.saturating_sub(count);
        }
    }
    for (kept, score) in NARROW.iter().zip(scores) {
        score.report(name, *kept);
    }
}

impl Score {
    fn add(&mut self, exact: &[f32], found: &[f32], next: &[TokenId], vocabulary: usize) {
        let rows = exact.par_chunks(vocabulary).zip(found.par_chunks(vocabulary)).zip(next);
        let rows: Vec<(f64, bool, f64, f64)> = rows
            .map(|((exact, found), next)| {
                let (exact_sum, found_sum) = (log_sum_exp(exact), log_sum_exp(found));
                let pairs = exact.iter().zip(found);
                let divergence = pairs
                    .map(|(exact, found)| {
                        let exact = f64::from(*exact) - exact_sum;
                        exact.exp() * (exact - (f64::from(*found) - found_sum))
                    })
                    .sum();
                let surprise = |row: &[f32], sum: f64| sum - f64::from(row[*next as usize]);
                let agrees = best(exact) == best(found);
                (divergence, agrees, surprise(found, found_sum), surprise(exact, exact_sum))
            })
            .collect();
        for (divergence, agrees, surprise, exact_surprise) in rows {
            self.divergences.push(divergence);
            self.num_agreeing += usize::from(agrees);
            self.surprise += surprise;
            self.exact_surprise += exact_surprise;
        }
    }

    fn report(mut self, name: &str, kept: Kept) {
        self.divergences.sort_by(f64::total_cmp);
        let count = self.divergences.len();
        let mean = self.divergences.iter().sum::<f64>() / count as f64;
        println!(
            "{{\"bench\":\"accuracy\",\"model\":\"{name}\",\"dense_dtype\":\"{}\",\"kv_cache_dtype\":\"{}\",\"tokens\":{count},\"mean_kl_nats\":{mean:.3e},\"p99_kl_nats\":{:.3e},\"top1_agreement\":{:.5},\"perplexity\":{:.5},\"exact_perplexity\":{:.5}}}",
            kept.dense.name(),
            kept.kv.name(),
            self.divergences[(count - 1) * 99 / 100],
            self.num_agreeing as f64 / count as f64,
            (self.surprise / count as f64).exp(),
            (self.exact_surprise / count as f64).exp(),
        );
    }
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let largest = f64::from(logits.iter().copied().fold(f32::MIN, f32::max));
    largest + logits.iter().map(|&logit| (f64::from(logit) - largest).exp()).sum::<f64>().ln()
}

fn best(logits: &[f32]) -> Option<usize> {
    (0..logits.len()).max_by(|&one, &other| logits[one].total_cmp(&logits[other]))
}

/// An evaluation prompt of the demo model, and what it answers.
struct Eval {
    prompt: Vec<TokenId>,
    answer: Vec<TokenId>,
    /// Its training did not see it.
    is_held_out: bool,
}

fn evals() -> Vec<Eval> {
    let evals = json(&Path::new(REPOSITORY).join("tests/fixtures/demo-model/evals.json"));
    let eval = |item: &Value| Eval {
        prompt: ids(&item["prompt_token_ids"]),
        answer: ids(&item["completion_token_ids"]),
        is_held_out: item["held_out"].as_bool().unwrap(),
    };
    evals["items"].as_array().unwrap().iter().map(eval).collect()
}

/// How many evaluation prompts are answered alike, greedily.
fn answer(checkpoint: &Checkpoint, evals: &[Eval]) {
    let longest = evals.iter().map(|eval| eval.prompt.len() + eval.answer.len()).max().unwrap();
    let limits = OfflineLimits {
        num_sequences: BATCH,
        max_tokens: longest,
        max_slice_tokens: SLICE,
        max_rows: BATCH * SLICE,
        block_size: 64,
    };
    for kept in [EXACT].into_iter().chain(NARROW) {
        let mut engine = Engine::load(checkpoint, limits, kept);
        let num_alike: usize = evals.chunks(BATCH).map(|evals| engine.num_alike(evals)).sum();
        println!(
            "{{\"bench\":\"evals\",\"model\":\"demo\",\"dense_dtype\":\"{}\",\"kv_cache_dtype\":\"{}\",\"prompts\":{},\"answered_alike\":{num_alike}}}",
            kept.dense.name(),
            kept.kv.name(),
            evals.len(),
        );
    }
}

impl Engine {
    fn num_alike(&mut self, evals: &[Eval]) -> usize {
        let prompts = evals.iter().enumerate();
        let mut sequences: Vec<OfflineSequence> =
            prompts.map(|(index, eval)| self.sequence(index, &eval.prompt)).collect();
        loop {
            // A wrong token is the end of an answer.
            let goes_on = |(sequence, eval): &(&mut OfflineSequence, &Eval)| {
                sequence.output().len() < eval.answer.len() && eval.answer.starts_with(sequence.output())
            };
            let going = sequences.iter_mut().zip(evals).filter(goes_on);
            let greedy = SamplingParams::greedy();
            let slices: Vec<_> = going.map(|(sequence, _)| sequence.take_slice(SLICE, &greedy)).collect();
            if slices.is_empty() {
                break;
            }
            self.step += 1;
            let plan = StepPlan { step: self.step, in_halves: false, home_rows: Vec::new(), slices };
            for sample in self.model.step(&plan).unwrap().samples {
                sequences[sample.sequence.0 as usize].push(sample.token);
            }
        }
        sequences.iter().zip(evals).filter(|(sequence, eval)| sequence.output() == eval.answer).count()
    }
}
