//! The door before an engine that reads from scripts, and a client that looks at
//! answers.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::to_bytes;
use axum::http::StatusCode;
use axum::response::Response;
use bytes::Bytes;
use chorale_harmony::TokenId;
use serde_json::{Value, json};

use crate::generation::{Accepted, Finished, FinishedChoice, Generator, Observer};
use crate::openai::OpenAi;
use crate::scripted;
pub(super) use crate::scripted::{CONTEXT, limits, tokens};
use crate::{ActiveRequest, Caller};

/// What the observer saw, as words.
#[derive(Default)]
pub(super) struct Seen(pub(super) Mutex<Vec<String>>);

impl Seen {
    fn add(&self, word: String) {
        self.0.lock().unwrap().push(word);
    }
}

impl Observer for Seen {
    fn accepted(&self, request: &Accepted<'_>) {
        self.add(format!("accepted {} n={}", request.door, request.n));
    }
    fn first_token(&self, _: Duration) {
        self.add("first".into());
    }
    fn choice_finished(&self, choice: &FinishedChoice<'_>) {
        self.add(format!("choice {}", choice.outcome.label()));
    }
    fn finished(&self, request: &Finished<'_>) {
        self.add(format!("finished {}", request.outcome.label()));
    }
}

/// A server without its shell.
pub(super) struct TestServer {
    pub(super) openai: OpenAi,
    pub(super) seen: Arc<Seen>,
}

impl TestServer {
    /// Each script is text with specials spelled.
    pub(super) fn new(scripts: &[&str]) -> Self {
        Self::of_tokens(scripts.iter().map(|script| tokens(script)).collect())
    }

    pub(super) fn of_tokens(scripts: Vec<Vec<TokenId>>) -> Self {
        Self::with(scripts, Duration::ZERO, Duration::from_secs(5), 64)
    }

    pub(super) fn with(
        scripts: Vec<Vec<TokenId>>,
        step_time: Duration,
        keep_alive: Duration,
        max_waiting_requests: u32,
    ) -> Self {
        let engine = scripted::start(scripts, step_time, max_waiting_requests);
        let seen = Arc::new(Seen::default());
        let generator = Generator::new(engine, CONTEXT, seen.clone());
        Self { openai: OpenAi::new(generator, limits(), keep_alive), seen }
    }

    pub(super) fn request() -> ActiveRequest {
        let caller = Caller { name: None, weight: NonZeroU32::MIN, ..Caller::anonymous() };
        ActiveRequest::new("r1", caller)
    }

    pub(super) async fn post_chat(&self, body: impl Into<Bytes>) -> Response {
        self.openai.chat_completions(Self::request(), body.into()).await
    }

    pub(super) async fn chat(&self, body: Value) -> Value {
        read(self.post_chat(body.to_string()).await).await.1
    }

    pub(super) async fn completion(&self, body: Value) -> Value {
        read(self.openai.completions(Self::request(), body.to_string().into()).await).await.1
    }

    pub(super) async fn chat_stream(&self, body: Value) -> Vec<Value> {
        events(&text(self.post_chat(body.to_string()).await).await)
    }

    pub(super) async fn completion_stream(&self, body: Value) -> Vec<Value> {
        let response = self.openai.completions(Self::request(), body.to_string().into()).await;
        events(&text(response).await)
    }

    /// Waits until no sequence is left in the engine.
    pub(super) async fn idle(&self) {
        scripted::idle(self.openai.generator().engine()).await;
    }
}

/// A chat request of one user message, and what else it says.
pub(super) fn ask(more: Value) -> Value {
    let mut body = json!({"model": "gpt-oss", "messages": [{"role": "user", "content": "Hi"}]});
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

pub(super) async fn text(response: Response) -> String {
    let body = to_bytes(response.into_body(), 1 << 24);
    let body = tokio::time::timeout(Duration::from_secs(20), body).await.expect("no end").unwrap();
    String::from_utf8(body.to_vec()).unwrap()
}

pub(super) async fn read(response: Response) -> (StatusCode, Value) {
    let status = response.status();
    (status, serde_json::from_str(&text(response).await).unwrap())
}

/// The chunks of a stream, which must end as it should.
pub(super) fn events(stream: &str) -> Vec<Value> {
    let lines = stream.split("\n\n").filter(|event| !event.is_empty() && !event.starts_with(':'));
    let mut data: Vec<&str> =
        lines.map(|event| event.strip_prefix("data: ").expect("only data and comments")).collect();
    if data.last() == Some(&"[DONE]") {
        data.pop();
    } else {
        assert!(data.last().is_some_and(|last| last.contains("\"error\"")), "{stream}");
    }
    data.into_iter().map(|event| serde_json::from_str(event).unwrap()).collect()
}

/// What a client makes of a chat stream: a body like the one without streaming.
pub(super) fn fold_chat(events: &[Value]) -> Value {
    let mut choices: BTreeMap<u64, Value> = BTreeMap::new();
    let mut usage = Value::Null;
    for event in events {
        if let Some(found) = event.get("usage").filter(|usage| !usage.is_null()) {
            usage = found.clone();
        }
        for chunk in event["choices"].as_array().unwrap() {
            let index = chunk["index"].as_u64().unwrap();
            let choice = choices.entry(index).or_insert_with(|| {
                json!({"index": index, "message": {"tool_calls": []}, "logprobs": null, "finish_reason": null})
            });
            fold_choice(choice, chunk);
        }
    }
    json!({"choices": choices.into_values().collect::<Vec<_>>(), "usage": usage})
}

fn fold_choice(choice: &mut Value, chunk: &Value) {
    assert_eq!(choice["finish_reason"], Value::Null, "nothing comes after the end: {chunk}");
    for (key, value) in chunk["delta"].as_object().unwrap() {
        let message = &mut choice["message"];
        match (key.as_str(), value) {
            ("tool_calls", Value::Array(calls)) => fold_call(&mut message["tool_calls"], &calls[0]),
            ("role", role) => message["role"] = role.clone(),
            (key, text) => {
                let so_far = message[key].as_str().unwrap_or_default().to_owned();
                message[key] = json!(so_far + text.as_str().unwrap());
            }
        }
    }
    if let Some(more) = chunk["logprobs"]["content"].as_array() {
        let mut all = choice["logprobs"]["content"].as_array().cloned().unwrap_or_default();
        all.extend(more.iter().cloned());
        choice["logprobs"] = json!({"content": all});
    }
    choice["finish_reason"] = chunk["finish_reason"].clone();
    if let Some(reason) = chunk.get("stop_reason") {
        choice["stop_reason"] = reason.clone();
    }
}

fn fold_call(calls: &mut Value, delta: &Value) {
    let calls = calls.as_array_mut().unwrap();
    let index = delta["index"].as_u64().unwrap() as usize;
    if let Some(id) = delta.get("id") {
        assert_eq!((index, &delta["type"]), (calls.len(), &json!("function")));
        let name = &delta["function"]["name"];
        calls.push(json!({"id": id, "type": "function", "function": {"name": name, "arguments": ""}}));
    } else {
        assert_eq!(
            delta.as_object().unwrap().len(),
            2,
            "later deltas have index and arguments only: {delta}"
        );
    }
    let so_far = calls[index]["function"]["arguments"].as_str().unwrap().to_owned();
    let more = delta["function"]["arguments"].as_str().unwrap();
    calls[index]["function"]["arguments"] = json!(so_far + more);
}
