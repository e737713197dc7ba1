//! Constrained decoding under models that pick tokens without sense: whatever
//! they do, what comes out parses without a repair and is what was demanded.

mod model;
mod refusals;
mod schemas;
mod turns;
mod validator;

use chorale_harmony::{
    Channel, ConstraintSpec, ContentType, Kind, Message, ResponseConstraint, StreamParser, TokenId,
    ToolConstraint, fold,
};
use serde_json::Value;

use model::{Said, Style};

const STYLES: [Style; 3] = [Style::Random, Style::Highest, Style::Lowest];

fn response(response: ResponseConstraint) -> ConstraintSpec {
    ConstraintSpec { response, ..ConstraintSpec::default() }
}

fn tool(name: &str, parameters: Value, strict: bool) -> ToolConstraint {
    ToolConstraint { name: name.to_owned(), parameters: Some(parameters), strict }
}

/// The messages of a stream that is right in every token.
fn messages(tokens: &[TokenId]) -> Vec<Message> {
    let mut parser = StreamParser::new();
    let mut deltas: Vec<_> = tokens.iter().flat_map(|&token| parser.push(token)).collect();
    deltas.extend(parser.finish());
    let repairs: Vec<_> = parser.repairs().iter().collect();
    assert!(repairs.is_empty(), "{repairs:?} in {}", chorale_harmony::Tokenizer::shared().decode(tokens));
    fold(deltas)
}

/// The answer of a turn that is over, everything before it being thought.
fn answer(said: &Said) -> String {
    assert!(said.is_over, "{}", chorale_harmony::Tokenizer::shared().decode(&said.tokens));
    let messages = messages(&said.tokens);
    let (answer, before) = messages.split_last().unwrap();
    assert_eq!(answer.header.channel, Some(Channel::Final));
    assert!(before.iter().all(|message| message.header.kind() == Kind::Reasoning));
    answer.text()
}

/// The name and arguments of a call as its header and body should be.
fn call(message: &Message) -> Option<(String, String)> {
    let Kind::ToolCall { name } = message.header.kind() else { return None };
    assert_eq!(message.header.channel, Some(Channel::Commentary));
    assert_eq!(message.header.content_type, Some(ContentType::json()));
    Some((name.to_owned(), message.text()))
}

/// JSON, but `None` for a number beyond what a double holds: such a one is
/// grammatical, though no program can use it.
fn json(text: &str) -> Option<Value> {
    match serde_json::from_str(text) {
        Ok(value) => Some(value),
        Err(error) if error.to_string().contains("out of range") => None,
        Err(error) => panic!("{error} in {text}"),
    }
}
