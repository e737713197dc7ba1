//! What messages hold: text, or the structured contents of the system and the
//! developer message. Data only; `render` writes it out.

use serde_json::Value;

use super::Channel;

/// One part of a message.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// Text, verbatim; special spellings in it stay text.
    Text(String),
    /// Only in system messages.
    System(SystemContent),
    /// Only in developer messages.
    Developer(DeveloperContent),
}

impl From<String> for Content {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<SystemContent> for Content {
    fn from(content: SystemContent) -> Self {
        Self::System(content)
    }
}

impl From<DeveloperContent> for Content {
    fn from(content: DeveloperContent) -> Self {
        Self::Developer(content)
    }
}

/// How the model is set up. What is `None` or empty is not written at all.
#[derive(Clone, Debug, PartialEq)]
pub struct SystemContent {
    /// Who the model is told to be.
    pub model_identity: Option<String>,
    /// Up to when it knows the world.
    pub knowledge_cutoff: Option<String>,
    /// Today, as `2025-06-28`. A date changes every prompt daily, and with it
    /// what a prefix cache and golden tests are worth.
    pub current_date: Option<String>,
    /// How long to think.
    pub reasoning_effort: Option<ReasoningEffort>,
    /// Built-in tools (`browser`, `python`); functions belong to the developer.
    pub tools: Vec<ToolNamespace>,
    /// Which channels the model may use.
    pub channels: Option<Channels>,
}

impl Default for SystemContent {
    /// What gpt-oss was trained with: ChatGPT, 2024-06, medium effort, all three
    /// channels, and no date.
    fn default() -> Self {
        Self {
            model_identity: Some("You are ChatGPT, a large language model trained by OpenAI.".to_owned()),
            knowledge_cutoff: Some("2024-06".to_owned()),
            current_date: None,
            reasoning_effort: Some(ReasoningEffort::Medium),
            tools: Vec::new(),
            channels: Some(Channels::default()),
        }
    }
}

/// How long the model thinks before it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReasoningEffort {
    /// Hardly.
    Low,
    /// As trained.
    Medium,
    /// At length.
    High,
}

impl ReasoningEffort {
    /// As the system message spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }
}

/// The channels that the system message names.
#[derive(Clone, Debug, PartialEq)]
pub struct Channels {
    /// In the order to be written; with none, nothing is.
    pub valid: Vec<Channel>,
    /// Whether the model is told that each message needs one.
    pub required: bool,
}

impl Default for Channels {
    /// All three, and required.
    fn default() -> Self {
        Self { valid: vec![Channel::Analysis, Channel::Commentary, Channel::Final], required: true }
    }
}

/// What the application asks of the model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeveloperContent {
    /// `Some("")` still writes the heading.
    pub instructions: Option<String>,
    /// Usually one namespace, `functions`. Written in the order of their names.
    pub tools: Vec<ToolNamespace>,
    /// Shapes that the answer may have.
    pub response_formats: Vec<ResponseFormat>,
}

/// Tools that share the first half of their qualified names.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolNamespace {
    /// The half before the dot.
    pub name: String,
    /// What they have in common.
    pub description: Option<String>,
    /// May be empty: `python` is called by its namespace alone.
    pub tools: Vec<Tool>,
}

impl ToolNamespace {
    /// Where a client's own functions live.
    pub const FUNCTIONS: &str = "functions";

    /// A client's own functions.
    pub fn functions(tools: impl IntoIterator<Item = Tool>) -> Self {
        Self { name: Self::FUNCTIONS.to_owned(), description: None, tools: tools.into_iter().collect() }
    }
}

/// Something that the model can call.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    /// The half of the qualified name after the dot.
    pub name: String,
    /// Nothing is written when empty.
    pub description: String,
    /// A JSON schema, written as a TypeScript type with its keys in the order
    /// given; `None` for a tool without parameters.
    pub parameters: Option<Value>,
}

/// A shape that the final answer may have.
///
/// Telling the model is only half of it: that the answer has the shape is for
/// sampling to enforce.
#[derive(Clone, Debug, PartialEq)]
pub struct ResponseFormat {
    /// What the model may call it.
    pub name: String,
    /// When to use it.
    pub description: Option<String>,
    /// A JSON schema, written as compact JSON with its keys in the order given.
    pub schema: Value,
}
