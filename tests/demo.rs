//! The demo model answers each of its evaluation prompts with the tokens that
//! the oracle chose, in whatever company: it is the model that newcomers meet,
//! and the deterministic one that other tests rely on.

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

use chorale_device::{Cpu, KvDtype};
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

#[test]
fn every_evaluation_prompt_is_answered_token_for_token() {
    let evals =
        std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/demo-model/evals.json")).unwrap();
    let evals: Value = serde_json::from_slice(&evals).unwrap();
    let items = evals["items"].as_array().unwrap();
    assert_eq!(items.len(), 164);

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
    let (spec, room) = (ShardSpec::whole(config), limits.room(config, KvDtype::F32));
    let mut model = GptOss::load(device, link, &checkpoint, &spec, &room, &mut |_| ()).unwrap();

    let mut step = 0;
    for items in items.chunks(BATCH) {
        let expected: Vec<Vec<TokenId>> =
            items.iter().map(|item| ids(&item["completion_token_ids"])).collect();
        let prompts = items.iter().map(|item| ids(&item["prompt_token_ids"])).enumerate();
        let mut sequences: Vec<OfflineSequence> =
            prompts.map(|(index, prompt)| OfflineSequence::new(index, prompt, limits, config)).collect();
        let is_done =
            |sequence: &OfflineSequence, expected: &[TokenId]| sequence.output().len() == expected.len();
        while sequences.iter().zip(&expected).any(|(sequence, expected)| !is_done(sequence, expected)) {
            step += 1;
            let unfinished =
                sequences.iter_mut().zip(&expected).filter(|(s, expected)| !is_done(s, expected));
            let greedy = SamplingParams::greedy();
            let slices = unfinished.map(|(sequence, _)| sequence.take_slice(100, &greedy)).collect();
            for sample in model
                .step(&StepPlan { step, in_halves: false, home_rows: Vec::new(), slices })
                .unwrap()
                .samples
            {
                sequences[sample.sequence.0 as usize].push(sample.token);
            }
        }
        for ((sequence, expected), item) in sequences.iter().zip(&expected).zip(items) {
            assert_eq!(sequence.output(), expected, "{}", item["id"]);
        }
    }
}

fn ids(value: &Value) -> Vec<TokenId> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as TokenId).collect()
}
