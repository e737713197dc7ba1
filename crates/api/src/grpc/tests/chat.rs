//! The chat level: typed deltas in order, calls and their results, choices.

use super::world::{Setup, ask, chat, user};
use chorale_wire::inference::v1::{self, chat_event::Event};

const ANSWER: &str = "<|channel|>analysis<|message|>A sum.<|end|>\
                      <|start|>assistant<|channel|>final<|message|>It is 4.<|return|>";
const CALL: &str = "<|channel|>analysis<|message|>I must look.<|end|><|start|>assistant\
                    <|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>\
                    {\"city\":\"Paris\"}<|call|>";

fn weather() -> v1::Tool {
    v1::Tool {
        name: "get_weather".into(),
        description: "Tells the weather.".into(),
        parameters_json: r#"{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}"#
            .into(),
        strict: true,
    }
}

fn texts(events: &[Event], choice: u32) -> (String, String) {
    let (mut reasoning, mut content) = (String::new(), String::new());
    for event in events {
        match event {
            Event::Reasoning(delta) if delta.choice_index == choice => reasoning.push_str(&delta.text),
            Event::Content(delta) if delta.choice_index == choice => content.push_str(&delta.text),
            _ => {}
        }
    }
    (reasoning, content)
}

fn finished(events: &[Event]) -> Vec<&v1::ChatFinished> {
    let finished = events.iter().filter_map(|event| match event {
        Event::Finished(finished) => Some(finished),
        _ => None,
    });
    finished.collect()
}

#[tokio::test]
async fn a_stream_begins_thinks_speaks_ends_and_is_complete() {
    let world = Setup::new(&[ANSWER]).serve().await;
    let events = chat(&mut world.client().await, ask()).await.unwrap();
    let Event::Started(started) = &events[0] else { panic!("{:?}", events[0]) };
    assert_eq!((started.model.as_str(), started.request_id.len()), ("gpt-oss", 32));
    assert!(started.created_unix_s > 0);
    assert_eq!(texts(&events, 0), ("A sum.".into(), "It is 4.".into()));

    let [finished] = finished(&events)[..] else { panic!("{events:?}") };
    assert_eq!((finished.reason(), finished.stop.as_deref()), (v1::FinishReason::Stop, None));
    let usage = finished.usage.unwrap();
    assert!(usage.prompt_tokens > 20 && usage.reasoning_tokens > 0);
    assert!(usage.completion_tokens > usage.reasoning_tokens);
    assert_eq!(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens);
    let Some(Event::Completed(completed)) = events.last() else { panic!("{events:?}") };
    assert_eq!(completed.usage, Some(usage));
}

#[tokio::test]
async fn a_cached_prompt_is_counted() {
    let world = Setup::new(&[ANSWER]).serve().await;
    let mut client = world.client().await;
    chat(&mut client, ask()).await.unwrap();
    let events = chat(&mut client, ask()).await.unwrap();
    assert!(finished(&events)[0].usage.unwrap().cached_tokens >= 16);
}

#[tokio::test]
async fn a_call_goes_out_and_its_result_comes_back() {
    let world = Setup::new(&[CALL, ANSWER]).serve().await;
    let mut client = world.client().await;
    let mut request = v1::ChatRequest { tools: vec![weather()], ..ask() };
    let events = chat(&mut client, request.clone()).await.unwrap();
    let call = events.iter().find_map(|event| match event {
        Event::ToolCallStarted(call) => Some(call.clone()),
        _ => None,
    });
    let call = call.expect("a call");
    assert_eq!((call.call_index, call.name.as_str()), (0, "get_weather"));
    let arguments = events.iter().filter_map(|event| match event {
        Event::ToolCallArguments(delta) => Some(delta.arguments_json_delta.as_str()),
        _ => None,
    });
    let arguments: String = arguments.collect();
    assert_eq!(arguments, r#"{"city":"Paris"}"#);
    assert_eq!(finished(&events)[0].reason(), v1::FinishReason::ToolCalls);

    let (reasoning, _) = texts(&events, 0);
    let called = v1::ToolCall { id: call.id.clone(), name: call.name, arguments_json: arguments };
    request.messages.push(v1::Message {
        role: v1::Role::Assistant as i32,
        reasoning,
        tool_calls: vec![called],
        ..Default::default()
    });
    request.messages.push(v1::Message {
        role: v1::Role::Tool as i32,
        content: "sunny".into(),
        tool_call_id: call.id,
        ..Default::default()
    });
    let events = chat(&mut client, request).await.unwrap();
    assert_eq!(texts(&events, 0).1, "It is 4.");
}

#[tokio::test]
async fn choices_are_told_apart_and_the_prompt_counts_once() {
    let world = Setup::new(&[ANSWER, "<|channel|>final<|message|>Four.<|return|>"]).serve().await;
    let request = v1::ChatRequest { n: Some(2), ..ask() };
    let events = chat(&mut world.client().await, request).await.unwrap();
    let mut contents = [texts(&events, 0).1, texts(&events, 1).1];
    contents.sort();
    assert_eq!(contents, ["Four.", "It is 4."]);
    let ends = finished(&events);
    assert_eq!(ends.len(), 2);
    let Some(Event::Completed(completed)) = events.last() else { panic!("{events:?}") };
    let sum: u32 = ends.iter().map(|end| end.usage.unwrap().completion_tokens).sum();
    let usage = completed.usage.unwrap();
    assert_eq!((usage.completion_tokens, usage.prompt_tokens), (sum, ends[0].usage.unwrap().prompt_tokens));
}

#[tokio::test]
async fn stops_limits_and_log_probabilities_are_honoured() {
    let world = Setup::new(&[ANSWER]).serve().await;
    let mut client = world.client().await;
    let limits = v1::Limits { stop: vec![" is".into()], ..Default::default() };
    let events = chat(&mut client, v1::ChatRequest { limits: Some(limits), ..ask() }).await.unwrap();
    assert_eq!(texts(&events, 0).1, "It");
    assert_eq!(finished(&events)[0].stop.as_deref(), Some(" is"));

    let limits = v1::Limits { max_tokens: Some(4), ..Default::default() };
    let events = chat(&mut client, v1::ChatRequest { limits: Some(limits), ..ask() }).await.unwrap();
    assert_eq!(finished(&events)[0].reason(), v1::FinishReason::Length);
    assert_eq!(finished(&events)[0].usage.unwrap().completion_tokens, 4);

    let logprobs = Some(v1::LogprobsOptions { num_top: 2 });
    let events = chat(&mut client, v1::ChatRequest { logprobs, ..ask() }).await.unwrap();
    let content = events.iter().find_map(|event| match event {
        Event::Content(delta) => delta.logprobs.first(),
        _ => None,
    });
    let token = content.expect("log-probabilities");
    assert_eq!(token.top.len(), 2);
    let sampled = token.sampled.as_ref().unwrap();
    // It is the thirteenth token, with the thoughts before it.
    assert_eq!((sampled.logprob, sampled.bytes.as_slice()), (-3.25, &b"It"[..]));
}

#[tokio::test]
async fn a_client_may_name_its_request() {
    let world = Setup::new(&[ANSWER]).serve().await;
    let mut request =
        tonic::Request::new(v1::ChatRequest { messages: vec![user("Hi")], ..Default::default() });
    request.metadata_mut().insert("x-request-id", "mine-1".parse().unwrap());
    let response = world.client().await.chat(request).await.unwrap();
    assert_eq!(response.metadata().get("x-request-id").unwrap(), "mine-1");
    let mut stream = response.into_inner();
    assert_eq!(super::world::started(&mut stream).await, "mine-1");
}
