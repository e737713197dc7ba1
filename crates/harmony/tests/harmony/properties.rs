//! What must hold for any input. The seed is fixed: a run that fails here fails
//! everywhere.

use std::sync::LazyLock;

use chorale_harmony::{
    AnalysisHistory, Channel, Content, ContentType, Conversation, Delta, Kind, Message, Part, RenderOptions,
    Role, StreamDecoder, StreamParser, TokenId, Tokenizer, fold, parse, parse_conversation,
    render_for_completion, special,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use tiktoken_rs::CoreBPE;

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        rng_seed: RngSeed::Fixed(20),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// Any id, with those that mean something to harmony, single bytes and unknown
/// ones more often than their share.
fn token() -> impl Strategy<Value = TokenId> {
    prop_oneof![
        4 => 0..200_000_u32,
        3 => 0..256_u32,
        4 => 200_000..200_013_u32,
        1 => 201_080..201_100_u32,
        1 => Just(u32::MAX),
    ]
}

/// Pieces of headers and content; `{}` becomes a word that occurs only once.
fn fragment() -> impl Strategy<Value = &'static str> {
    const SPECIALS: &[&str] = &[
        "<|start|>",
        "<|channel|>",
        "<|message|>",
        "<|constrain|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|endoftext|>",
    ];
    const WORDS: &[&str] =
        &["assistant", " user", "analysis", "commentary", "final", " json", " to=functions.f", " to=", "\n"];
    prop_oneof![prop::sample::select(SPECIALS), prop::sample::select(WORDS), Just(" {}")]
}

fn deltas(mut parser: StreamParser, tokens: &[TokenId]) -> Vec<Delta> {
    let mut deltas: Vec<Delta> = tokens.iter().flat_map(|&token| parser.push(token)).collect();
    deltas.extend(parser.finish());
    assert!(parser.finish().is_empty());
    deltas
}

/// Text from characters that the splitting rule treats differently.
fn tricky_text() -> impl Strategy<Value = String> {
    let units = [
        " ", "  ", "\n", "\r", "\t", "\u{a0}", "a", "B", "ß", "ǅ", "汉", "é", "e\u{301}", "1", "٣", "½",
        "'s", "'LL", "!", "/", "<|", "_", "😀", "\u{200d}", "hello", "World",
    ];
    vec(prop::sample::select(units.to_vec()), 0..60).prop_map(|units| units.concat())
}

static REFERENCE: LazyLock<CoreBPE> = LazyLock::new(|| tiktoken_rs::o200k_harmony().unwrap());

proptest! {
    #![proptest_config(config(2_000))]

    #[test]
    fn encoding_is_tiktokens_and_decoding_undoes_it(text in prop_oneof![tricky_text(), any::<String>()]) {
        let tokenizer = Tokenizer::shared();
        let tokens = tokenizer.encode_text(&text);
        prop_assert_eq!(&tokens, &REFERENCE.encode_ordinary(&text));
        prop_assert_eq!(tokenizer.decode(&tokens), text);
    }

    #[test]
    fn a_decoded_stream_is_the_decoded_whole(tokens in vec(token(), 0..40)) {
        let mut decoder = StreamDecoder::new();
        let mut text: String = tokens.iter().map(|&token| decoder.push(token)).collect();
        text.push_str(&decoder.finish());
        prop_assert_eq!(text, Tokenizer::shared().decode(&tokens));
    }

    #[test]
    fn any_tokens_parse_and_the_whole_is_the_fold_of_the_stream(tokens in vec(token(), 0..60)) {
        let stream = deltas(StreamParser::new(), &tokens);
        check_order(&stream)?;
        prop_assert_eq!(fold(stream), parse(&tokens));
        let stream = deltas(StreamParser::for_conversation(), &tokens);
        check_order(&stream)?;
        prop_assert_eq!(fold(stream), parse_conversation(&tokens));
    }

    #[test]
    fn no_text_is_lost(fragments in vec(fragment(), 0..30)) {
        let mut words = Vec::new();
        let numbered = fragments.iter().enumerate().map(|(index, fragment)| {
            let word = format!("q{index}z");
            let text = fragment.replace("{}", &word);
            words.extend(fragment.contains("{}").then_some(word));
            text
        });
        let text: String = numbered.collect();
        let messages = parse(&Tokenizer::shared().encode_with_specials(&text));
        let (all, texts) = (format!("{messages:?}"), messages.iter().map(Message::text).collect::<String>());
        for word in words {
            prop_assert!(all.contains(&word), "{} of {:?} in {}", word, text, all);
            prop_assert!(texts.matches(&word).count() <= 1, "{} of {:?} in {}", word, text, all);
        }
    }

    #[test]
    fn text_outside_of_headers_comes_out_as_it_went_in(text in tricky_text(), cut in 0..200_usize) {
        let tokenizer = Tokenizer::shared();
        let mut tokens = tokenizer.encode_with_specials("<|channel|>final<|message|>");
        let content = tokenizer.encode_text(&text);
        let content = &content[..cut.min(content.len())];
        tokens.extend_from_slice(content);
        prop_assert_eq!(parse(&tokens)[0].text(), tokenizer.decode(content));
    }
}

proptest! {
    #![proptest_config(config(500))]

    #[test]
    fn parsing_undoes_rendering(messages in vec(message(), 0..6)) {
        let conversation = Conversation::new(messages);
        let options = RenderOptions { analysis: AnalysisHistory::Keep, next: Role::Assistant };
        let mut tokens = render_for_completion(&conversation, &options).unwrap();
        // Without the header that the model is to go on from.
        tokens.truncate(tokens.len() - 2);
        prop_assert_eq!(parse_conversation(&tokens), conversation.messages);
    }

    #[test]
    fn a_completion_is_what_the_next_prompt_holds(messages in vec(assistant_message(), 1..5)) {
        // What stands after `<|start|>assistant`, recipients in the place where
        // the renderer puts them.
        let conversation = Conversation::new(messages);
        let options = RenderOptions { analysis: AnalysisHistory::Keep, next: Role::Assistant };
        let tokens = render_for_completion(&conversation, &options).unwrap();
        let mut parser = StreamParser::new();
        let completion = &tokens[2..tokens.len() - 2];
        let stream: Vec<Delta> = completion.iter().flat_map(|&token| parser.push(token)).collect();
        prop_assert_eq!(fold(stream), conversation.messages);
        prop_assert_eq!(parser.repairs().total(), 0, "{:?}", parser.repairs());
    }
}

fn check_order(deltas: &[Delta]) -> Result<(), TestCaseError> {
    let mut open = None;
    for delta in deltas {
        match &delta.part {
            Part::Started => {
                prop_assert!(open.is_none());
                open = Some(&delta.header);
            }
            Part::Text(text) => {
                prop_assert!(!text.is_empty());
                prop_assert_eq!(open, Some(&delta.header));
            }
            Part::Ended(_) => prop_assert_eq!(open.take(), Some(&delta.header)),
        }
    }
    prop_assert!(open.is_none());
    Ok(())
}

/// Text as clients write it, special spellings included.
fn text() -> impl Strategy<Value = String> {
    let spelled =
        prop::sample::select(vec!["<|end|>", "<|start|>assistant", "to=functions.f", " <|message|> "]);
    vec(prop_oneof![tricky_text(), spelled.prop_map(str::to_owned)], 0..4).prop_map(|parts| parts.concat())
}

fn message() -> impl Strategy<Value = Message> {
    let user = text().prop_map(Message::user);
    let result = (tool_name(), text()).prop_map(|(name, text)| Message::tool_result(name, text));
    prop_oneof![2 => user, 1 => result, 4 => assistant_message()]
}

fn assistant_message() -> impl Strategy<Value = Message> {
    let channel = prop_oneof![Just(Channel::Analysis), Just(Channel::Commentary), Just(Channel::Final)];
    let said = (channel, text()).prop_map(|(channel, text)| Message::assistant(channel, text));
    let call = (tool_name(), text()).prop_map(|(name, text)| Message::tool_call(name, text));
    let code = text().prop_map(|text| {
        let mut code = Message::assistant(Channel::Analysis, text).to("python");
        code.header.content_type = Some(ContentType { constrained: false, name: "code".to_owned() });
        code
    });
    prop_oneof![3 => said, 2 => call, 1 => code]
}

fn tool_name() -> impl Strategy<Value = String> {
    "functions\\.[a-zA-Z0-9_-]{1,64}"
}

#[test]
fn a_prefix_of_a_completion_says_a_prefix_of_it() {
    let completion = "<|channel|>analysis<|message|>Ünïcödé 😀 thoughts.<|end|>\
        <|start|>assistant<|channel|>commentary<|message|>I look it up.<|end|>\
        <|start|>assistant to=functions.get_weather<|channel|>commentary <|constrain|>json<|message|>{\"a\": 1}<|call|>\
        <|start|>assistant<|channel|>final<|message|>It rains.<|return|>";
    let tokens = Tokenizer::shared().encode_with_specials(completion);
    let said = |messages: &[Message]| -> String {
        let texts = messages.iter().map(|message| format!("{:?}{}", message.header.kind(), message.text()));
        texts.collect()
    };
    let whole = said(&parse(&tokens));
    for len in 0..tokens.len() {
        // Half a character at the very end is a replacement character.
        let part = said(&parse(&tokens[..len]));
        assert!(whole.starts_with(part.trim_end_matches('\u{fffd}')), "{part}");
    }
    assert!(whole.contains(&format!("{:?}", Kind::ToolCall { name: "get_weather" })));
    assert_eq!(special::STOP, [special::RETURN, special::CALL]);
    assert!(matches!(parse(&tokens)[0].content[..], [Content::Text(_)]));
}
