//! Harmony, the chat format of gpt-oss: conversations to tokens, tokens to
//! channel deltas, with the vocabulary compiled in.
//!
//! It knows neither HTTP nor batches, and reads nothing from disk or network.
//!
//! Invariant: `parse(render(c))` gives back `c`'s assistant turns, and the
//! parser never fails on model output. A model may emit anything; what cannot
//! be understood as a header comes out as text, and [`Repairs`] counts it.
//!
//! Rooms: `tokenizer`, `conversation` (the nouns), `render` and its `schema`,
//! `parse`, and `constrain`, which says for each token of an answer which ones
//! may come next. [`Constraint`] covers what a client can demand: the form of an
//! answer, who is called, and with which arguments; thinking stays free.
//!
//! ```
//! use chorale_harmony::{Conversation, Kind, Message, Part, RenderOptions, StreamParser, SystemContent};
//! use chorale_harmony::{Tokenizer, render_for_completion};
//!
//! let conversation =
//!     Conversation::new([Message::system(SystemContent::default()), Message::user("What is 2 + 2?")]);
//! let prompt = render_for_completion(&conversation, &RenderOptions::default())?;
//! assert!(!prompt.is_empty());
//!
//! // What a model answers, token by token.
//! let completion = "<|channel|>analysis<|message|>A sum.<|end|>\
//!                   <|start|>assistant<|channel|>final<|message|>4<|return|>";
//! let mut parser = StreamParser::new();
//! let mut content = String::new();
//! for token in Tokenizer::shared().encode_with_specials(completion) {
//!     for delta in parser.push(token) {
//!         if let (Kind::Content, Part::Text(text)) = (delta.kind(), &delta.part) {
//!             content.push_str(text);
//!         }
//!     }
//! }
//! assert_eq!(content, "4");
//! # Ok::<(), chorale_harmony::RenderError>(())
//! ```

mod constrain;
mod conversation;
mod parse;
mod render;
mod schema;
mod tokenizer;

pub use constrain::{
    Constraint, ConstraintError, ConstraintSpec, ResponseConstraint, SpecError, ToolChoice, ToolConstraint,
};
pub use conversation::{
    Author, Channel, Channels, Content, ContentType, Conversation, DeveloperContent, Header, Kind, Message,
    ReasoningEffort, ResponseFormat, Role, SystemContent, Tool, ToolNamespace,
};
pub use parse::{Delta, End, Part, Repair, Repairs, StreamParser, fold, parse, parse_conversation};
pub use render::{
    AnalysisHistory, RenderError, RenderOptions, render_for_completion, render_for_training, render_text,
};
pub use tokenizer::{StreamDecoder, Tokenizer, VOCABULARY_SIZE, special};

pub use chorale_plan::TokenId;
