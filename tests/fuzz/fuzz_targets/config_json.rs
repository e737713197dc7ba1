//! Any text is a configuration or an error, and one that is accepted can be
//! computed with. Seeds: the fixtures' `config.json`, of both kinds.

#![no_main]

use chorale_model::checkpoint::CheckpointError;
use chorale_model::config::ModelConfig;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    check(ModelConfig::from_hugging_face(text, Some(text)));
    check(ModelConfig::from_original(text, Some(text)));
});

fn check(config: Result<ModelConfig, CheckpointError>) {
    let config = match config {
        Ok(config) => config,
        Err(error) => return assert!(error.to_string().contains("config.json")),
    };
    assert!(config.hidden_size.is_multiple_of(32) && config.intermediate_size.is_multiple_of(32));
    assert!(config.head_dim.is_multiple_of(2));
    assert!(config.num_attention_heads.is_multiple_of(config.num_key_value_heads));
    assert!((1..=config.num_experts).contains(&config.experts_per_token));
    assert!(config.num_layers() > 0 && config.vocab_size > 0 && config.max_position_embeddings > 0);
    assert!(config.rms_norm_eps > 0.0 && config.swiglu_limit > 0.0 && config.rope.theta > 1.0);
    assert!(config.windows.iter().flatten().all(|&window| window > 0));
    if let Some(yarn) = config.rope.yarn {
        assert!(yarn.factor >= 1.0 && yarn.attention_factor > 0.0 && yarn.attention_factor.is_finite());
        assert!(yarn.beta_fast > yarn.beta_slow && yarn.beta_slow > 0.0 && yarn.original_context > 0.0);
    }
    // No product of what was accepted overflows.
    let weights = config.num_experts * config.intermediate_size * config.hidden_size * 3;
    let attention = config.query_size() * config.hidden_size * 8;
    assert!((weights + attention).checked_mul(config.num_layers()).is_some());
}
