//! Text completions: prompts of every form, echo, the older log-probabilities.

use super::scripted::{TestServer, tokens};
use serde_json::{Value, json};

fn ask(more: Value) -> Value {
    let mut body = json!({"model": "gpt-oss", "prompt": "Once upon", "max_tokens": 100});
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

#[tokio::test]
async fn text_is_continued_and_markup_left_out() {
    let script = " a time<|end|> there<|return|>";
    let server = TestServer::new(&[script]);
    let body = server.completion(ask(json!({}))).await;
    assert!(body["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!(body["object"], "text_completion");
    let expected = json!([{"index": 0, "text": " a time there", "logprobs": null, "finish_reason": "stop"}]);
    assert_eq!(body["choices"], expected);
    assert_eq!(body["usage"]["completion_tokens"], tokens(script).len());
    let spelled = server.completion(ask(json!({"skip_special_tokens": false}))).await;
    assert_eq!(spelled["choices"][0]["text"], " a time<|end|> there");
}

#[tokio::test]
async fn sixteen_tokens_are_enough_for_who_does_not_say() {
    let server = TestServer::new(&[&" word".repeat(100)]);
    let body = server.completion(json!({"prompt": "x"})).await;
    assert_eq!(body["usage"]["completion_tokens"], 16);
    assert_eq!(body["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn every_form_of_prompt_is_a_prompt() {
    let server = TestServer::new(&["ok<|return|>"]);
    let num_choices = |body: Value| body["choices"].as_array().map_or(0, Vec::len);
    for (prompt, choices) in [
        (json!("a"), 1),
        (json!(["a", "b"]), 2),
        (json!([1, 2, 3]), 1),
        (json!([[1, 2], [3]]), 2),
        (json!(["a", [3]]), 2),
    ] {
        let body = server.completion(ask(json!({"prompt": prompt}))).await;
        assert_eq!(num_choices(body), choices, "{prompt}");
    }
    let spelled = server.completion(ask(json!({"prompt": "<|start|>assistant"}))).await;
    assert_eq!(spelled["usage"]["prompt_tokens"], 2);
}

#[tokio::test]
async fn an_echo_stands_before_each_answer() {
    let server = TestServer::new(&[" x<|return|>", " y<|return|>"]);
    let more = json!({"prompt": ["A", "B"], "n": 2, "echo": true});
    let body = server.completion(ask(more.clone())).await;
    let texts: Vec<&Value> =
        body["choices"].as_array().unwrap().iter().map(|choice| &choice["text"]).collect();
    assert_eq!(texts, ["A x", "A y", "B x", "B y"]);
    let mut streamed = ask(more);
    streamed["stream"] = json!(true);
    let mut folded = vec![String::new(); 4];
    for chunk in server.completion_stream(streamed).await {
        let choice = &chunk["choices"][0];
        folded[choice["index"].as_u64().unwrap() as usize] += choice["text"].as_str().unwrap();
    }
    assert_eq!(folded, ["A x", "A y", "B x", "B y"]);
}

#[tokio::test]
async fn log_probabilities_have_their_older_shape() {
    let server = TestServer::new(&[" a time€<|return|>"]);
    let body = server.completion(ask(json!({"logprobs": 1}))).await;
    let logprobs = &body["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"], json!([" a", " time", "€"]));
    assert_eq!(logprobs["text_offset"], json!([0, 2, 7]));
    assert_eq!(logprobs["token_logprobs"], json!([-0.25, -0.5, -0.75]));
    let first = logprobs["top_logprobs"][0].as_object().unwrap();
    assert_eq!(first.len(), 2, "the likeliest and the sampled one");

    let mut streamed = ask(json!({"logprobs": 1}));
    streamed["stream"] = json!(true);
    let mut offsets = Vec::new();
    for chunk in server.completion_stream(streamed).await {
        let chunk = chunk["choices"][0]["logprobs"]["text_offset"].as_array().cloned().unwrap_or_default();
        offsets.extend(chunk);
    }
    assert_eq!(json!(offsets), logprobs["text_offset"]);
}

#[tokio::test]
async fn stop_strings_cut_here_too() {
    let server = TestServer::new(&[" one two three four"]);
    let body = server.completion(ask(json!({"stop": ["ee f"]}))).await;
    let choice = &body["choices"][0];
    assert_eq!((&choice["text"], &choice["stop_reason"]), (&json!(" one two thr"), &json!("ee f")));
}
