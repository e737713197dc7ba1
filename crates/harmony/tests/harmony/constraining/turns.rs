//! Turns with tools: who may be called, who must be, and when it is over.

use chorale_harmony::{
    Channel, Constraint, ConstraintError, ConstraintSpec, Kind, Message, ResponseConstraint, TokenId,
    Tokenizer, ToolChoice, special,
};
use serde_json::{Value, json};

use super::model::{Style, generate, go_on};
use super::validator::problem;
use super::{STYLES, call, messages, response, tool};

fn weather() -> Value {
    json!({"type": "object", "properties": {"city": {"type": "string", "maxLength": 20},
        "unit": {"enum": ["celsius", "fahrenheit"]}}, "required": ["city"], "additionalProperties": false})
}

fn tools(tool_choice: ToolChoice) -> ConstraintSpec {
    ConstraintSpec {
        tools: vec![
            tool("get_weather", weather(), true),
            tool("get", json!({"type": "object"}), false),
            tool("get_weather_2", weather(), false),
        ],
        tool_choice,
        ..ConstraintSpec::default()
    }
}

/// The messages of a turn that is over, whose calls are of existing tools with
/// the arguments that each demands.
fn turn(spec: &ConstraintSpec, style: Style, seed: u64) -> Vec<Message> {
    let said = generate(spec, style, seed);
    assert!(said.is_over, "{}", Tokenizer::shared().decode(&said.tokens));
    let messages = messages(&said.tokens);
    for (name, arguments) in messages.iter().filter_map(call) {
        let tool = spec.tools.iter().find(|tool| tool.name == name).unwrap();
        let Some(arguments) = super::json(&arguments) else { continue };
        assert!(arguments.is_object(), "{arguments}");
        let schema = tool.parameters.as_ref().filter(|_| tool.strict);
        let why = schema.and_then(|schema| problem(schema, schema, &arguments));
        assert_eq!(why, None);
    }
    messages
}

fn count(messages: &[Message], is_it: impl Fn(Kind<'_>) -> bool) -> usize {
    messages.iter().filter(|message| is_it(message.header.kind())).count()
}

#[test]
fn without_calls_nobody_is_called() {
    for style in STYLES {
        for seed in 0..20 {
            let said = turn(&tools(ToolChoice::None), style, seed);
            assert_eq!(count(&said, |kind| matches!(kind, Kind::ToolCall { .. })), 0);
            assert_eq!(said.last().unwrap().header.channel, Some(Channel::Final));
        }
    }
}

#[test]
fn a_model_that_may_call_does_either() {
    let endings: Vec<bool> = (0..60)
        .map(|seed| call(turn(&tools(ToolChoice::Auto), Style::Random, seed).last().unwrap()).is_some())
        .collect();
    assert!(endings.contains(&true) && endings.contains(&false));
}

#[test]
fn a_model_that_must_call_calls_before_it_ends() {
    for style in STYLES {
        for seed in 0..20 {
            let said = turn(&tools(ToolChoice::Required), style, seed);
            assert!(call(said.last().unwrap()).is_some());
            assert!(said.iter().all(|message| message.header.channel != Some(Channel::Final)));
        }
    }
}

#[test]
fn a_named_tool_is_called_once() {
    for name in ["get", "get_weather", "get_weather_2"] {
        for style in STYLES {
            for parallel_tool_calls in [false, true] {
                let spec =
                    ConstraintSpec { parallel_tool_calls, ..tools(ToolChoice::Named(name.to_owned())) };
                let said = turn(&spec, style, 5);
                let names: Vec<String> = said.iter().filter_map(call).map(|(name, _)| name).collect();
                assert_eq!(names, [name]);
            }
        }
    }
}

#[test]
fn calls_may_follow_calls_only_if_they_are_parallel() {
    let spec = ConstraintSpec { parallel_tool_calls: true, ..tools(ToolChoice::Auto) };
    let constraint = || {
        let mut constraint = Constraint::new(&spec).unwrap().unwrap();
        say(&mut constraint, "<|channel|>commentary to=functions.get <|constrain|>json<|message|>{}<|call|>");
        constraint
    };
    let mut over = constraint();
    over.accept(special::RETURN).unwrap();
    assert!(over.is_over());
    let mut again = constraint();
    say(
        &mut again,
        "<|start|>assistant to=functions.get<|channel|>commentary <|constrain|>json<|message|>{}",
    );
    say(&mut again, "<|call|>");
    assert!(!again.is_over());
    let mut answers = constraint();
    say(&mut answers, "<|start|>assistant<|channel|>");
    assert_eq!(refused(&mut answers, "final"), "final");

    let mut one = Constraint::new(&tools(ToolChoice::Auto)).unwrap().unwrap();
    say(&mut one, "<|channel|>commentary to=functions.get <|constrain|>json<|message|>{}<|call|>");
    assert!(one.is_over());
    assert_eq!(refused(&mut one, "<|start|>"), "<|start|>");
}

fn say(constraint: &mut Constraint, text: &str) {
    assert_eq!(refused(constraint, text), "", "in {text}");
}

/// What is left of `text` from the first token on that is not allowed. The mask
/// and the answer to the token always agree.
fn refused(constraint: &mut Constraint, text: &str) -> String {
    let tokens = Tokenizer::shared().encode_with_specials(text);
    let num_allowed = tokens.iter().take_while(|&&token| {
        let is_allowed = constraint.allowed().unwrap().unwrap().contains(token);
        assert_eq!(constraint.accept(token).is_ok(), is_allowed);
        is_allowed
    });
    Tokenizer::shared().decode(&tokens[num_allowed.count()..])
}

#[test]
fn headers_say_what_is_legal_and_nothing_else() {
    let object = response(ResponseConstraint::JsonObject);
    let auto = tools(ToolChoice::Auto);
    let none = tools(ToolChoice::None);
    let required = tools(ToolChoice::Required);
    let cases = [
        (
            &object,
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>{",
            "",
        ),
        (&object, "<|channel|>final <|constrain|>json<|message|>{\"a\": [1, 2]}<|return|>", ""),
        (&object, "<|channel|>final<|message|>{}<|end|>", "<|end|>"),
        (&object, "<|channel|>final<|message|><|return|>", "<|return|>"),
        (&object, "<|channel|>final<|message|>Sure", "Sure"),
        (&object, "<|channel|>commentary", "commentary"),
        (&object, "<|return|>", "<|return|>"),
        (&object, "<|start|>", "<|start|>"),
        (&object, "Hello", "Hello"),
        (&object, "<|channel|>analysis<|message|>a<|channel|>", "<|channel|>"),
        (&object, "<|channel|>analysis<|message|>a<|return|>", "<|return|>"),
        (&object, "<|channel|>analysis<|message|>a<|endoftext|>", "<|endoftext|>"),
        (&object, "<|channel|>analysis<|message|>a<|end|><|start|>user", "user"),
        (
            &auto,
            "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant to=functions.get<|channel|>",
            "",
        ),
        (
            &auto,
            "<|channel|>commentary to=functions.get_weather_2 <|constrain|>json<|message|>{\"x\":1}<|call|>",
            "",
        ),
        (&auto, "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{\"x\"", "x\""),
        (&auto, "<|channel|>commentary to=functions.get <|constrain|>json<|message|>{<|call|>", "<|call|>"),
        (
            &auto,
            "<|channel|>commentary to=functions.get <|constrain|>json<|message|>{}<|return|>",
            "<|return|>",
        ),
        (&auto, "<|channel|>commentary to=functions.got", "ot"),
        (&auto, "<|channel|>commentary to=python", "python"),
        (&auto, "<|channel|>analysis to=", " to="),
        (&auto, "<|channel|>final to=", " to="),
        (&auto, "<|channel|>final<|message|>Done.<|return|>", ""),
        (&none, "<|channel|>commentary to=", " to="),
        (&none, " to=", " to="),
        (&none, "<|channel|>commentary<|message|>I begin.<|call|>", "<|call|>"),
        (&required, "<|channel|>final", "final"),
    ];
    for (spec, text, rest) in cases {
        let mut constraint = Constraint::new(spec).unwrap().unwrap();
        let left = refused(&mut constraint, text);
        assert!(left == rest || (!rest.is_empty() && left.ends_with(rest)), "{text}: {left:?}, not {rest:?}");
    }
}

#[test]
fn thinking_does_not_go_on_forever() {
    let mut constraint = Constraint::new(&tools(ToolChoice::Required)).unwrap().unwrap();
    for _ in 0..8 {
        say(&mut constraint, "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant");
    }
    say(&mut constraint, "<|channel|>");
    assert_eq!(refused(&mut constraint, "analysis"), "analysis");
    say(&mut constraint, "commentary to=functions.get");
}

#[test]
fn thinking_is_any_text_at_any_length() {
    let mut constraint = Constraint::new(&tools(ToolChoice::Auto)).unwrap().unwrap();
    say(&mut constraint, "<|channel|>analysis<|message|>");
    let before = constraint.allowed().unwrap().unwrap();
    for token in (0..199_998).step_by(17) {
        constraint.accept(token).unwrap();
    }
    let after = constraint.allowed().unwrap().unwrap();
    assert!(std::sync::Arc::ptr_eq(&before.0, &after.0), "free text has one mask");
}

#[test]
fn a_refused_token_changes_nothing() {
    let spec = response(ResponseConstraint::JsonSchema(weather()));
    let mut constraint = Constraint::new(&spec).unwrap().unwrap();
    for token in Tokenizer::shared().encode_with_specials("<|channel|>final<|message|>{\"city\":\"Rom\"}") {
        for wrong in [special::START, special::CALL, 200_100, 201_088, u32::MAX] {
            assert_eq!(constraint.accept(wrong), Err(ConstraintError::NotAllowed { token: wrong }));
        }
        constraint.accept(token).unwrap();
    }
    constraint.accept(special::RETURN).unwrap();
    assert!(constraint.is_over());
    assert_eq!(refused(&mut constraint, "<|return|>x"), "x");
}

#[test]
fn clones_go_their_own_ways() {
    let spec = response(ResponseConstraint::JsonSchema(weather()));
    let mut first = Constraint::new(&spec).unwrap().unwrap();
    say(&mut first, "<|channel|>final<|message|>{\"city\": \"");
    let second = first.clone();
    say(&mut first, "Wien\", \"unit\": \"celsius\"}<|return|>");
    let said = std::thread::spawn(move || go_on(second, Style::Random, 4)).join().unwrap();
    assert!(first.is_over() && said.is_over);
}

#[test]
fn a_cut_stream_parses_without_repairs_but_for_a_cut_header() {
    for spec in
        [tools(ToolChoice::Auto), tools(ToolChoice::Required), response(ResponseConstraint::JsonObject)]
    {
        let tokens: Vec<TokenId> = generate(&spec, Style::Random, 8).tokens;
        for len in 0..tokens.len() {
            let _ = chorale_harmony::parse(&tokens[..len]);
            let is_in_body = tokens[..len].iter().rposition(|&token| token == special::MESSAGE)
                > tokens[..len].iter().rposition(|&token| [special::END, special::CALL].contains(&token));
            if is_in_body {
                messages(&tokens[..len]);
            }
        }
    }
}
