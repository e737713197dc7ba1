//! Both doors build the same generation from the same wishes.

use super::world::{limits, user};
use crate::grpc::chat;
use crate::openai::parse_chat;
use chorale_wire::inference::{Chat, v1};
use serde_json::{Value, json};

/// What a generation is, but for its constraint, which has no words of its own.
fn over_http(body: &Value) -> String {
    let mut generation = parse_chat(body.to_string().as_bytes(), &limits()).unwrap().generation;
    assert_eq!(
        generation.constraint.is_some(),
        body.get("tools").is_some() || body.get("response_format").is_some()
    );
    generation.constraint = None;
    format!("{generation:#?}")
}

fn over_grpc(request: v1::ChatRequest) -> String {
    let chat = Chat::try_from(request).unwrap();
    let mut generation = chat::generation(chat, &limits(), None).unwrap();
    generation.constraint = None;
    format!("{generation:#?}")
}

fn said(role: v1::Role, content: &str) -> v1::Message {
    v1::Message { role: role as i32, content: content.into(), ..Default::default() }
}

#[test]
fn a_plain_question() {
    let body = json!({"messages": [{"role": "user", "content": "Hi"}], "seed": 7});
    let sampling = Some(v1::Sampling { seed: Some(7), ..Default::default() });
    let request = v1::ChatRequest { messages: vec![user("Hi")], sampling, ..Default::default() };
    assert_eq!(over_http(&body), over_grpc(request));
}

#[test]
fn sampling_and_limits() {
    let body = json!({
        "messages": [{"role": "user", "content": "Hi"}], "seed": 7, "temperature": 0.5, "top_p": 0.25, "top_k": 3,
        "min_p": 0.125, "presence_penalty": 1.0, "frequency_penalty": -1.0, "repetition_penalty": 1.5,
        "logit_bias": {"5": -1.0, "9": 2.0}, "max_completion_tokens": 9, "min_tokens": 2, "stop": ["a", "b"],
        "stop_token_ids": [1, 2], "ignore_eos": true, "n": 3, "logprobs": true, "top_logprobs": 4,
        "priority": -3, "cache_salt": "s",
    });
    let request = v1::ChatRequest {
        messages: vec![user("Hi")],
        sampling: Some(v1::Sampling {
            temperature: Some(0.5),
            top_p: Some(0.25),
            top_k: Some(3),
            min_p: Some(0.125),
            presence_penalty: Some(1.0),
            frequency_penalty: Some(-1.0),
            repetition_penalty: Some(1.5),
            logit_bias: [(5, -1.0), (9, 2.0)].into(),
            seed: Some(7),
        }),
        limits: Some(v1::Limits {
            max_tokens: Some(9),
            min_tokens: 2,
            stop: vec!["a".into(), "b".into()],
            stop_token_ids: vec![1, 2],
            ignore_eos: true,
        }),
        n: Some(3),
        logprobs: Some(v1::LogprobsOptions { num_top: 4 }),
        handling: Some(v1::Handling { priority: -3, cache_salt: "s".into() }),
        ..Default::default()
    };
    assert_eq!(over_http(&body), over_grpc(request));
}

#[test]
fn a_history_with_calls_and_thinking() {
    let parameters =
        json!({"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "number"}}});
    let call =
        json!({"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{\"b\":\"x\"}"}});
    let body = json!({
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "developer", "content": "And kind."},
            {"role": "user", "content": "One?"},
            {"role": "assistant", "reasoning": "Old.", "content": "Yes."},
            {"role": "system", "content": "Now shout."},
            {"role": "user", "content": "Two?"},
            {"role": "assistant", "reasoning": "New.", "content": "I look.", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "42"},
        ],
        "tools": [
            {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": parameters}},
            {"type": "function", "function": {"name": "wait", "parameters": {}}},
        ],
        "tool_choice": "required", "parallel_tool_calls": true, "reasoning_effort": "high", "seed": 0,
        "chat_template_kwargs": {"current_date": "2025-06-28", "knowledge_cutoff": null, "model_identity": "You are X."},
    });
    let look = v1::Tool {
        name: "look".into(),
        description: "Looks.".into(),
        parameters_json: parameters.to_string(),
        strict: false,
    };
    let wait = v1::Tool { name: "wait".into(), parameters_json: "{}".into(), ..Default::default() };
    let call = v1::ToolCall { id: "c1".into(), name: "look".into(), arguments_json: "{\"b\":\"x\"}".into() };
    let required = v1::tool_choice::Choice::Mode(v1::ToolChoiceMode::Required as i32);
    let request = v1::ChatRequest {
        messages: vec![
            said(v1::Role::System, "Be brief."),
            said(v1::Role::Developer, "And kind."),
            user("One?"),
            v1::Message { reasoning: "Old.".into(), ..said(v1::Role::Assistant, "Yes.") },
            said(v1::Role::System, "Now shout."),
            user("Two?"),
            v1::Message {
                reasoning: "New.".into(),
                tool_calls: vec![call],
                ..said(v1::Role::Assistant, "I look.")
            },
            v1::Message { tool_call_id: "c1".into(), ..said(v1::Role::Tool, "42") },
        ],
        tools: vec![look, wait],
        tool_choice: Some(v1::ToolChoice { choice: Some(required) }),
        parallel_tool_calls: Some(true),
        reasoning_effort: v1::ReasoningEffort::High as i32,
        sampling: Some(v1::Sampling { seed: Some(0), ..Default::default() }),
        system_prompt: Some(v1::SystemPrompt {
            model_identity: Some("You are X.".into()),
            knowledge_cutoff: Some(String::new()),
            current_date: Some("2025-06-28".into()),
        }),
        ..Default::default()
    };
    assert_eq!(over_http(&body), over_grpc(request));
}

#[test]
fn an_answer_of_a_schema() {
    let schema = json!({"type": "object", "properties": {"z": {"type": "string"}, "a": {"type": "integer"}}});
    let body = json!({
        "messages": [{"role": "user", "content": "Hi"}], "seed": 1,
        "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}},
    });
    let format = v1::JsonSchemaFormat {
        name: "s".into(),
        description: String::new(),
        schema_json: schema.to_string(),
    };
    let request = v1::ChatRequest {
        messages: vec![user("Hi")],
        sampling: Some(v1::Sampling { seed: Some(1), ..Default::default() }),
        response_format: Some(v1::ResponseFormat {
            format: Some(v1::response_format::Format::JsonSchema(format)),
        }),
        ..Default::default()
    };
    assert_eq!(over_http(&body), over_grpc(request));
}
