//! What a client demands of an answer, and why a demand can be refused. Plain
//! data: how it is enforced is the business of the rooms beside this one.

use chorale_plan::TokenId;
use serde_json::Value;

/// Everything that limits what the assistant may say in its turn.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConstraintSpec {
    /// What the answer must look like. It says nothing about reasoning,
    /// preambles and calls.
    pub response: ResponseConstraint,
    /// The functions that exist; the assistant can address no other.
    pub tools: Vec<ToolConstraint>,
    /// Whether functions are called.
    pub tool_choice: ToolChoice,
    /// Whether another call may follow a `<|call|>`. It matters only where the
    /// engine goes on after that token, which ends a generation otherwise.
    pub parallel_tool_calls: bool,
}

/// What the body of the `final` message must be.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum ResponseConstraint {
    /// Anything, nothing included.
    #[default]
    None,
    /// Any JSON object.
    JsonObject,
    /// JSON that this schema validates.
    JsonSchema(Value),
    /// A text that this expression, in the syntax of Rust's `regex`, matches as a whole.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A text of this grammar, in llguidance's variant of Lark.
    Lark(String),
}

/// A function that may be called.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolConstraint {
    /// As the client defined it, without `functions.`.
    pub name: String,
    /// The JSON schema of the arguments; `None` is any object.
    pub parameters: Option<Value>,
    /// Whether arguments must follow the schema; otherwise they are any JSON object.
    pub strict: bool,
}

/// Whether functions are called, and which.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// None is.
    None,
    /// As the model likes.
    #[default]
    Auto,
    /// At least one, before the turn ends.
    Required,
    /// This one, once.
    Named(String),
}

impl ToolChoice {
    /// Whether this tool may be called.
    pub(super) fn allows(&self, name: &str) -> bool {
        match self {
            Self::None => false,
            Self::Auto | Self::Required => true,
            Self::Named(named) => named == name,
        }
    }
}

/// Why a demand cannot be enforced. The client must change it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// It is well formed, perhaps, but not something that can be enforced.
    #[error("{field} cannot be enforced: {reason}")]
    Unsupported {
        /// The field of the request.
        field: String,
        /// What about it.
        reason: String,
    },
    /// It is larger than what is served.
    #[error("{field} is too large: {found} {what} where {limit} are served")]
    TooLarge {
        /// The field of the request.
        field: String,
        /// What was counted.
        what: &'static str,
        /// How many there are, or how many were counted before giving up.
        found: usize,
        /// How many there may be.
        limit: usize,
    },
    /// A function's name must be letters, digits, `_`, `-` and `.`, and its own.
    #[error("{field} is not a name that can be called: {reason}")]
    Name {
        /// The field of the request.
        field: String,
        /// What about it.
        reason: &'static str,
    },
    /// A call is demanded of a function that is not among the tools.
    #[error("tool_choice demands a call of {name:?}, which is not among the tools")]
    UnknownTool {
        /// The name.
        name: String,
    },
    /// A call is demanded, but there is nothing to call.
    #[error("tool_choice demands a call, but there are no tools")]
    NoTools,
}

impl SpecError {
    /// The field of the request that is at fault.
    pub fn field(&self) -> &str {
        match self {
            Self::Unsupported { field, .. } | Self::TooLarge { field, .. } | Self::Name { field, .. } => {
                field
            }
            Self::UnknownTool { .. } | Self::NoTools => "tool_choice",
        }
    }
}

/// Generation cannot go on under its constraint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    /// A token was accepted that was not allowed.
    #[error("token {token} is not allowed here")]
    NotAllowed {
        /// The token.
        token: TokenId,
    },
    /// Nothing can follow what was said, or a mask costs more work than a step may.
    #[error("the grammar cannot go on: {reason}")]
    Grammar {
        /// Why.
        reason: String,
    },
}
