//! `config.json` of OpenAI's own layout.

use crate::config::{check_refused, with};
use crate::support::fixture;
use chorale_model::checkpoint::CheckpointError;
use chorale_model::config::ModelConfig;
use serde_json::{Value, json};
use std::fs;

fn parse(config: &Value) -> Result<ModelConfig, CheckpointError> {
    ModelConfig::from_original(&config.to_string(), None)
}

fn good() -> Value {
    serde_json::from_slice(&fs::read(fixture("a-small/original/config.json")).unwrap()).unwrap()
}

#[test]
fn it_equals_the_other_layouts() {
    let other = fs::read_to_string(fixture("a-small/config.json")).unwrap();
    let other = ModelConfig::from_hugging_face(&other, None).unwrap();
    let mut config = parse(&good()).unwrap();
    config.eos_token_ids = other.eos_token_ids.clone();
    assert_eq!(config, other);
}

#[test]
fn the_first_releases_lack_the_limit() {
    let config = with(good(), "swiglu_limit", Value::Null);
    assert_eq!(parse(&config).unwrap(), parse(&good()).unwrap());
    assert_eq!(parse(&with(good(), "swiglu_limit", json!(3.5))).unwrap().swiglu_limit, 3.5);
}

#[test]
fn a_factor_of_one_is_plain_rope() {
    let config = parse(&with(good(), "rope_scaling_factor", json!(1.0))).unwrap();
    assert_eq!((config.rope.yarn, config.max_position_embeddings), (None, 4096));
}

#[test]
fn every_field_is_refused_by_name() {
    let sizes = [
        "num_hidden_layers",
        "num_experts",
        "experts_per_token",
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "head_dim",
        "num_attention_heads",
        "num_key_value_heads",
        "sliding_window",
        "initial_context_length",
    ];
    for field in sizes {
        let wrong = [json!(0), json!(-1), json!(1.5), json!("8"), json!(1u64 << 50), Value::Null];
        let cases: Vec<_> = wrong.into_iter().map(|value| (field, value, "whole number")).collect();
        check_refused(parse, &good(), &cases);
    }
    check_refused(
        parse,
        &good(),
        &[
            ("hidden_size", json!(33), "a multiple of 32"),
            ("intermediate_size", json!(33), "a multiple of 32"),
            ("head_dim", json!(5), "even"),
            ("num_key_value_heads", json!(3), "a divisor"),
            ("experts_per_token", json!(9), "at most `num_experts` (8)"),
            ("swiglu_limit", json!(-7), "above 0"),
            ("rope_theta", Value::Null, "above 1"),
            ("rope_theta", json!(0.5), "above 1"),
            ("rope_scaling_factor", Value::Null, "a number"),
            ("rope_scaling_factor", json!(0), "from 1 up"),
            ("rope_scaling_factor", json!(1e18), "32-bit positions"),
            ("rope_ntk_alpha", Value::Null, "above 0"),
            ("rope_ntk_alpha", json!(0), "above 0"),
            ("rope_ntk_beta", json!(false), "finite number"),
        ],
    );
    let error = parse(&with(good(), "rope_ntk_beta", json!(1))).unwrap_err().to_string();
    assert!(error.contains("`rope_ntk_beta` is 1: it must be above the slow one, which is 1"), "{error}");
}
