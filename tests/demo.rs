//! The demo model answers each of its evaluation prompts with the tokens that
//! the oracle chose, in whatever company: it is the model that newcomers meet,
//! and the deterministic one that other tests rely on.

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

use chorale_device::{Cpu, DenseDtype, KvDtype};
use chorale_hub::unpack_demo;
use chorale_link::Solo;
use chorale_model::GptOss;
use chorale_model::checkpoint::Checkpoint;
use chorale_model::offline::{OfflineLimits, OfflineSequence};
use chorale_model::shard::ShardSpec;
use chorale_plan::{SamplingParams, StepPlan, TokenId};
use serde_json::Value;

/// Sequences that are computed together.
const BATCH: usize = 41;

/// Longer than any prompt and completion.
const MAX_TOKENS: usize = 1024;

/// 159 were measured; another processor may round otherwise.
const LEAST_ALIKE: usize = 150;

#[test]
fn every_evaluation_prompt_is_answered_token_for_token() {
    for (found, eval) in answers(DenseDtype::Bf16, KvDtype::F32).iter().zip(evals()) {
        assert_eq!(found, &eval.completion, "{}", eval.id);
    }
}

/// With half of the bytes nearly all of them.
#[test]
fn narrow_types_change_few_answers() {
    let found = answers(DenseDtype::Int8, KvDtype::Fp8);
    let num_alike = found.iter().zip(evals()).filter(|(found, eval)| **found == eval.completion).count();
    assert!(num_alike >= LEAST_ALIKE, "{num_alike} of {}", found.len());
}

struct Eval {
    id: String,
    prompt: Vec<TokenId>,
    completion: Vec<TokenId>,
}

fn evals() -> Vec<Eval> {
    let evals =
        std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/demo-model/evals.json")).unwrap();
    let evals: Value = serde_json::from_slice(&evals).unwrap();
    let items = evals["items"].as_array().unwrap();
    assert_eq!(items.len(), 164);
    let eval = |item: &Value| Eval {
        id: item["id"].to_string(),
        prompt: ids(&item["prompt_token_ids"]),
        completion: ids(&item["completion_token_ids"]),
    };
    items.iter().map(eval).collect()
}

/// As many tokens for each prompt as the oracle chose, greedily.
fn answers(dense_dtype: DenseDtype, kv_dtype: KvDtype) -> Vec<Vec<TokenId>> {
    let cache = tempfile::tempdir().unwrap();
    let dir = unpack_demo(cache.path(), &|_| ()).unwrap();
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let config = checkpoint.config();
    let limits = OfflineLimits {
        num_sequences: BATCH,
        max_tokens: MAX_TOKENS,
        max_slice_tokens: 100,
        max_rows: BATCH * 100,
        block_size: 32,
    };
    let mut device = Cpu::new(None).unwrap();
    let link = Solo::new(&mut device, config.num_experts as u32).unwrap();
    let spec = ShardSpec { dense_dtype, ..ShardSpec::whole(config) };
    let room = limits.room(config, kv_dtype);
    let mut model = GptOss::load(device, link, &checkpoint, &spec, &room, &mut |_| ()).unwrap();

    let (mut step, mut answers) = (0, Vec::new());
    for evals in evals().chunks(BATCH) {
        let prompts = evals.iter().enumerate();
        let mut sequences: Vec<OfflineSequence> = prompts
            .map(|(index, eval)| OfflineSequence::new(index, eval.prompt.clone(), limits, config))
            .collect();
        let goes_on = |(sequence, eval): &(&mut OfflineSequence, &Eval)| {
            sequence.output().len() < eval.completion.len()
        };
        loop {
            let going = sequences.iter_mut().zip(evals).filter(goes_on);
            let greedy = SamplingParams::greedy();
            let slices: Vec<_> = going.map(|(sequence, _)| sequence.take_slice(100, &greedy)).collect();
            if slices.is_empty() {
                break;
            }
            step += 1;
            let plan = StepPlan { step, in_halves: false, home_rows: Vec::new(), slices };
            for sample in model.step(&plan).unwrap().samples {
                sequences[sample.sequence.0 as usize].push(sample.token);
            }
        }
        answers.extend(sequences.iter().map(|sequence| sequence.output().to_vec()));
    }
    answers
}

fn ids(value: &Value) -> Vec<TokenId> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as TokenId).collect()
}
