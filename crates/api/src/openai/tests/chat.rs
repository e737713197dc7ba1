//! Chat completions, streamed and not: shapes, channels, usage.

use super::scripted::{TestServer, ask, fold_chat, read};
use serde_json::{Value, json};

const ANSWER: &str = "<|channel|>analysis<|message|>We need it.<|end|>\
    <|start|>assistant<|channel|>final<|message|>Hello there<|return|>";
const CALL: &str = "<|channel|>analysis<|message|>Look.<|end|>\
    <|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>\
    {\"city\":\"Oslo\"}<|call|>";

fn tools() -> Value {
    json!([{"type": "function", "function": {"name": "get_weather", "description": "Weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}])
}

#[tokio::test]
async fn an_answer_has_reasoning_twice_and_content_once() {
    let server = TestServer::new(&[ANSWER]);
    let body = server.chat(ask(json!({"request_id": "mine"}))).await;
    assert_eq!(body["id"], "chatcmpl-mine");
    assert_eq!((&body["object"], &body["model"]), (&json!("chat.completion"), &json!("gpt-oss")));
    let expected = json!([{
        "index": 0,
        "message": {"role": "assistant", "content": "Hello there",
            "reasoning": "We need it.", "reasoning_content": "We need it."},
        "logprobs": null,
        "finish_reason": "stop",
    }]);
    assert_eq!(body["choices"], expected);
    let usage = &body["usage"];
    assert_eq!(usage["completion_tokens"], super::scripted::tokens(ANSWER).len());
    assert_eq!(usage["completion_tokens_details"]["reasoning_tokens"], 4);
    let sum = usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap();
    assert_eq!(usage["total_tokens"], sum);
}

#[tokio::test]
async fn a_stream_begins_with_the_role_and_ends_with_the_reason() {
    let server = TestServer::new(&[ANSWER]);
    let chunks = server.chat_stream(ask(json!({"stream": true}))).await;
    let first = json!([{"index": 0, "delta": {"role": "assistant", "content": ""},
        "logprobs": null, "finish_reason": null}]);
    assert_eq!(chunks[0]["choices"], first);
    let thought = json!([{"index": 0, "delta": {"reasoning": "We", "reasoning_content": "We"},
        "logprobs": null, "finish_reason": null}]);
    assert_eq!(chunks[1]["choices"], thought);
    let last = json!([{"index": 0, "delta": {}, "logprobs": null, "finish_reason": "stop"}]);
    assert_eq!(chunks.last().unwrap()["choices"], last);
    assert!(chunks.iter().all(|chunk| chunk["object"] == "chat.completion.chunk"));
    assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()));
}

#[tokio::test]
async fn usage_comes_last_if_asked_for_and_is_null_before() {
    let server = TestServer::new(&[ANSWER]);
    let options = json!({"stream": true, "stream_options": {"include_usage": true}});
    let chunks = server.chat_stream(ask(options)).await;
    let (last, others) = chunks.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], super::scripted::tokens(ANSWER).len());
    assert!(others.iter().all(|chunk| chunk.get("usage") == Some(&Value::Null)));

    let options = json!({"stream": true, "stream_options": {"continuous_usage_stats": true}});
    let chunks = server.chat_stream(ask(options)).await;
    let counts: Vec<u64> =
        chunks.iter().map(|chunk| chunk["usage"]["completion_tokens"].as_u64().unwrap()).collect();
    assert!(counts.is_sorted() && counts[0] == 1, "{counts:?}");
}

#[tokio::test]
async fn what_was_computed_before_counts_as_cached() {
    let server = TestServer::new(&[ANSWER]);
    let long =
        ask(json!({"messages": [{"role": "user", "content": "word ".repeat(200)}], "stop": ["there"]}));
    let cached = |body: &Value| body["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    assert_eq!(cached(&server.chat(long.clone()).await), 0);
    let again = server.chat(long.clone()).await;
    assert!(cached(&again) > 100, "even where a stop string cancels the sequence: {again}");
    let mut salted = long;
    salted["cache_salt"] = json!("other");
    assert_eq!(cached(&server.chat(salted).await), 0);
}

#[tokio::test]
async fn a_call_has_an_id_and_its_result_finds_it() {
    let server = TestServer::new(&[CALL]);
    let body = server.chat(ask(json!({"tools": tools()}))).await;
    let choice = &body["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(choice["message"]["content"], Value::Null);
    assert_eq!(choice["message"]["reasoning"], "Look.");
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!(call["function"], json!({"name": "get_weather", "arguments": "{\"city\":\"Oslo\"}"}));
    let id = call["id"].as_str().unwrap();
    assert!(id.starts_with("chatcmpl-tool-"), "{id}");

    let mut round = ask(json!({"tools": tools()}));
    let messages = round["messages"].as_array_mut().unwrap();
    messages.push(choice["message"].clone());
    messages.push(json!({"role": "tool", "tool_call_id": id, "content": "rain"}));
    let answer = server.chat(round).await;
    assert_eq!(answer["object"], "chat.completion", "{answer}");
}

#[tokio::test]
async fn a_streamed_call_names_itself_once() {
    let server = TestServer::new(&[CALL]);
    let chunks = server.chat_stream(ask(json!({"stream": true, "tools": tools()}))).await;
    let deltas: Vec<&Value> = chunks
        .iter()
        .map(|chunk| &chunk["choices"][0])
        .filter(|choice| choice["delta"].get("tool_calls").is_some())
        .collect();
    let first = &deltas[0]["delta"]["tool_calls"][0];
    assert_eq!(first["function"], json!({"name": "get_weather", "arguments": ""}));
    assert_eq!((&first["index"], &first["type"]), (&json!(0), &json!("function")));
    assert!(deltas.iter().all(|choice| choice.get("logprobs").is_none()));
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
    let folded = fold_chat(&chunks);
    let arguments = &folded["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"];
    assert_eq!(arguments, "{\"city\":\"Oslo\"}");
}

#[tokio::test]
async fn reasoning_is_left_out_on_demand_and_still_counted() {
    let server = TestServer::new(&[ANSWER]);
    for more in [json!({"include_reasoning": false}), json!({"reasoning": {"exclude": true}})] {
        let body = server.chat(ask(more)).await;
        assert_eq!(body["choices"][0]["message"], json!({"role": "assistant", "content": "Hello there"}));
        assert_eq!(body["usage"]["completion_tokens_details"]["reasoning_tokens"], 4);
    }
}

#[tokio::test]
async fn choices_have_scripts_of_their_own_and_the_prompt_counts_once() {
    let final_of = |text: &str| format!("<|channel|>final<|message|>{text}<|return|>");
    let scripts = ["one", "two", "three"].map(final_of);
    let server = TestServer::new(&scripts.each_ref().map(String::as_str));
    let body = server.chat(ask(json!({"n": 3}))).await;
    let texts: Vec<&Value> =
        body["choices"].as_array().unwrap().iter().map(|choice| &choice["message"]["content"]).collect();
    assert_eq!(texts, ["one", "two", "three"]);
    let one = server.chat(ask(json!({}))).await;
    assert_eq!(body["usage"]["prompt_tokens"], one["usage"]["prompt_tokens"]);
    assert_eq!(body["usage"]["completion_tokens"], 15);
}

#[tokio::test]
async fn log_probabilities_are_those_of_the_content() {
    let server = TestServer::new(&[ANSWER]);
    let body = server.chat(ask(json!({"logprobs": true, "top_logprobs": 2}))).await;
    let content = body["choices"][0]["logprobs"]["content"].as_array().unwrap();
    let tokens: Vec<&Value> = content.iter().map(|entry| &entry["token"]).collect();
    assert_eq!(tokens, ["Hello", " there"]);
    assert_eq!(content[0]["bytes"], json!([72, 101, 108, 108, 111]));
    let top = content[0]["top_logprobs"].as_array().unwrap();
    assert_eq!((top.len(), &top[0]["logprob"]), (2, &json!(-0.5)));
    let own = content[0]["logprob"].as_f64().unwrap();
    assert!(own < 0.0);
}

#[tokio::test]
async fn a_name_that_is_not_served_is_not_found() {
    let server = TestServer::new(&[ANSWER]);
    let response = server.post_chat(ask(json!({"model": "gpt-5"})).to_string()).await;
    let (status, body) = read(response).await;
    assert_eq!(status, 404);
    assert_eq!(
        (&body["error"]["code"], &body["error"]["param"]),
        (&json!("model_not_found"), &json!("model"))
    );
    assert_eq!(server.chat(ask(json!({"model": "alias"}))).await["model"], "alias");
}

#[tokio::test]
async fn the_observer_sees_each_request_once() {
    let server = TestServer::new(&[ANSWER]);
    server.chat(ask(json!({}))).await;
    let seen = server.seen.0.lock().unwrap().join(", ");
    assert_eq!(seen, "accepted chat n=1, first, choice stop, finished stop");
}
