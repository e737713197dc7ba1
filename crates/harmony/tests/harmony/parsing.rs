//! The parser against `parse.json`, and on what models get wrong.

use chorale_harmony::{
    Delta, End, Header, Kind, Message, Part, StreamParser, TokenId, Tokenizer, fold, parse,
    parse_conversation,
};
use serde::Deserialize;

use crate::wire::{WireMessage, fixture};

#[derive(Deserialize)]
struct Fixture {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    kind: String,
    role: Option<String>,
    strict: bool,
    tokens: Vec<TokenId>,
    messages: Option<Vec<WireMessage>>,
    steps: Vec<Step>,
}

/// `step_fields` of the fixture.
type Step =
    (String, Option<String>, Option<String>, Option<String>, Option<String>, String, Option<String>, usize);

#[test]
fn well_formed_completions_parse_as_the_reference_parses_them() {
    let cases = fixture::<Fixture>("harmony/parse.json").cases;
    assert_eq!(cases.len(), 43);
    let mut num_normal = 0;
    for case in cases.into_iter().filter(|case| case.kind == "normal") {
        let name = case.name;
        let parser = if case.role.is_some() { StreamParser::new() } else { StreamParser::for_conversation() };
        check_steps(&name, parser.clone(), &case.tokens, &case.steps);
        let expected: Vec<Message> = case.messages.unwrap().into_iter().map(Message::from).collect();
        assert_eq!(parse_all(parser, &case.tokens), expected, "{name}");
        num_normal += 1;
    }
    assert_eq!(num_normal, 18);
}

/// Where the reference repairs in its lenient mode, so do we, to the same end.
#[test]
fn leniency_ends_where_the_references_does() {
    let cases = fixture::<Fixture>("harmony/parse.json").cases;
    for case in cases.into_iter().filter(|case| !case.strict) {
        let expected: Vec<Message> = case.messages.unwrap().into_iter().map(Message::from).collect();
        assert_eq!(parse(&case.tokens), expected, "{}", case.name);
    }
}

fn parse_all(mut parser: StreamParser, tokens: &[TokenId]) -> Vec<Message> {
    let mut deltas: Vec<Delta> = tokens.iter().flat_map(|&token| parser.push(token)).collect();
    deltas.extend(parser.finish());
    fold(deltas)
}

/// The reference exposes its state, we tell what changes it: the open message,
/// its text so far, this token's text and how many messages are complete.
fn check_steps(name: &str, mut parser: StreamParser, tokens: &[TokenId], steps: &[Step]) {
    let mut open: Option<(Header, String)> = None;
    let mut num_done = 0;
    for (index, (&token, step)) in tokens.iter().zip(steps).enumerate() {
        let mut news = None;
        for Delta { header, part } in parser.push(token) {
            match part {
                Part::Started => open = Some((Header::clone(&header), String::new())),
                Part::Text(text) => {
                    open.as_mut().unwrap().1.push_str(&text);
                    news = Some(text);
                }
                Part::Ended(_) => {
                    open = None;
                    num_done += 1;
                }
            }
        }
        let (state, role, channel, recipient, content_type, content, last_delta, messages_done) = step;
        let expected = (state == "Content").then(|| {
            let fields = (role.clone(), channel.clone(), recipient.clone(), content_type.clone());
            (fields, content.clone(), last_delta.clone())
        });
        let found = open.as_ref().map(|(header, text)| {
            let role = Some(header.author.role.as_str().to_owned());
            let channel = header.channel.as_ref().map(|channel| channel.as_str().to_owned());
            let content_type = header.content_type.as_ref().map(ToString::to_string);
            ((role, channel, header.recipient.clone(), content_type), text.clone(), news.clone())
        });
        assert_eq!(found, expected, "{name} after token {index}");
        assert_eq!(num_done, *messages_done, "{name} after token {index}");
    }
}

/// One line for each message: who (unless it is the assistant), what it is to a
/// front end, how it ended, its text; then what was repaired.
fn picture(completion: &[TokenId]) -> String {
    let mut parser = StreamParser::new();
    let mut deltas: Vec<Delta> = completion.iter().flat_map(|&token| parser.push(token)).collect();
    deltas.extend(parser.finish());
    let mut picture = String::new();
    let mut text = String::new();
    for delta in deltas {
        match &delta.part {
            Part::Started => text.clear(),
            Part::Text(more) => text.push_str(more),
            Part::Ended(end) => {
                let kind = match delta.kind() {
                    Kind::Reasoning => "reasoning".to_owned(),
                    Kind::Content => "content".to_owned(),
                    Kind::ToolCall { name } => format!("call {name}"),
                    Kind::NotAssistant => format!("{:?}", delta.header.author),
                };
                let end = match end {
                    End::End | End::Return | End::Call => "",
                    End::Implied => " (implied end)",
                    End::Truncated => " (truncated)",
                };
                picture.push_str(&format!("{kind}{end}: {text}\n"));
            }
        }
    }
    let repairs: Vec<String> =
        parser.repairs().iter().map(|(kind, count)| format!("{kind:?} {count}")).collect();
    picture + &repairs.join(", ")
}

fn check(completion: &str, expected: &[&str]) {
    let tokens = Tokenizer::shared().encode_with_specials(completion);
    assert_eq!(picture(&tokens), expected.join("\n"), "{completion}");
}

#[test]
fn a_recipient_may_stand_anywhere() {
    let clean = &["call f: {}", ""];
    check("<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>", clean);
    check(" to=functions.f<|channel|>commentary <|constrain|>json<|message|>{}<|call|>", clean);
    check("<|channel|>commentary<|constrain|>json to=functions.f<|message|>{}<|call|>", clean);
    check(
        " to=functions.f<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>",
        clean,
    );
    check("<|channel|>commentary to= functions.f <|constrain|>json<|message|>{}<|call|>", clean);
    check("<|channel|>commentary functions.f <|constrain|>json<|message|>{}<|call|>", clean);
    check("<|channel|>analysis to=python code<|message|>1<|call|>", &["call python: 1", ""]);
    check("<|channel|>analysis to=browser.search<|message|>{}<|call|>", &["call browser.search: {}", ""]);
}

#[test]
fn a_call_may_lack_this_and_that() {
    check("<|channel|>commentary to=functions.f<|message|>{}<|call|>", &["call f: {}", "MissingConstrain 1"]);
    check(
        "<|channel|>commentary to=functions.f json<|message|>{}<|call|>",
        &["call f: {}", "MissingConstrain 1"],
    );
    check(
        "<|channel|>analysis to=functions.f <|constrain|>json<|message|>{}<|end|>",
        &["call f: {}", "CallOffCommentary 1, WrongEnd 1"],
    );
    check(
        " to=functions.f <|constrain|>json<|message|>{}<|call|>",
        &["call f: {}", "MissingChannel 1, CallOffCommentary 1"],
    );
    check(
        "<|channel|>commentary to=functions.f <|constrain|>json{\"a\": 1}<|call|>",
        &["call f: {\"a\": 1}", "MissingMessage 1"],
    );
    check(
        "<|channel|>commentary to=functions.f{\"a\": 1}<|call|>",
        &["call f: {\"a\": 1}", "MissingConstrain 1, MissingMessage 1"],
    );
    check(
        "<|channel|>commentary <|constrain|>what's this?<|end|>",
        &["content: what's this?", "MissingMessage 1"],
    );
    check(
        "<|channel|>commentary to=functions.f <|constrain|>json<|call|>",
        &["call f: ", "MissingMessage 1"],
    );
}

#[test]
fn a_missing_channel_is_an_answer_and_an_unknown_one_too() {
    check("<|message|>hi<|return|>", &["content: hi", "MissingChannel 1"]);
    check("<|channel|><|message|>hi<|return|>", &["content: hi", "MissingChannel 1"]);
    check("<|channel|>musing<|message|>hi<|return|>", &["content: hi", "UnknownChannel 1"]);
    check("<|channel|>commentary<|message|>I look.<|end|>", &["content: I look.", ""]);
    check("<|channel|>analysis<|channel|>final<|message|>hi<|end|>", &["content: hi", "RepeatedChannel 1"]);
    check("<|start|>assistant final<|message|>hi<|end|>", &["content: hi", "RepeatedStart 1"]);
    check("<|start|>analysis<|message|>hm<|end|>", &["reasoning: hm", "RepeatedStart 1, UnknownAuthor 1"]);
}

#[test]
fn without_a_message_token_what_is_no_header_is_content() {
    check("Hello there.<|return|>", &["content: Hello there.", "MissingChannel 1, MissingMessage 1"]);
    check("a cat<|return|>", &["content: a cat", "MissingChannel 1, MissingMessage 1"]);
    check("  \n hi", &["content (truncated):   \n hi", "MissingChannel 1, MissingMessage 1"]);
    check("<|channel|>final hello there<|end|>", &["content: hello there", "MissingMessage 1"]);
    check("<|channel|>hello there<|end|>", &["content: hello there", "MissingChannel 1, MissingMessage 1"]);
    check(
        "<|channel|>final Mail says to=bob is\n fine<|return|>",
        &["content: Mail says to=bob is\n fine", "MissingMessage 1"],
    );
    check(
        "<|channel|>analysis I think<|end|><|start|>assistant<|channel|>final<|message|>ok<|return|>",
        &["reasoning: I think", "content: ok", "MissingMessage 1"],
    );
    let endless = format!("<|channel|>analysis{}<|return|>", " word".repeat(1000));
    check(&endless, &[&format!("reasoning: {}", endless[19..endless.len() - 10].trim()), "MissingMessage 1"]);
}

#[test]
fn text_of_a_model_that_knows_no_harmony_streams() {
    let tokens = Tokenizer::shared().encode_text("Once upon a time");
    let mut parser = StreamParser::new();
    for &token in &tokens {
        let texts = parser.push(token).into_iter().filter(|delta| matches!(delta.part, Part::Text(_)));
        assert_eq!(texts.count(), 1);
    }
    // A character that spans tokens does not end the header early.
    assert_eq!(picture(&[172, 253, 246, 222]), "content (truncated): 😀\nMissingChannel 1, MissingMessage 1");
}

#[test]
fn a_message_may_begin_inside_another() {
    check(
        "<|channel|>analysis<|message|>hm<|channel|>final<|message|>ok<|return|>",
        &["reasoning (implied end): hm", "content: ok", "MissingEnd 1"],
    );
    check(
        "<|channel|>analysis<|message|>hm<|start|>assistant<|channel|>final<|message|>ok<|return|>",
        &["reasoning (implied end): hm", "content: ok", "MissingEnd 1"],
    );
    check(
        "<|channel|>analysis<|message|>a<|channel|>b<|end|>",
        &["reasoning (implied end): a", "reasoning: b", "MissingMessage 1, MissingEnd 1"],
    );
}

#[test]
fn text_between_messages_is_an_answer() {
    check(
        "<|channel|>final<|message|>a<|end|>oops<|start|>assistant<|channel|>final<|message|>b<|end|>",
        &[
            "content: a",
            "content (implied end): oops",
            "content: b",
            "MissingStart 1, MissingChannel 1, MissingMessage 1, MissingEnd 1",
        ],
    );
    check(
        "<|channel|>commentary to=python<|message|>{}<|call|>and now?",
        &[
            "call python: {}",
            "content (truncated): and now?",
            "MissingStart 1, MissingChannel 1, MissingMessage 1",
        ],
    );
    check(
        "<|channel|>analysis<|message|>hm<|end|>assistant<|channel|>final<|message|>ok<|return|>",
        &["reasoning: hm", "content: ok", "MissingStart 1, RepeatedStart 1"],
    );
    check(
        "<|channel|>analysis<|message|>hm<|end|><|channel|>final<|message|>ok<|return|>",
        &["reasoning: hm", "content: ok", "MissingStart 1"],
    );
    check(
        "<|channel|>analysis<|message|>hm<|end|>\n<|start|>assistant<|channel|>final<|message|>ok<|return|>",
        &["reasoning: hm", "content: ok", "MissingStart 1, RepeatedStart 1"],
    );
}

#[test]
fn words_too_many_in_a_header_do_not_spoil_the_arguments() {
    check(
        "<|channel|>commentary I look it up to=functions.f <|constrain|>json<|message|>{}<|call|>",
        &["content (implied end): I look it up", "call f: {}", "StrayHeaderText 1"],
    );
    check(
        "<|channel|>commentary to=functions.a to=functions.b <|constrain|>json<|message|>{}<|call|>",
        &["content (implied end): to=functions.a", "call b: {}", "RepeatedRecipient 1"],
    );
}

#[test]
fn a_recipient_that_does_not_come_is_counted() {
    for header in [
        "to=<|channel|>final",
        "<|channel|>final to=<|constrain|>json",
        "<|channel|>final to=",
        "<|channel|>final <|constrain|>json to= ",
    ] {
        check(&format!("{header}<|message|>x<|return|>"), &["content: x", "StrayHeaderText 1"]);
    }
}

#[test]
fn prose_in_a_header_calls_nothing() {
    check(
        "<|channel|>final As of v1.0, e.g. python<|message|>x<|return|>",
        &["content (implied end): As of v1.0, e.g. python", "content: x", "StrayHeaderText 1"],
    );
}

#[test]
fn a_completion_may_be_cut_off_anywhere() {
    check("", &["EmptyHeader 1"]);
    check("<|channel|>fin", &["EmptyHeader 1"]);
    check("<|channel|>commentary to=functions.get_w", &["EmptyHeader 1"]);
    check("<|channel|>commentary to=functions.f <|constrain|>js", &["EmptyHeader 1"]);
    check("<|channel|>final<|message|>", &["content (truncated): ", ""]);
    check("<|channel|>final<|message|>a", &["content (truncated): a", ""]);
    check("<|channel|>final<|message|>a<|end|><|start|>assis", &["content: a", "EmptyHeader 1"]);
    check("<|channel|>final<|message|>a<|end|>", &["content: a", ""]);
    assert_eq!(picture(&[200005, 17196, 200008, 32, 172, 253]), "content (truncated): A\u{fffd}\n");
}

#[test]
fn special_tokens_where_they_mean_nothing_are_dropped() {
    check(
        "<|channel|>final<|message|>a<|endoftext|>b<|message|>c<|constrain|>d<|reserved_200013|>e<|return|><|return|>",
        &["content: abcde", "StraySpecial 5"],
    );
    check("<|return|>", &["EmptyHeader 1"]);
    assert_eq!(
        picture(&[200005, 17196, 200008, 32, 201500, 33, 200002]),
        "content: A\u{fffd}B\nUnknownToken 1"
    );
}

#[test]
fn others_may_speak() {
    let conversation = "<|start|>user:alice<|message|>x<|end|>\
        <|start|>functions.f to=assistant<|channel|>commentary<|message|>r<|end|>\
        <|start|>lookup to=assistant<|message|>r<|end|><|start|>a.b<|message|>r<|end|><|start|>wizard<|message|>w<|end|>";
    let messages = parse_conversation(&Tokenizer::shared().encode_with_specials(conversation));
    let authors = messages
        .iter()
        .map(|message| (message.header.author.role.as_str(), message.header.author.name.as_deref()));
    let expected = [
        ("user", Some("alice")),
        ("tool", Some("functions.f")),
        ("tool", Some("lookup")),
        ("tool", Some("a.b")),
        ("assistant", Some("wizard")),
    ];
    assert!(authors.eq(expected), "{messages:?}");
}
