//! A client that streams completions, and reads what the server says of itself.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::time::Duration;
use ureq::Agent;

/// No stream of ours may be silent for longer.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// What is asked.
#[derive(Clone, Debug)]
pub struct Question {
    /// The text to continue.
    pub prompt: String,
    /// Tokens to generate; the answer does not stop before.
    pub max_tokens: u32,
    /// 0 for greedy.
    pub temperature: f32,
    /// Decides the draw.
    pub seed: u64,
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The whole text.
    pub text: String,
    /// How many tokens were counted by the server.
    pub num_tokens: u64,
}

/// Asks one server.
#[derive(Clone, Debug)]
pub struct Client {
    agent: Agent,
    url: String,
}

impl Client {
    /// For the server at this address.
    pub fn new(url: &str) -> Self {
        let config = Agent::config_builder()
            .timeout_connect(Some(Duration::from_secs(5)))
            .timeout_recv_response(Some(SILENCE_MAX))
            .timeout_recv_body(None)
            .http_status_as_error(false)
            .build();
        Self { agent: config.new_agent(), url: url.to_owned() }
    }

    /// A JSON document, with its status.
    ///
    /// # Errors
    ///
    /// The server cannot be reached, or does not answer in JSON.
    pub fn get(&self, path: &str) -> Result<(u16, Value), String> {
        let response = self.agent.get(format!("{}{path}", self.url)).call();
        let mut response = response.map_err(|error| format!("{path}: {error}"))?;
        let status = response.status().as_u16();
        let text = response.body_mut().read_to_string().map_err(|error| format!("{path}: {error}"))?;
        Ok((status, serde_json::from_str(&text).map_err(|error| format!("{path}: {error}: {text}"))?))
    }

    /// One metric's value, summed over its labels.
    ///
    /// # Errors
    ///
    /// The server cannot be reached.
    pub fn metric(&self, name: &str) -> Result<f64, String> {
        let response = self.agent.get(format!("{}/metrics", self.url)).call();
        let mut response = response.map_err(|error| error.to_string())?;
        let text = response.body_mut().read_to_string().map_err(|error| error.to_string())?;
        let values = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let is_name = rest.starts_with('{') || rest.starts_with(' ');
            is_name.then(|| rest.rsplit(' ').next()?.parse::<f64>().ok()).flatten()
        });
        Ok(values.sum())
    }

    /// One answer that is not streamed.
    ///
    /// # Errors
    ///
    /// The server cannot be reached, or refuses.
    pub fn post(&self, path: &str, body: &Value) -> Result<Value, String> {
        let request = self.agent.post(format!("{}{path}", self.url));
        let request = request.header("content-type", "application/json");
        let mut response = request.send(body.to_string()).map_err(|error| format!("{path}: {error}"))?;
        let status = response.status().as_u16();
        let text = response.body_mut().read_to_string().map_err(|error| format!("{path}: {error}"))?;
        if status != 200 {
            return Err(format!("{path}: status {status}: {text}"));
        }
        serde_json::from_str(&text).map_err(|error| format!("{path}: {error}: {text}"))
    }

    /// Streams one answer to its end; each event is told.
    ///
    /// # Errors
    ///
    /// The stream failed, or ended early.
    pub fn ask(&self, question: &Question, on_event: &dyn Fn()) -> Result<Answer, String> {
        let body = json!({
            "prompt": question.prompt, "max_tokens": question.max_tokens,
            "temperature": question.temperature, "seed": question.seed, "ignore_eos": true,
            "stream": true, "stream_options": {"include_usage": true},
        });
        let request = self.agent.post(format!("{}/v1/completions", self.url));
        let request = request.header("content-type", "application/json");
        let mut response = request.send(body.to_string()).map_err(|error| error.to_string())?;
        let status = response.status().as_u16();
        if status != 200 {
            let text = response.body_mut().read_to_string().unwrap_or_default();
            return Err(format!("status {status}: {text}"));
        }
        read(BufReader::new(response.into_body().into_reader()), on_event)
    }
}

/// Folds the events of a stream.
fn read(lines: impl BufRead, on_event: &dyn Fn()) -> Result<Answer, String> {
    let mut answer = Answer { text: String::new(), num_tokens: 0 };
    let mut is_done = false;
    for line in lines.lines() {
        let line = line.map_err(|error| format!("after {} characters: {error}", answer.text.len()))?;
        let Some(event) = line.strip_prefix("data: ") else { continue };
        on_event();
        if event == "[DONE]" {
            is_done = true;
            continue;
        }
        let event: Value = serde_json::from_str(event).map_err(|error| format!("{error}: {event}"))?;
        if !event["error"].is_null() {
            return Err(event["error"].to_string());
        }
        answer.text.push_str(event["choices"][0]["text"].as_str().unwrap_or(""));
        if let Some(count) = event["usage"]["completion_tokens"].as_u64() {
            answer.num_tokens = count;
        }
    }
    if is_done { Ok(answer) } else { Err(format!("the stream ended after {} characters", answer.text.len())) }
}
