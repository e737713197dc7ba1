//! What the answer must not depend on, bit for bit on the CPU: the layout of
//! the checkpoint, the split into slices, the neighbours in a step.

use crate::MODELS;
use crate::engine::{Bench, limits};
use crate::tensors::{Goldens, fixtures};
use chorale_plan::{Penalties, SamplingParams, TokenId};

fn prompt(model: &str, name: &str) -> Vec<TokenId> {
    let ids = Goldens::open(model, "logits").i64s(&format!("{name}.input_ids"));
    ids.iter().map(|&id| id as TokenId).collect()
}

#[test]
fn both_layouts_give_the_same_bits() {
    let ids = prompt("a-small", "p300");
    let dir = fixtures().join("models/a-small");
    let hugging_face = Bench::open(&dir, limits(1, 300, 64)).logits(&ids, 300, 300);
    let original = Bench::open(&dir.join("original"), limits(1, 300, 64)).logits(&ids, 300, 300);
    assert_eq!(hugging_face, original);
}

#[test]
fn any_slicing_gives_the_same_bits() {
    for model in MODELS {
        let ids = prompt(model, "p300");
        let whole = Bench::new(model, limits(1, 300, 64)).logits(&ids, 300, 300);
        for (slice, block_size) in [(1, 16), (7, 64), (128, 1), (129, 48), (299, 300)] {
            let sliced = Bench::new(model, limits(1, slice, block_size)).logits(&ids, slice, 300);
            assert!(whole == sliced, "{model}: slices of {slice}, pages of {block_size}");
        }
    }
}

/// Greedy, seeded and penalised sequences: alone, and in steps that they share.
#[test]
fn any_company_gives_the_same_tokens() {
    for model in MODELS {
        let prompts: Vec<Vec<TokenId>> =
            ["p130", "p17", "p1", "p17", "p300", "p17"].map(|name| prompt(model, name)).into();
        let seeded = |seed| SamplingParams { temperature: 1.0, seed, ..SamplingParams::greedy() };
        let penalties = Penalties { repetition: 1.3, presence: 0.5, frequency: 0.2, history: Vec::new() };
        let params = [
            SamplingParams::greedy(),
            seeded(1),
            SamplingParams { top_p: 0.9, top_k: Some(40), ..seeded(2) },
            seeded(3),
            SamplingParams { min_p: 0.02, ..seeded(4) },
            SamplingParams { penalties: Some(penalties), ..SamplingParams::greedy() },
        ];
        let mut bench = Bench::new(model, limits(6, 64, 32));
        let together = bench.generate(&prompts, &params, 50, 24);
        for (index, prompt) in prompts.iter().enumerate() {
            let alone = bench.generate(std::slice::from_ref(prompt), &params[index..=index], 64, 24);
            assert_eq!(together[index], alone[0], "{model} sequence {index}");
        }
        assert_ne!(together[1], together[3], "other seeds give other texts");
        let distinct: std::collections::HashSet<_> = together[5].iter().collect();
        assert!(distinct.len() > 20, "penalties keep repetition down: {:?}", together[5]);
    }
}

/// Steps in halves between whole ones, of many rows and of a single one.
#[test]
fn halves_give_the_same_tokens() {
    for model in MODELS {
        let prompts: Vec<Vec<TokenId>> = ["p130", "p17", "p1"].map(|name| prompt(model, name)).into();
        let seeded = |seed| SamplingParams { temperature: 1.0, seed, ..SamplingParams::greedy() };
        let params = [SamplingParams::greedy(), seeded(1), seeded(2)];
        for (prompts, params) in [(&prompts[..], &params[..]), (&prompts[..1], &params[..1])] {
            let mut bench = Bench::new(model, limits(3, 64, 32));
            let whole = bench.generate(prompts, params, 50, 12);
            for in_halves in [|_| true, (|step| step % 3 == 1) as fn(u64) -> bool] {
                bench.in_halves = in_halves;
                assert_eq!(bench.generate(prompts, params, 50, 12), whole, "{model}");
            }
        }
    }
}
