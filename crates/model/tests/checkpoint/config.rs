//! `config.json` as transformers writes it: what is read from each field, and
//! how each is refused.

use crate::support::fixture;
use chorale_model::checkpoint::CheckpointError::{self, *};
use chorale_model::config::ModelConfig;
use serde_json::{Value, json};
use std::fs;

pub(crate) fn parse(config: &Value) -> Result<ModelConfig, CheckpointError> {
    ModelConfig::from_hugging_face(&config.to_string(), None)
}

pub(crate) fn good() -> Value {
    serde_json::from_slice(&fs::read(fixture("a-small/config.json")).unwrap()).unwrap()
}

/// Sets a field; `Value::Null` removes it. A dot leads into an object.
pub(crate) fn with(mut config: Value, field: &str, value: Value) -> Value {
    let (parent, key) = match field.split_once('.') {
        Some((parent, key)) => (&mut config[parent], key),
        None => (&mut config, field),
    };
    if value.is_null() {
        parent.as_object_mut().unwrap().remove(key);
    } else {
        parent[key] = value;
    }
    config
}

/// Checks that each (field, value) is refused, naming the field and the value.
pub(crate) fn check_refused(
    parse: impl Fn(&Value) -> Result<ModelConfig, CheckpointError>,
    good: &Value,
    cases: &[(&str, Value, &str)],
) {
    parse(good).unwrap();
    for (field, value, says) in cases {
        let error = parse(&with(good.clone(), field, value.clone())).expect_err(field);
        let message = error.to_string();
        let shown = if value.is_null() { "is missing".to_owned() } else { value.to_string() };
        for part in ["config.json", &format!("`{field}`"), &shown, says] {
            assert!(message.contains(part), "{field} = {value}: `{part}` is not in: {message}");
        }
    }
}

#[test]
fn sizes_are_whole_numbers_from_one_up() {
    let sizes = [
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
        "num_hidden_layers",
        "sliding_window",
        "max_position_embeddings",
        "num_local_experts",
        "num_experts_per_tok",
    ];
    // The other name of two fields would step in where the first is missing.
    let alone = with(good(), "experts_per_token", Value::Null);
    for field in sizes {
        let wrong = [
            json!(0),
            json!(-64),
            json!(64.5),
            json!("64"),
            json!(true),
            json!([64]),
            json!(1u64 << 40),
            Value::Null,
        ];
        let cases: Vec<_> = wrong.into_iter().map(|value| (field, value, "whole number")).collect();
        check_refused(parse, &alone, &cases);
    }
}

#[test]
fn every_other_field_is_refused_by_name() {
    check_refused(
        parse,
        &good(),
        &[
            ("hidden_size", json!(48), "a multiple of 32"),
            ("intermediate_size", json!(100), "a multiple of 32"),
            ("head_dim", json!(63), "even"),
            ("num_key_value_heads", json!(3), "a divisor of `num_attention_heads` (4)"),
            ("rms_norm_eps", json!(0), "above 0"),
            ("rms_norm_eps", json!(-1e-5), "above 0"),
            ("rms_norm_eps", json!(1e-60), "above 0"),
            ("rms_norm_eps", json!("1e-5"), "finite number"),
            ("swiglu_limit", json!(0.0), "above 0"),
            ("swiglu_limit", json!(1e60), "above 0"),
            ("swiglu_limit", json!([7]), "finite number"),
            ("swiglu_alpha", json!(1.5), "only 1.702"),
            ("attention_bias", json!("yes"), "true or false"),
            ("tie_word_embeddings", json!(1), "true or false"),
            ("hidden_act", json!("gelu"), "only `silu`"),
            ("hidden_act", json!(1), "a string"),
            ("model_type", json!("llama"), "only `gpt_oss`"),
            ("architectures", json!(["LlamaForCausalLM"]), "GptOssForCausalLM"),
            ("architectures", json!("GptOssForCausalLM"), "GptOssForCausalLM"),
            ("quantization_config", Value::Null, "MXFP4"),
            ("quantization_config", json!("mxfp4"), "an object"),
            ("quantization_config.quant_method", Value::Null, "must be `mxfp4`"),
            ("quantization_config.quant_method", json!("bitsandbytes"), "only `mxfp4` is"),
            ("layer_types", json!("sliding_attention"), "a list"),
            ("eos_token_id", json!("</s>"), "a token id"),
            ("eos_token_id", json!(-1), "a token id"),
            ("eos_token_id", json!([1, 4294967296u64]), "a token id"),
            ("eos_token_id", json!(1.5), "a token id"),
            ("rope_theta", Value::Null, "above 1"),
            ("rope_theta", json!(0), "above 1"),
            ("rope_theta", json!(1), "above 1"),
            ("rope_theta", json!(-150000.0), "above 1"),
            ("rope_theta", json!("150000"), "finite number"),
            ("partial_rotary_factor", json!(0.5), "whole heads"),
            ("rope_scaling", Value::Null, "rope_parameters"),
            ("rope_scaling", json!([]), "an object"),
            ("rope_scaling.rope_type", json!("llama3"), "only `yarn` and `default`"),
            ("rope_scaling.rope_type", json!("longrope"), "only `yarn` and `default`"),
            ("rope_scaling.rope_type", Value::Null, "`default` or `yarn`"),
            ("rope_scaling.factor", Value::Null, "a number"),
            ("rope_scaling.factor", json!(0.5), "from 1 up"),
            ("rope_scaling.beta_fast", json!(0.5), "above the slow one"),
            ("rope_scaling.beta_fast", json!(-32.0), "above 0"),
            ("rope_scaling.beta_slow", json!(0), "above 0"),
            ("rope_scaling.original_max_position_embeddings", json!(0), "whole number"),
            ("rope_scaling.truncate", json!("no"), "true or false"),
            ("rope_scaling.attention_factor", json!(-1), "above 0"),
            ("rope_scaling.mscale", json!("1"), "finite number"),
            ("rope_scaling.partial_rotary_factor", json!(0.5), "whole heads"),
            ("rope_scaling.full_attention", json!({"rope_type": "default"}), "all layers"),
        ],
    );
}

#[test]
fn what_depends_on_another_field_names_both() {
    let alone = with(good(), "experts_per_token", Value::Null);
    for (config, says) in [
        (
            with(alone.clone(), "num_experts_per_tok", json!(9)),
            "`num_experts_per_tok` is 9: at most `num_local_experts` (8)",
        ),
        (with(good(), "num_hidden_layers", json!(5000)), "at most 4096 layers"),
        (
            with(good(), "num_hidden_layers", json!(5)),
            "`layer_types` is a list of 4: `num_hidden_layers` is 5",
        ),
        (
            with(good(), "experts_per_token", json!(2)),
            "`num_experts_per_tok` is 4 but `experts_per_token` is 2",
        ),
        (with(good(), "num_experts", json!(16)), "`num_local_experts` is 8 but `num_experts` is 16"),
        (
            with(good(), "rope_scaling.rope_theta", json!(10000)),
            "`rope_theta` is 150000 but `rope_scaling.rope_theta` is 10000",
        ),
        (
            with(good(), "rope_scaling.type", json!("linear")),
            "`rope_scaling.rope_type` is \"yarn\" but `rope_scaling.type` is \"linear\"",
        ),
        (with(good(), "rope_parameters", json!({"rope_type": "default"})), "but `rope_scaling` is"),
        (
            with(
                good(),
                "layer_types",
                json!(["full_attention", "full_attention", "chunked_attention", "full_attention"]),
            ),
            "`layer_types[2]` is \"chunked_attention\"",
        ),
        (
            with(with(good(), "rope_scaling.mscale", json!(-20)), "rope_scaling.mscale_all_dim", json!(1)),
            "`rope_scaling.mscale` is -20: with `mscale_all_dim`",
        ),
    ] {
        let message = parse(&config).expect_err(says).to_string();
        assert!(message.starts_with("config.json: ") && message.contains(says), "{message}");
    }
}

#[test]
fn null_rope_means_two_things_and_is_refused() {
    let mut config = good();
    config["rope_scaling"] = Value::Null;
    let message = parse(&config).unwrap_err().to_string();
    assert!(message.contains("`rope_scaling` is null: write it out"), "{message}");
}

#[test]
fn products_may_not_overflow() {
    for fields in [
        [("hidden_size", 1 << 30), ("num_attention_heads", 1 << 30), ("head_dim", 1 << 30)],
        [("hidden_size", 1 << 30), ("intermediate_size", 1 << 30), ("num_local_experts", 1 << 30)],
        [("hidden_size", 1 << 30), ("vocab_size", 1 << 30), ("num_key_value_heads", 1)],
    ] {
        let config = fields.iter().fold(good(), |config, (field, size)| with(config, field, json!(size)));
        let error = parse(&config).unwrap_err();
        assert!(matches!(error, InvalidField { .. }) && error.to_string().contains("bytes"), "{error}");
    }
}

#[test]
fn either_name_of_experts_is_read() {
    let config = with(with(good(), "num_local_experts", Value::Null), "num_experts", json!(8));
    let config = with(config, "num_experts_per_tok", Value::Null);
    assert_eq!(parse(&config).unwrap(), parse(&good()).unwrap());
}

#[test]
fn defaults_are_those_of_gpt_oss() {
    let optional = [
        "swiglu_limit",
        "rms_norm_eps",
        "attention_bias",
        "tie_word_embeddings",
        "hidden_act",
        "layer_types",
        "architectures",
        "experts_per_token",
    ];
    let config = optional.iter().fold(good(), |config, field| with(config, field, Value::Null));
    assert_eq!(parse(&config).unwrap(), parse(&good()).unwrap());
    let unknown = with(good(), "some_new_key", json!({"deep": [1, 2, 3]}));
    assert_eq!(parse(&unknown).unwrap(), parse(&good()).unwrap());
}

#[test]
fn every_field_reaches_the_geometry() {
    let changed = |field: &str, value: Value| parse(&with(good(), field, value)).unwrap();
    assert_eq!(changed("sliding_window", json!(1)).window(), Some(1));
    assert_eq!(changed("rms_norm_eps", json!(1e-6)).rms_norm_eps, 1e-6);
    assert_eq!(changed("swiglu_limit", json!(3)).swiglu_limit, 3.0);
    assert!(!changed("attention_bias", json!(false)).attention_bias);
    assert!(changed("tie_word_embeddings", json!(true)).tie_word_embeddings);
    assert_eq!(changed("vocab_size", json!(513)).vocab_size, 513);
    assert_eq!(changed("head_dim", json!(2)).rope.head_dim, 2);
    assert_eq!(changed("rope_theta", json!(1e4)).rope.theta, 1e4);
    let full = json!(["full_attention", "full_attention", "full_attention", "sliding_attention"]);
    assert_eq!(changed("layer_types", full).windows, [None, None, None, Some(128)]);
}

#[test]
fn a_window_is_needed_only_where_a_layer_slides() {
    let full = with(good(), "layer_types", json!(vec!["full_attention"; 4]));
    let config = parse(&with(full, "sliding_window", Value::Null)).unwrap();
    assert_eq!((config.windows.len(), config.window()), (4, None));
}

#[test]
fn rope_is_read_as_transformers_does() {
    let yarn = |field: &str, value: Value| {
        parse(&with(good(), &format!("rope_scaling.{field}"), value)).unwrap().rope.yarn.unwrap()
    };
    assert!(yarn("truncate", Value::Null).truncate, "transformers' default");
    assert_eq!(yarn("beta_fast", Value::Null).beta_fast, 32.0);
    assert_eq!(yarn("beta_slow", Value::Null).beta_slow, 1.0);
    assert_eq!(yarn("original_max_position_embeddings", Value::Null).original_context, 131072.0);
    assert_eq!(yarn("factor", json!(1)).attention_factor, 1.0);
    assert_eq!(yarn("factor", json!(8.0)).attention_factor, 0.1 * 8f64.ln() + 1.0);
    assert_eq!(yarn("attention_factor", json!(1.25)).attention_factor, 1.25);
    assert_eq!(yarn("mscale", json!(2.0)).attention_factor, 0.1 * 32f64.ln() + 1.0, "one mscale is ignored");

    let both =
        with(with(good(), "rope_scaling.mscale", json!(2.0)), "rope_scaling.mscale_all_dim", json!(1.0));
    let expected = (0.2 * 32f64.ln() + 1.0) / (0.1 * 32f64.ln() + 1.0);
    assert_eq!(parse(&both).unwrap().rope.yarn.unwrap().attention_factor, expected);

    for kind in ["default", "none"] {
        let plain = with(good(), "rope_scaling", json!({"rope_type": kind}));
        assert_eq!(parse(&plain).unwrap().rope.yarn, None);
    }
    let older = with(with(good(), "rope_scaling.type", json!("yarn")), "rope_scaling.rope_type", Value::Null);
    assert_eq!(parse(&older).unwrap(), parse(&good()).unwrap());
}

#[test]
fn transformers_5_keeps_theta_in_rope_parameters() {
    let mut config = good();
    let mut parameters = config["rope_scaling"].take();
    parameters["rope_theta"] = 150000.0.into();
    config.as_object_mut().unwrap().remove("rope_theta");
    config["rope_parameters"] = parameters.clone();
    assert_eq!(parse(&config).unwrap(), parse(&good()).unwrap());

    config["rope_scaling"] = parameters;
    assert_eq!(parse(&config).unwrap(), parse(&good()).unwrap(), "both, and alike");
}

#[test]
fn the_generation_config_names_the_end() {
    let parse = |generation: &str| ModelConfig::from_hugging_face(&good().to_string(), Some(generation));
    assert_eq!(parse(r#"{"eos_token_id": [509, 511, 509]}"#).unwrap().eos_token_ids, [509, 511]);
    assert_eq!(parse(r#"{"eos_token_id": 7}"#).unwrap().eos_token_ids, [7]);
    for nothing in ["{}", r#"{"eos_token_id": null}"#, r#"{"eos_token_id": []}"#] {
        assert_eq!(parse(nothing).unwrap().eos_token_ids, [509], "{nothing}");
    }
    let error = parse(r#"{"eos_token_id": "end"}"#).unwrap_err().to_string();
    assert!(error.starts_with("generation_config.json: field `eos_token_id` is \"end\""), "{error}");
}
