//! How answers end: stops, limits, mistakes of the model, clients that leave.

use std::time::Duration;

use super::scripted::{CONTEXT, TestServer, ask, events, fold_chat, limits, read, text, tokens};
use crate::error::ApiError;
use crate::generation::Answer;
use crate::openai::parse_chat;
use axum::body::to_bytes;
use futures_util::StreamExt;
use serde_json::{Value, json};

fn script(content: &str) -> String {
    format!("<|channel|>final<|message|>{content}<|return|>")
}

#[tokio::test]
async fn a_stop_string_cuts_across_tokens_and_cancels() {
    let long = script(&format!("one two STOP{}", " more".repeat(1000)));
    let server = TestServer::new(&[&long]);
    for stream in [false, true] {
        let body = ask(json!({"stop": ["o STO", "never"], "stream": stream}));
        let body = match stream {
            false => server.chat(body).await,
            true => fold_chat(&server.chat_stream(body).await),
        };
        let choice = &body["choices"][0];
        assert_eq!(choice["message"]["content"], "one tw");
        assert_eq!((&choice["finish_reason"], &choice["stop_reason"]), (&json!("stop"), &json!("o STO")));
    }
    server.idle().await;
    let rows = server.openai.generator().engine().stats().num_rows;
    assert!(rows < 500, "the sequences were cancelled: {rows}");
}

#[tokio::test]
async fn reasoning_and_arguments_do_not_stop() {
    let server = TestServer::new(&[
        "<|channel|>analysis<|message|>STOP<|end|><|start|>assistant<|channel|>commentary to=functions.f \
         <|constrain|>json<|message|>{\"a\":\"STOP\"}<|call|>",
    ]);
    let body = server.chat(ask(json!({"stop": "STOP"}))).await;
    let choice = &body["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(choice["message"]["tool_calls"][0]["function"]["arguments"], "{\"a\":\"STOP\"}");
}

#[tokio::test]
async fn a_stop_may_stay_and_waits_for_min_tokens() {
    let server = TestServer::new(&[&script("a b a b")]);
    let stayed = server.chat(ask(json!({"stop": " b", "include_stop_str_in_output": true}))).await;
    assert_eq!(stayed["choices"][0]["message"]["content"], "a b");
    let waited = server.chat(ask(json!({"stop": " b", "min_tokens": 6}))).await;
    assert_eq!(waited["choices"][0]["message"]["content"], "a b a");
}

#[tokio::test]
async fn a_stop_token_is_no_text() {
    let server = TestServer::new(&[&script("one two three")]);
    let two = tokens(" two")[0];
    let body = server.chat(ask(json!({"stop_token_ids": [two]}))).await;
    let choice = &body["choices"][0];
    assert_eq!(choice["message"]["content"], "one");
    assert_eq!((&choice["finish_reason"], &choice["stop_reason"]), (&json!("stop"), &json!(two)));
}

#[tokio::test]
async fn a_cut_call_is_flushed_and_ends_by_length() {
    let call = "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{\"city\":\"Oslo\"}<|call|>";
    let cut = tokens(call).len() - 3;
    let server = TestServer::new(&[call]);
    for stream in [false, true] {
        let body = ask(json!({"max_tokens": cut, "stream": stream}));
        let body = match stream {
            false => server.chat(body).await,
            true => fold_chat(&server.chat_stream(body).await),
        };
        let choice = &body["choices"][0];
        assert_eq!(choice["finish_reason"], "length");
        let arguments = choice["message"]["tool_calls"][0]["function"]["arguments"].as_str().unwrap();
        assert!("{\"city\":\"Oslo\"}".starts_with(arguments) && !arguments.is_empty(), "{arguments}");
    }
}

#[tokio::test]
async fn without_a_limit_the_context_is_one() {
    let server = TestServer::new(&[&script(&" word".repeat(CONTEXT as usize))]);
    let body = server.chat(ask(json!({}))).await;
    assert_eq!(body["choices"][0]["finish_reason"], "length");
    assert_eq!(body["usage"]["total_tokens"], CONTEXT);
    let huge = server.chat(ask(json!({"max_completion_tokens": 4_000_000_000u32}))).await;
    assert_eq!(huge["usage"]["total_tokens"], CONTEXT);
}

#[tokio::test]
async fn what_the_model_gets_wrong_is_an_answer_nevertheless() {
    let cases = [
        // No markup at all.
        ("Just text<|return|>", "Just text", "stop"),
        // No channel.
        ("<|message|>Hi<|return|>", "Hi", "stop"),
        // Nothing.
        ("<|return|>", "", "stop"),
        // An answer that ends as a call.
        ("<|channel|>final<|message|>Hi<|call|>", "Hi", "stop"),
        // Only thinking.
        ("<|channel|>analysis<|message|>Hm<|return|>", "", "stop"),
        // A preamble is for the user.
        (
            "<|channel|>commentary<|message|>Wait.<|end|><|start|>assistant<|channel|>final<|message|> Ok<|return|>",
            "Wait. Ok",
            "stop",
        ),
        // A channel that does not exist.
        ("<|channel|>finale<|message|>Hi<|return|>", "Hi", "stop"),
        // A message inside of a message.
        ("<|channel|>analysis<|message|>Hm<|channel|>final<|message|>Hi<|return|>", "Hi", "stop"),
        // Somebody else's message.
        (
            "<|start|>user<|message|>I?<|end|><|start|>assistant<|channel|>final<|message|>Hi<|return|>",
            "Hi",
            "stop",
        ),
    ];
    for (script, content, finish) in cases {
        let server = TestServer::new(&[script]);
        let body = server.chat(ask(json!({}))).await;
        let choice = &body["choices"][0];
        assert_eq!(choice["message"]["content"], content, "{script}");
        assert_eq!(choice["finish_reason"], finish, "{script}");
    }
}

#[tokio::test]
async fn calls_are_calls_however_they_are_written() {
    let cases = [
        "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>",
        " to=functions.f<|channel|>commentary <|constrain|>json<|message|>{}<|call|>",
        "<|channel|>commentary to=functions.f<|message|>{}<|call|>",
        "<|channel|>analysis to=functions.f <|constrain|>json<|message|>{}<|call|>",
        "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|return|>",
    ];
    for script in cases {
        let server = TestServer::new(&[script]);
        let choice = server.chat(ask(json!({}))).await["choices"][0].clone();
        let call = &choice["message"]["tool_calls"][0]["function"];
        assert_eq!(call, &json!({"name": "f", "arguments": "{}"}), "{script}");
        assert_eq!(choice["finish_reason"], "tool_calls", "{script}");
    }
}

#[tokio::test]
async fn one_call_is_enough_where_no_more_are_wanted() {
    let call = |name: &str, end: &str| {
        format!("<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{{}}{end}")
    };
    let script = call("f", "<|end|><|start|>assistant") + &call("g", "<|call|>");
    let server = TestServer::new(&[&script]);
    let names = |body: &Value| -> Vec<String> {
        let calls = body["choices"][0]["message"]["tool_calls"].as_array().unwrap();
        calls.iter().map(|call| call["function"]["name"].as_str().unwrap().to_owned()).collect()
    };
    let both = server.chat(ask(json!({}))).await;
    assert_eq!(names(&both), ["f", "g"]);
    let one = server.chat(ask(json!({"parallel_tool_calls": false}))).await;
    assert_eq!(names(&one), ["f"]);
    assert_eq!(one["choices"][0]["finish_reason"], "tool_calls");
}

#[tokio::test]
async fn generation_goes_past_a_call_where_several_are_asked_for() {
    let call = |name: &str| {
        format!("<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{{}}<|call|>")
    };
    let script = call("f") + "<|start|>assistant" + &call("g") + "<|return|>";
    let server = TestServer::new(&[&script]);
    let tool = |name: &str| json!({"type": "function", "function": {"name": name}});
    let tools = json!([tool("f"), tool("g")]);
    let mut body = ask(json!({"tools": tools, "parallel_tool_calls": true}));
    let choice = server.chat(body.clone()).await["choices"][0].clone();
    assert_eq!(choice["message"]["tool_calls"].as_array().map(Vec::len), Some(2), "{choice}");
    assert_eq!(choice["finish_reason"], "tool_calls");
    body["parallel_tool_calls"] = Value::Null;
    let choice = server.chat(body).await["choices"][0].clone();
    assert_eq!(choice["message"]["tool_calls"].as_array().map(Vec::len), Some(1), "{choice}");
}

#[tokio::test]
async fn a_deadline_ends_what_nobody_waits_for() {
    let endless = tokens(&script(&" word".repeat(1500)));
    let server = TestServer::with(vec![endless], Duration::from_millis(1), Duration::from_secs(5), 64);
    let mut generation = parse_chat(ask(json!({})).to_string().as_bytes(), &limits()).unwrap().generation;
    generation.deadline = Some(tokio::time::Instant::now() + Duration::from_millis(60));
    let started = server.openai.generator().start(generation, TestServer::request(), "test").await;
    let Ok(mut stream) = started else { panic!("not started") };
    let error = Answer::collect(&mut stream).await.unwrap_err();
    assert_eq!((error.clone(), error.status().as_u16()), (ApiError::DeadlineExceeded, 504));
    assert!(stream.next().await.is_none());
    server.idle().await;
}

#[tokio::test]
async fn a_client_that_leaves_cancels() {
    let endless = script(&" word".repeat(1500));
    let server =
        TestServer::with(vec![tokens(&endless)], Duration::from_millis(1), Duration::from_secs(5), 64);
    let response = server.post_chat(ask(json!({"stream": true})).to_string()).await;
    let mut body = response.into_body().into_data_stream();
    for _ in 0..5 {
        body.next().await.unwrap().unwrap();
    }
    drop(body);
    server.idle().await;
    assert!(server.openai.generator().engine().stats().num_steps < 1000);
    assert_eq!(server.seen.0.lock().unwrap().last().unwrap(), "finished abort");

    let mut waiting = Box::pin(server.post_chat(ask(json!({})).to_string()));
    let waited = tokio::time::timeout(Duration::from_millis(50), &mut waiting).await;
    assert!(waited.is_err());
    drop(waiting);
    server.idle().await;
}

#[tokio::test]
async fn a_request_can_be_cancelled_by_its_id() {
    let endless = script(&" word".repeat(1500));
    let server =
        TestServer::with(vec![tokens(&endless)], Duration::from_millis(1), Duration::from_secs(5), 64);
    let requests = crate::Requests::new(4);
    let caller = crate::Caller::anonymous();
    for stream in [true, false] {
        let account = std::sync::Arc::new(crate::auth::Account::unlimited(caller.clone()));
        let guard = requests.register("r7", account).unwrap();
        let body = ask(json!({"stream": stream})).to_string();
        let answer = server.openai.chat_completions(guard.request().clone(), body.into());
        let cancel = async {
            tokio::time::sleep(Duration::from_millis(40)).await;
            assert_eq!(requests.cancel("chatcmpl-r7", &caller), 1);
        };
        let read_all = async {
            let response = answer.await;
            (response.status().as_u16(), text(response).await)
        };
        let ((status, body), ()) = tokio::join!(read_all, cancel);
        let error = match stream {
            true => events(&body).pop().unwrap(),
            false => serde_json::from_str(&body).unwrap(),
        };
        assert_eq!((status, &error["error"]["code"]), (if stream { 200 } else { 499 }, &json!("cancelled")));
    }
    server.idle().await;
}

#[tokio::test]
async fn silence_is_filled_with_comments() {
    let server = TestServer::with(
        vec![tokens(&script("Hi"))],
        Duration::from_millis(120),
        Duration::from_millis(30),
        64,
    );
    let response = server.post_chat(ask(json!({"stream": true})).to_string()).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
    let stream = text(response).await;
    assert!(stream.starts_with(": keep-alive\n\n") && stream.ends_with("data: [DONE]\n\n"), "{stream}");
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_back() {
    let server =
        TestServer::with(vec![tokens(&script("Hi"))], Duration::from_millis(5), Duration::from_secs(5), 2);
    let response = server.post_chat(ask(json!({"n": 8})).to_string()).await;
    assert_eq!(response.status(), 429);
    assert!(response.headers().contains_key("retry-after"));
    let (_, body) = read(response).await;
    assert_eq!(body["error"]["type"], "rate_limit_error");
    server.idle().await;
    assert_eq!(server.chat(ask(json!({}))).await["choices"][0]["message"]["content"], "Hi");
}

#[tokio::test]
async fn an_engine_that_fails_in_a_stream_says_so_and_closes() {
    let server =
        TestServer::with(vec![tokens(&script("Hi"))], Duration::from_millis(20), Duration::from_secs(5), 64);
    let response = server.post_chat(ask(json!({"stream": true})).to_string()).await;
    server.openai.generator().engine().stop().await;
    let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
    let last = events(std::str::from_utf8(&body).unwrap()).pop().unwrap();
    assert_eq!(last["error"]["code"], "engine_failed");
    let after = server.post_chat(ask(json!({})).to_string()).await;
    assert_eq!(after.status(), 503);
}
