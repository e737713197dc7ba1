//! The ids that are not text: harmony's format tokens and their spellings.

use chorale_plan::TokenId;

/// Opens a sequence in OpenAI's vocabularies; harmony never writes it.
pub const START_OF_TEXT: TokenId = 199_998;
/// Separates documents in training; harmony never writes it.
pub const END_OF_TEXT: TokenId = 199_999;
/// Ends the last message of an answer. One of the two stop tokens.
pub const RETURN: TokenId = 200_002;
/// In a header: the content type that follows constrains the content.
pub const CONSTRAIN: TokenId = 200_003;
/// In a header: the channel's name follows.
pub const CHANNEL: TokenId = 200_005;
/// Opens a header; the author follows.
pub const START: TokenId = 200_006;
/// Ends a message.
pub const END: TokenId = 200_007;
/// Ends a header; the content follows.
pub const MESSAGE: TokenId = 200_008;
/// Ends a tool call. One of the two stop tokens.
pub const CALL: TokenId = 200_012;

/// After these the model waits for somebody else.
pub const STOP: [TokenId; 2] = [RETURN, CALL];

/// The lowest special id; everything below is ordinary text.
pub(crate) const FIRST: TokenId = START_OF_TEXT;

const NAMED: [(TokenId, &str); 9] = [
    (START_OF_TEXT, "<|startoftext|>"),
    (END_OF_TEXT, "<|endoftext|>"),
    (RETURN, "<|return|>"),
    (CONSTRAIN, "<|constrain|>"),
    (CHANNEL, "<|channel|>"),
    (START, "<|start|>"),
    (END, "<|end|>"),
    (MESSAGE, "<|message|>"),
    (CALL, "<|call|>"),
];

/// How a special id is spelled; ids without a meaning are `<|reserved_N|>`,
/// 200018 too, which OpenAI's other vocabularies call `<|endofprompt|>`.
pub(crate) fn spelling(id: TokenId) -> String {
    match NAMED.iter().find(|(named, _)| *named == id) {
        Some((_, name)) => (*name).to_owned(),
        None => format!("<|reserved_{id}|>"),
    }
}
