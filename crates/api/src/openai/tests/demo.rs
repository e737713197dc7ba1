//! The demo model's questions as chat requests: each must be read as exactly the
//! prompt that the model was asked with.

use crate::generation::Input;
use crate::openai::parse_chat;
use chorale_harmony::{TokenId, render_for_completion};
use serde_json::{Map, Value, json};

use super::scripted::limits;

const EVALS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/demo-model/evals.json");

#[test]
fn requests_are_written_as_the_demo_model_reads_them() {
    let evals: Value = serde_json::from_str(&std::fs::read_to_string(EVALS).unwrap()).unwrap();
    let items = evals["items"].as_array().unwrap();
    assert!(items.len() > 100);
    for item in items {
        let mut body = Map::new();
        body.insert("messages".into(), item["messages"].clone());
        if item["tools"] != json!([]) {
            body.insert("tools".into(), item["tools"].clone());
        }
        body.insert("reasoning_effort".into(), item["reasoning_effort"].clone());
        let pins = ["model_identity", "knowledge_cutoff", "current_date"]
            .map(|key| (key.to_owned(), item[key].clone()));
        body.insert("chat_template_kwargs".into(), Value::Object(pins.into_iter().collect()));
        let chat = parse_chat(Value::Object(body).to_string().as_bytes(), &limits()).unwrap();
        let Input::Conversation { conversation, options } = &chat.generation.input else {
            panic!("no conversation")
        };
        let prompt = render_for_completion(conversation, options).unwrap();
        let expected: Vec<TokenId> = serde_json::from_value(item["prompt_token_ids"].clone()).unwrap();
        assert_eq!(prompt, expected, "{}", item["id"]);
    }
}
