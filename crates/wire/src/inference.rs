//! The public API, `chorale.inference.v1`: its messages, and the plain data
//! that they become. What is asked is checked here field by field; what an
//! answer means is decided elsewhere.
//!
//! A request becomes plain data by `TryFrom`, which names the field that is
//! wrong; plain data becomes a response by `From`, which cannot fail.

mod chat;
mod events;
mod generate;
mod sampling;
mod server;

pub use crate::field::InvalidField;
pub use chat::{
    Chat, Format, Message, ReasoningEffort, SchemaFormat, SystemPrompt, Tool, ToolCall, ToolChoice,
};
pub use events::{
    Begun, ChatPart, Ended, Event, FinishReason, SampledToken, StopCause, TokenLogprob, TokenPart, Usage,
};
pub use generate::{Generate, Prompt};
pub use sampling::{Handling, Limits, Sampling};
pub use server::{
    Cancel, Detokenize, LoadProgress, LoadStatus, Model, RequestState, RequestSummary, Tokenize,
    TokenizeInput, Tokenized, WatchLoadStatus,
};

/// What the protos say, in Rust: messages, the service's trait and its client.
#[allow(missing_docs, clippy::all, clippy::unwrap_used)]
pub mod v1 {
    tonic::include_proto!("chorale.inference.v1");
}

/// The compiled protos with their comments, for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("inference_v1");

/// The service's full name, as health checks ask for it.
pub const SERVICE_NAME: &str = "chorale.inference.v1.Inference";
