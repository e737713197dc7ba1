//! Any tokens are messages: the parser never panics, a stream and the whole
//! agree, and text is neither lost nor changed. Inputs that begin with an even
//! byte are text with specials spelled, others are ids in a code of their own.
//! Seeds: the fixtures' `harmony/parse.json`.

#![no_main]

use chorale_harmony::{
    Delta, End, Header, Message, Part, StreamParser, TokenId, Tokenizer, fold, parse, parse_conversation,
    special,
};
use libfuzzer_sys::fuzz_target;
use std::sync::Arc;

fuzz_target!(|input: &[u8]| {
    let Some((mode, input)) = input.split_first() else { return };
    let tokens = match mode % 2 {
        0 => Tokenizer::shared().encode_with_specials(&String::from_utf8_lossy(input)),
        _ => ids(input),
    };
    let messages = check(StreamParser::new(), &tokens);
    assert_eq!(messages, parse(&tokens));
    let messages = check(StreamParser::for_conversation(), &tokens);
    assert_eq!(messages, parse_conversation(&tokens));
});

/// Small bytes are specials and single characters, others begin longer ids.
fn ids(mut input: &[u8]) -> Vec<TokenId> {
    let mut tokens = Vec::new();
    while let Some((&first, rest)) = input.split_first() {
        let num_more = match first {
            0..192 => 0,
            192..224 => 2,
            224..=255 => 4,
        };
        let Some((more, rest)) = rest.split_at_checked(num_more) else { break };
        let number = more.iter().fold(0, |number, &byte| number << 8 | TokenId::from(byte));
        tokens.push(match first {
            0..32 => special::RETURN - 4 + TokenId::from(first),
            32..192 => TokenId::from(first) * 2 - 64,
            192..224 => number + (TokenId::from(first) - 192) * 65_536,
            224..=255 => number,
        });
        input = rest;
    }
    tokens
}

/// Parses token by token and holds every token against what it brought.
fn check(mut parser: StreamParser, tokens: &[TokenId]) -> Vec<Message> {
    let mut all = Vec::new();
    let mut open: Option<Open> = None;
    for &token in tokens {
        let deltas = parser.push(token);
        if let Some(open) = &mut open {
            open.said.extend(is_text(token).then_some(token));
        }
        follow(&mut open, &deltas, token);
        all.extend(deltas);
    }
    let deltas = parser.finish();
    follow(&mut open, &deltas, special::END);
    all.extend(deltas);
    assert!(open.is_none() && parser.finish().is_empty());

    let messages = fold(all);
    let found = haystack(&messages);
    let is_silent = parser.repairs().total() == 0;
    for word in words(tokens) {
        let atoms = word.split(|c: char| !c.is_ascii_alphanumeric());
        for atom in atoms.filter(|atom| is_silent || !may_be_dropped(&word, atom)) {
            assert!(found.contains(atom), "{atom:?} of {word:?} is lost in {found:?}");
        }
    }
    messages
}

/// A message that is being streamed.
struct Open {
    header: Arc<Header>,
    text: String,
    /// Text tokens after the one that opened it.
    said: Vec<TokenId>,
    /// Whether `<|message|>` opened it, so that it has no text but `said`.
    is_regular: bool,
}

/// Checks that a message is started, continued and ended, in this order.
fn follow(open: &mut Option<Open>, deltas: &[Delta], token: TokenId) {
    for delta in deltas {
        match &delta.part {
            Part::Started => {
                assert!(open.is_none());
                let header = Arc::clone(&delta.header);
                let is_regular = token == special::MESSAGE;
                *open = Some(Open { header, text: String::new(), said: Vec::new(), is_regular });
            }
            Part::Text(more) => {
                let open = open.as_mut().expect("text is a message's");
                assert!(!more.is_empty() && Arc::ptr_eq(&open.header, &delta.header));
                open.text.push_str(more);
            }
            Part::Ended(end) => {
                let open = open.take().expect("only a message ends");
                assert!(Arc::ptr_eq(&open.header, &delta.header));
                // Words that had no place in a header are a message by themselves.
                let is_aside = token == special::MESSAGE && *end == End::Implied;
                open.check(is_aside);
            }
        }
    }
}

impl Open {
    fn check(&self, is_aside: bool) {
        let said = Tokenizer::shared().decode(&self.said);
        if self.is_regular && !is_aside {
            assert_eq!(self.text, said);
        } else if !said.starts_with('\u{fffd}') {
            // The token that opened it may have left half a character.
            assert!(self.text.ends_with(&said), "{:?} does not end in {said:?}", self.text);
        }
    }
}

fn is_text(token: TokenId) -> bool {
    !Tokenizer::shared().is_special(token)
}

/// The words that went in; special tokens without a meaning do not part them.
fn words(tokens: &[TokenId]) -> Vec<String> {
    const FORMAT: [TokenId; 7] = [
        special::START,
        special::CHANNEL,
        special::CONSTRAIN,
        special::MESSAGE,
        special::END,
        special::RETURN,
        special::CALL,
    ];
    let runs = tokens.split(|token| FORMAT.contains(token));
    let texts = runs.map(|run| {
        let text: Vec<TokenId> = run.iter().copied().filter(|&token| is_text(token)).collect();
        Tokenizer::shared().decode(&text)
    });
    texts.flat_map(|text| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// Whether a word may mean nothing, if that is counted: words that belong in a
/// header of which nothing came, and channels that a later one overrides.
fn may_be_dropped(word: &str, atom: &str) -> bool {
    const HEADER_WORDS: [&str; 11] = [
        "assistant",
        "user",
        "system",
        "developer",
        "tool",
        "analysis",
        "commentary",
        "final",
        "json",
        "code",
        "to",
    ];
    let is_name = word.starts_with("to=") || word.contains('.') || word.contains(':');
    is_name || HEADER_WORDS.iter().any(|header_word| header_word.starts_with(atom))
}

/// Everything that the messages say, as a header would spell it.
fn haystack(messages: &[Message]) -> String {
    let mut found = String::new();
    for Message { header, content: _ } in messages {
        let name = header.author.name.as_deref().unwrap_or_default();
        found.push_str(&format!("{}:{name}\n", header.author.role.as_str()));
        found.extend(header.recipient.iter().map(|recipient| format!("to={recipient}\n")));
        found.extend(header.channel.iter().map(|channel| format!("{}\n", channel.as_str())));
        found.extend(header.content_type.iter().map(|kind| format!("{}\n", kind.name)));
    }
    found.extend(messages.iter().map(|message| format!("{}\n", message.text())));
    found
}
