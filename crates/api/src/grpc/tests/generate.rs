//! The token level: tokens in, tokens out, text and log-probabilities if asked for.

use super::world::{Setup, generate, prompt, tokens};
use chorale_wire::inference::v1::{self, generate_event::Event};

/// A character of several tokens is among them.
const TEXT: &str = "A 🙂 b";

fn folded(events: &[Event]) -> (Vec<u32>, String, usize) {
    let (mut ids, mut text, mut num_logprobs) = (Vec::new(), String::new(), 0);
    for event in events {
        if let Event::Tokens(delta) = event {
            ids.extend(&delta.token_ids);
            text.push_str(&delta.text);
            num_logprobs += delta.logprobs.len();
        }
    }
    (ids, text, num_logprobs)
}

fn finished(events: &[Event]) -> &v1::GenerateFinished {
    let finished = events.iter().find_map(|event| match event {
        Event::Finished(finished) => Some(finished),
        _ => None,
    });
    finished.expect("an end")
}

#[tokio::test]
async fn tokens_go_in_and_tokens_come_out() {
    let world = Setup::new(&[TEXT]).serve().await;
    let events = generate(&mut world.client().await, prompt()).await.unwrap();
    let Event::Started(started) = &events[0] else { panic!("{:?}", events[0]) };
    assert_eq!(started.model, "gpt-oss");
    let mut expected = tokens(TEXT);
    expected.push(chorale_harmony::special::RETURN);
    assert_eq!(folded(&events), (expected.clone(), String::new(), 0));
    let end = finished(&events);
    assert_eq!((end.reason(), &end.stopped_by), (v1::FinishReason::Stop, &None));
    let usage = end.usage.unwrap();
    assert_eq!((usage.prompt_tokens, usage.completion_tokens), (3, expected.len() as u32));
    assert!(matches!(events.last(), Some(Event::Completed(completed)) if completed.usage == Some(usage)));
}

#[tokio::test]
async fn text_and_log_probabilities_come_if_asked_for() {
    let world = Setup::new(&[TEXT]).serve().await;
    let logprobs = Some(v1::LogprobsOptions { num_top: 3 });
    let request = v1::GenerateRequest { include_text: true, logprobs, ..prompt() };
    let events = generate(&mut world.client().await, request).await.unwrap();
    let (ids, text, num_logprobs) = folded(&events);
    assert_eq!((text.as_str(), num_logprobs), (TEXT, ids.len()));
}

#[tokio::test]
async fn a_stop_token_ends_it_and_is_named() {
    let world = Setup::new(&[TEXT]).serve().await;
    let stop = tokens(TEXT)[1];
    let limits = v1::Limits { stop_token_ids: vec![stop], ..Default::default() };
    let request = v1::GenerateRequest { limits: Some(limits), ..prompt() };
    let events = generate(&mut world.client().await, request).await.unwrap();
    assert_eq!(folded(&events).0, tokens(TEXT)[..2]);
    let end = finished(&events);
    assert_eq!(end.stopped_by, Some(v1::generate_finished::StoppedBy::StopTokenId(stop)));
}

#[tokio::test]
async fn a_prompt_may_be_text() {
    let world = Setup::new(&[TEXT]).serve().await;
    let prompt = Some(v1::generate_request::Prompt::Text("one two three".into()));
    let request = v1::GenerateRequest { prompt, ..Default::default() };
    let events = generate(&mut world.client().await, request).await.unwrap();
    assert_eq!(finished(&events).usage.unwrap().prompt_tokens, 3);
}
