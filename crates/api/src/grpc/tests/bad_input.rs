//! Wrong requests: each is INVALID_ARGUMENT, its details name the field by its
//! path, and the server serves on.

use super::world::{Client, Setup, ask, chat, generate, prompt, user};
use chorale_wire::inference::v1;
use tonic::{Code, Status};
use tonic_types::StatusExt;

type Case<M> = (&'static str, fn(&mut M));

fn sampling(request: &mut v1::ChatRequest) -> &mut v1::Sampling {
    request.sampling.get_or_insert_default()
}

fn limits(request: &mut v1::ChatRequest) -> &mut v1::Limits {
    request.limits.get_or_insert_default()
}

fn tool(name: &str, parameters_json: &str) -> v1::Tool {
    v1::Tool { name: name.into(), parameters_json: parameters_json.into(), ..Default::default() }
}

fn said(role: v1::Role) -> v1::Message {
    v1::Message { role: role as i32, content: "x".into(), ..Default::default() }
}

fn schema(name: &str, schema_json: &str) -> Option<v1::ResponseFormat> {
    let schema =
        v1::JsonSchemaFormat { name: name.into(), schema_json: schema_json.into(), ..Default::default() };
    Some(v1::ResponseFormat { format: Some(v1::response_format::Format::JsonSchema(schema)) })
}

fn mode(mode: i32) -> Option<v1::ToolChoice> {
    Some(v1::ToolChoice { choice: Some(v1::tool_choice::Choice::Mode(mode)) })
}

fn call(id: &str, name: &str) -> v1::ToolCall {
    v1::ToolCall { id: id.into(), name: name.into(), arguments_json: "{}".into() }
}

const CHATS: &[Case<v1::ChatRequest>] = &[
    ("messages", |r| r.messages.clear()),
    ("messages[0].role", |r| r.messages[0].role = 0),
    ("messages[0].role", |r| r.messages[0].role = 99),
    ("messages[1].reasoning", |r| r.messages.push(v1::Message { reasoning: "x".into(), ..user("x") })),
    ("messages[0].tool_calls", |r| r.messages[0].tool_calls.push(call("a", "b"))),
    ("messages[0].tool_call_id", |r| r.messages[0].tool_call_id = "a".into()),
    ("messages[1].tool_call_id", |r| r.messages.push(said(v1::Role::Tool))),
    ("messages[1].tool_call_id", |r| {
        r.messages.push(v1::Message { tool_call_id: "nobody".into(), ..said(v1::Role::Tool) });
    }),
    ("messages[1].content", |r| {
        r.messages.push(v1::Message { content: String::new(), ..said(v1::Role::Assistant) });
    }),
    ("messages[1].tool_calls[0].id", |r| {
        r.messages.push(v1::Message { tool_calls: vec![call("", "b")], ..said(v1::Role::Assistant) });
    }),
    ("messages[1].tool_calls[1].name", |r| {
        let tool_calls = vec![call("a", "b"), call("b", "a b")];
        r.messages.push(v1::Message { tool_calls, ..said(v1::Role::Assistant) });
    }),
    ("tools[0].name", |r| r.tools.push(tool("", ""))),
    ("tools[0].name", |r| r.tools.push(tool("a b", ""))),
    ("tools[0].name", |r| r.tools.push(tool(&"x".repeat(65), ""))),
    ("tools[1].name", |r| r.tools.extend([tool("a", ""), tool("a", "")])),
    ("tools[0].parameters_json", |r| r.tools.push(tool("a", "{"))),
    ("tools[0].parameters_json", |r| r.tools.push(tool("a", "[]"))),
    ("tools[0].parameters_json", |r| r.tools.push(tool("a", &"[".repeat(100_000)))),
    ("tools", |r| r.tools.extend((0..65).map(|n| tool(&format!("t{n}"), "")))),
    ("tool_choice", |r| r.tool_choice = Some(v1::ToolChoice { choice: None })),
    ("tool_choice.mode", |r| r.tool_choice = mode(0)),
    ("tool_choice.mode", |r| r.tool_choice = mode(17)),
    ("tool_choice.mode", |r| r.tool_choice = mode(v1::ToolChoiceMode::Required as i32)),
    ("tool_choice.function", |r| {
        r.tool_choice = Some(v1::ToolChoice { choice: Some(v1::tool_choice::Choice::Function("x".into())) });
    }),
    ("response_format", |r| r.response_format = Some(v1::ResponseFormat { format: None })),
    ("response_format.json_schema.name", |r| r.response_format = schema("", "{}")),
    ("response_format.json_schema.schema_json", |r| r.response_format = schema("a", "")),
    ("response_format.json_schema.schema_json", |r| r.response_format = schema("a", "3")),
    ("reasoning_effort", |r| r.reasoning_effort = 9),
    ("reasoning_effort", |r| r.reasoning_effort = -1),
    ("sampling.temperature", |r| sampling(r).temperature = Some(-0.1)),
    ("sampling.temperature", |r| sampling(r).temperature = Some(2.1)),
    ("sampling.temperature", |r| sampling(r).temperature = Some(f32::NAN)),
    ("sampling.top_p", |r| sampling(r).top_p = Some(0.0)),
    ("sampling.top_p", |r| sampling(r).top_p = Some(1.1)),
    ("sampling.min_p", |r| sampling(r).min_p = Some(f32::INFINITY)),
    ("sampling.presence_penalty", |r| sampling(r).presence_penalty = Some(2.5)),
    ("sampling.frequency_penalty", |r| sampling(r).frequency_penalty = Some(-2.5)),
    ("sampling.repetition_penalty", |r| sampling(r).repetition_penalty = Some(0.0)),
    ("sampling.logit_bias[5]", |r| sampling(r).logit_bias = [(5, 101.0)].into()),
    ("sampling.logit_bias[4000000000]", |r| sampling(r).logit_bias = [(4_000_000_000, 1.0)].into()),
    ("sampling.logit_bias", |r| sampling(r).logit_bias = (0..1025).map(|token| (token, 1.0)).collect()),
    ("limits.max_tokens", |r| limits(r).max_tokens = Some(0)),
    ("limits.min_tokens", |r| {
        *limits(r) = v1::Limits { max_tokens: Some(3), min_tokens: 4, ..Default::default() }
    }),
    ("limits.stop", |r| limits(r).stop = vec!["x".into(); 17]),
    ("limits.stop[1]", |r| limits(r).stop = vec!["x".into(), String::new()]),
    ("limits.stop[0]", |r| limits(r).stop = vec!["x".repeat(1025)]),
    ("limits.stop_token_ids", |r| limits(r).stop_token_ids = vec![1; 257]),
    ("limits.stop_token_ids[1]", |r| limits(r).stop_token_ids = vec![1, 300_000]),
    ("n", |r| r.n = Some(0)),
    ("n", |r| r.n = Some(17)),
    ("logprobs.num_top", |r| r.logprobs = Some(v1::LogprobsOptions { num_top: 21 })),
    ("handling.cache_salt", |r| {
        r.handling = Some(v1::Handling { cache_salt: "x".repeat(257), ..Default::default() });
    }),
];

const PROMPTS: &[Case<v1::GenerateRequest>] = &[
    ("prompt", |r| r.prompt = None),
    ("token_ids.ids", |r| r.prompt = Some(v1::generate_request::Prompt::TokenIds(v1::TokenIds::default()))),
    ("token_ids.ids[1]", |r| {
        r.prompt = Some(v1::generate_request::Prompt::TokenIds(v1::TokenIds { ids: vec![1, u32::MAX] }));
    }),
    ("text", |r| r.prompt = Some(v1::generate_request::Prompt::Text(String::new()))),
    ("n", |r| r.n = Some(u32::MAX)),
    ("sampling.top_p", |r| r.sampling = Some(v1::Sampling { top_p: Some(-1.0), ..Default::default() })),
    ("limits.max_tokens", |r| r.limits = Some(v1::Limits { max_tokens: Some(0), ..Default::default() })),
    ("logprobs.num_top", |r| r.logprobs = Some(v1::LogprobsOptions { num_top: u32::MAX })),
];

fn check(field: &str, outcome: Result<(), Status>) {
    let status = outcome.expect_err(field);
    assert_eq!(status.code(), Code::InvalidArgument, "{field}: {status:?}");
    let details = status.get_error_details();
    let violations = &details.bad_request().unwrap_or_else(|| panic!("{field}: {status:?}")).field_violations;
    assert_eq!(violations[0].field, field, "{status:?}");
    let description = &violations[0].description;
    assert!(
        !description.is_empty() && !description.starts_with(&format!("{field}:")),
        "{field}: {description}"
    );
    assert!(status.message().len() < 500, "{field}: {} bytes", status.message().len());
}

#[tokio::test]
async fn wrong_chats_are_refused_by_the_field() {
    let world = Setup::new(&["<|channel|>final<|message|>Yes."]).serve().await;
    let mut client = world.client().await;
    for (field, spoil) in CHATS {
        let mut request = ask();
        spoil(&mut request);
        check(field, chat(&mut client, request).await.map(drop));
    }
    assert!(chat(&mut client, ask()).await.is_ok());
    world.idle().await;
}

#[tokio::test]
async fn wrong_prompts_are_refused_by_the_field() {
    let world = Setup::new(&["Yes."]).serve().await;
    let mut client = world.client().await;
    for (field, spoil) in PROMPTS {
        let mut request = prompt();
        spoil(&mut request);
        check(field, generate(&mut client, request).await.map(drop));
    }
    assert!(generate(&mut client, prompt()).await.is_ok());
    world.idle().await;
}

#[tokio::test]
async fn wrong_questions_around_are_refused_by_the_field() {
    let world = Setup::new(&[""]).serve().await;
    let mut client: Client = world.client().await;
    check("request_id", client.cancel(v1::CancelRequest::default()).await.map(drop));
    check("input", client.tokenize(v1::TokenizeRequest::default()).await.map(drop));
    check("tokens", client.detokenize(v1::DetokenizeRequest::default()).await.map(drop));
    let request =
        v1::DetokenizeRequest { tokens: Some(v1::TokenIds { ids: vec![u32::MAX] }), ..Default::default() };
    check("tokens.ids[0]", client.detokenize(request).await.map(drop));
    let chat = v1::ChatRequest { messages: vec![user("x"), v1::Message::default()], ..Default::default() };
    let input = Some(v1::tokenize_request::Input::Chat(chat));
    let request = v1::TokenizeRequest { input, ..Default::default() };
    check("chat.messages[1].role", client.tokenize(request).await.map(drop));
    let request = v1::WatchLoadStatusRequest { interval_ms: Some(1) };
    check("interval_ms", client.watch_load_status(request).await.map(drop));
}
