//! Any bytes are a request or an error that is the client's, at both
//! completions endpoints; what is accepted renders and keeps to the limits.
//! Seeds: the harmony fixtures' conversations as request bodies; words:
//! `chat_request.dict`.

#![no_main]

use chorale_api::ApiError;
use chorale_api::generation::{Generation, Input};
use chorale_api::openai::{Limits, SystemDate, parse_chat, parse_completion};
use chorale_harmony::{TokenId, Tokenizer, VOCABULARY_SIZE, render_for_completion};
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static LIMITS: LazyLock<Limits> = LazyLock::new(|| Limits {
    models: vec!["gpt-oss".to_owned(), "alias".to_owned()],
    vocabulary_size: VOCABULARY_SIZE,
    max_choices: 16,
    max_tools: 8,
    system_date: SystemDate::Fixed("2025-06-28".to_owned()),
});

fuzz_target!(|body: &[u8]| {
    match parse_chat(body, &LIMITS) {
        Ok(chat) => check(&chat.generation, &chat.reply.model),
        Err(error) => refused(&error),
    }
    match parse_completion(body, &LIMITS) {
        Ok(text) => check(&text.generation, &text.reply.model),
        Err(error) => refused(&error),
    }
});

fn refused(error: &ApiError) {
    assert!(error.status().is_client_error(), "{error}");
    let body = serde_json::to_string(&error.body()).expect("an error is JSON");
    assert!(body.contains("\"message\":"), "{body}");
}

fn check(generation: &Generation, model: &str) {
    assert!(LIMITS.models.iter().any(|name| name == model), "{model:?}");
    assert!(generation.n.get() <= LIMITS.max_choices);
    assert!(generation.stops.iter().all(|stop| !stop.is_empty()));
    assert!(is_known(&generation.stop_token_ids));
    assert!(generation.max_tokens.is_none_or(|max| generation.min_tokens <= max.get()));
    let sampling = &generation.sampling;
    assert!(sampling.temperature.is_finite() && sampling.temperature >= 0.0);
    assert!(sampling.top_p > 0.0 && sampling.top_p <= 1.0);
    match &generation.input {
        Input::Conversation { conversation, options } => {
            let prompt = render_for_completion(conversation, options).expect("what was accepted renders");
            assert!(!prompt.is_empty() && is_known(&prompt));
        }
        Input::Prompts(prompts) => {
            assert!(!prompts.is_empty());
            assert!(prompts.iter().all(|prompt| !prompt.is_empty() && is_known(prompt)));
        }
    }
}

fn is_known(tokens: &[TokenId]) -> bool {
    tokens.iter().all(|&token| Tokenizer::shared().token_bytes(token).is_some() || token < VOCABULARY_SIZE)
}
