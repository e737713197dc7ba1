//! Streamed and whole answers say the same, whatever the model does and the
//! client asks for.

use super::scripted::{TestServer, ask, fold_chat};
use chorale_harmony::{TokenId, Tokenizer, special};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Pieces of which scripts are made: markup, words, halves of characters.
fn piece() -> impl Strategy<Value = Vec<TokenId>> {
    let spelled = |text: &'static str| Just(Tokenizer::shared().encode_with_specials(text));
    prop_oneof![
        3 => spelled("<|channel|>final<|message|>"),
        2 => spelled("<|channel|>analysis<|message|>"),
        1 => spelled("<|channel|>commentary<|message|>"),
        2 => spelled("<|channel|>commentary to=functions.f <|constrain|>json<|message|>"),
        2 => spelled("<|end|><|start|>assistant"),
        6 => spelled("ab"),
        3 => spelled(" bc a"),
        2 => spelled("{\"a\": 1}"),
        1 => spelled("<|call|>"),
        1 => spelled("<|return|>"),
        1 => (200_000u32..200_020).prop_map(|token| vec![token]),
        3 => (0u32..1000).prop_map(|token| vec![token]),
        1 => Just(Tokenizer::shared().encode_text("👩‍🚀")),
        1 => Just(vec![special::MESSAGE]),
    ]
}

fn request() -> impl Strategy<Value = Value> {
    (
        prop::option::of(1u32..24),
        prop::collection::vec("[abc]{1,3}", 0..3),
        any::<bool>(),
        1u32..4,
        any::<bool>(),
        prop::option::of(any::<bool>()),
        0u32..4,
    )
        .prop_map(|(max_tokens, stop, logprobs, n, has_reasoning, parallel, min_tokens)| {
            let min_tokens = min_tokens.min(max_tokens.unwrap_or(u32::MAX));
            let mut body = ask(json!({
                "logprobs": logprobs, "n": n, "include_reasoning": has_reasoning, "min_tokens": min_tokens,
                "parallel_tool_calls": parallel, "max_tokens": max_tokens,
            }));
            if !stop.is_empty() {
                body["stop"] = json!(stop);
            }
            body
        })
}

/// What differs from answer to answer by design, made equal, and what streams
/// cannot express.
fn comparable(body: &Value) -> Value {
    let mut choices = body["choices"].clone();
    for choice in choices.as_array_mut().unwrap() {
        let message = choice["message"].as_object_mut().unwrap();
        let calls = message.entry("tool_calls").or_insert(json!([]));
        for call in calls.as_array_mut().unwrap() {
            assert!(call["id"].as_str().unwrap().starts_with("chatcmpl-tool-"));
            call["id"] = json!("id");
        }
        // A stream's content begins with the empty text.
        if message["content"].is_null() {
            message.insert("content".into(), json!(""));
        }
        for key in ["reasoning", "reasoning_content"] {
            message.entry(key).or_insert(json!(""));
        }
        if choice["logprobs"].is_null() {
            choice["logprobs"] = json!({"content": []});
        }
    }
    let mut usage = body["usage"].clone();
    // The second answer finds the first one's prompt in the cache.
    usage["prompt_tokens_details"]["cached_tokens"] = json!(0);
    json!({"choices": choices, "usage": usage})
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_folded_stream_is_the_whole_answer(
        script in prop::collection::vec(piece(), 0..14),
        opens_well in any::<bool>(),
        mut request in request(),
    ) {
        let opening = if opens_well { "<|channel|>final<|message|>" } else { "" };
        let opening = Tokenizer::shared().encode_with_specials(opening);
        let script: Vec<TokenId> = opening.into_iter().chain(script.into_iter().flatten()).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (whole, folded) = runtime.block_on(async {
            let whole = TestServer::of_tokens(vec![script.clone()]).chat(request.clone()).await;
            request["stream"] = json!(true);
            request["stream_options"] = json!({"include_usage": true});
            let chunks = TestServer::of_tokens(vec![script]).chat_stream(request.clone()).await;
            (whole, fold_chat(&chunks))
        });
        prop_assert!(whole.get("error").is_none(), "{}", whole);
        prop_assert_eq!(comparable(&whole), comparable(&folded));
        for choice in whole["choices"].as_array().unwrap() {
            let message = &choice["message"];
            let has_calls = message.get("tool_calls").is_some();
            // Beside calls an empty content is null, whatever ended the answer.
            let has_content = message["content"].is_string() || has_calls;
            prop_assert!(choice["finish_reason"] != "stop" || has_content);
            prop_assert!(choice["finish_reason"] != "tool_calls" || has_calls);
        }
    }
}
