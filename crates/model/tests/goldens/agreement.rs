//! Agreement with the oracles, within the tolerances that the fixtures advise
//! for f32 activations.

use crate::MODELS;
use crate::engine::{Bench, Recorder, limits};
use crate::tensors::{Goldens, json};
use chorale_model::Stage;
use chorale_plan::{SamplingParams, TokenId};

const PROMPTS: [&str; 5] = ["p1", "p17", "p130", "p300", "p1100"];

/// A route may legitimately flip where the router's logits are this close.
const UNSAFE_ROUTER_GAP: f32 = 2e-4;

fn tokens(values: &[i64]) -> Vec<TokenId> {
    values.iter().map(|&id| id as TokenId).collect()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let largest = f64::from(logits.iter().copied().fold(f32::MIN, f32::max));
    largest + logits.iter().map(|&logit| (f64::from(logit) - largest).exp()).sum::<f64>().ln()
}

#[test]
fn logits_agree_at_every_position() {
    for model in MODELS {
        let goldens = Goldens::open(model, "logits");
        let mut bench = Bench::new(model, limits(1, 1200, 64));
        let vocab = bench.engine.config().vocab_size;
        for prompt in PROMPTS {
            let of = |what: &str| format!("{prompt}.{what}");
            let ids = tokens(&goldens.i64s(&of("input_ids")));
            let found = bench.logits(&ids, 1200, ids.len());
            let gaps = goldens.f32s(&of("router_gap"));
            let sums = goldens.f32s(&of("logsumexp"));
            let margins = goldens.f32s(&of("top2_margin"));
            let argmax = goldens.i64s(&of("argmax"));
            for (position, logits) in found.chunks(vocab).enumerate() {
                let place = format!("{model} {prompt} position {position}");
                if gaps[position] < UNSAFE_ROUTER_GAP {
                    continue;
                }
                let sum = (log_sum_exp(logits) - f64::from(sums[position])).abs();
                assert!(sum < 2e-3, "{place}: logsumexp is off by {sum}");
                if margins[position] > 5e-3 {
                    let best = (0..vocab).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
                    assert_eq!(best as i64, argmax[position], "{place}: argmax");
                }
            }
            let expected = goldens.f32s(&of("logits"));
            let positions = goldens.i64s(&of("positions"));
            for (expected, position) in expected.chunks(vocab).zip(positions) {
                let logits = &found[position as usize * vocab..][..vocab];
                let error = largest_difference(logits, expected);
                assert!(error < 2e-3, "{model} {prompt} position {position}: logits are off by {error}");
            }
        }
    }
}

#[test]
fn routes_agree() {
    for model in MODELS {
        let goldens = Goldens::open(model, "router");
        let logits = Goldens::open(model, "logits");
        let mut bench = Bench::new(model, limits(1, 1200, 64));
        let (layers, top_k) = (bench.engine.config().windows.len(), bench.engine.config().experts_per_token);
        for prompt in ["p17", "p130"] {
            let ids = tokens(&logits.i64s(&format!("{prompt}.input_ids")));
            let mut recorder = Recorder::default();
            bench.observed_logits(&ids, 1200, 1, &mut recorder);
            for layer in 0..layers {
                let experts = goldens.i32s(&format!("{prompt}.layer.{layer}.indices"));
                let weights = goldens.f32s(&format!("{prompt}.layer.{layer}.weights"));
                let rows = experts.chunks(top_k).zip(weights.chunks(top_k)).zip(&recorder.routes[&layer]);
                for (row, ((experts, weights), found)) in rows.enumerate() {
                    let place = format!("{model} {prompt} layer {layer} row {row}");
                    let chosen: Vec<i32> = found.iter().map(|choice| choice.expert as i32).collect();
                    assert_eq!(chosen, experts, "{place}");
                    let given: Vec<f32> = found.iter().map(|choice| choice.weight).collect();
                    assert!(largest_difference(&given, weights) < 1e-3, "{place}: {given:?} {weights:?}");
                }
            }
        }
    }
}

#[test]
fn hidden_states_agree() {
    for model in MODELS {
        let goldens = Goldens::open(model, "hidden");
        let logits = Goldens::open(model, "logits");
        let mut bench = Bench::new(model, limits(1, 1200, 64));
        let ids = tokens(&logits.i64s("p17.input_ids"));
        let mut recorder = Recorder::default();
        bench.observed_logits(&ids, 1200, 1, &mut recorder);
        for (stage, found) in &recorder.hidden {
            let name = match stage {
                Stage::Embedding => "p17.embedding".to_owned(),
                Stage::Attention(layer) => format!("p17.layer.{layer}.after_attention"),
                Stage::Layer(layer) => format!("p17.layer.{layer}.output"),
                Stage::FinalNorm => "p17.final_norm".to_owned(),
            };
            let error = largest_difference(found, &goldens.f32s(&name));
            assert!(error < 1e-3, "{model} {name} is off by {error}");
        }
        assert_eq!(recorder.hidden.len(), 2 * bench.engine.config().windows.len() + 2);
    }
}

#[test]
fn greedy_continuations_are_equal() {
    for model in MODELS {
        let prompts = json(model, "prompts")["prompts"].as_array().unwrap().clone();
        let ids_of = |value: &serde_json::Value| -> Vec<TokenId> {
            value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as TokenId).collect()
        };
        let mut bench = Bench::new(model, limits(1, 1200, 64));
        let runs = json(model, "greedy")["runs"].as_array().unwrap().clone();
        assert!(runs.len() >= 4);
        for run in runs {
            let prompt = prompts.iter().find(|prompt| prompt["name"] == run["prompt"]).unwrap();
            let found = bench.generate(&[ids_of(&prompt["ids"])], &[SamplingParams::greedy()], 1200, 64);
            assert_eq!(found[0], ids_of(&run["continuation"]), "{model} {}", run["prompt"]);
        }
    }
}
