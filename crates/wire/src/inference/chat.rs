//! The chat level's request as plain data: each message has what its role may
//! have and nothing else. How it is put to the model is not decided here.

use super::sampling::{Handling, Limits, Sampling, num_choices, num_top_logprobs, optional};
use super::v1;
use crate::field::{InvalidField, absent, filled, json_object, known, name, present, unless_empty};
use serde_json::{Map, Value};
use std::num::NonZeroU32;

/// A conversation to be answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Chat {
    /// `None` takes the default.
    pub model: Option<String>,
    /// At least one.
    pub messages: Vec<Message>,
    /// Of different names.
    pub tools: Vec<Tool>,
    /// `None` leaves it to the server.
    pub tool_choice: Option<ToolChoice>,
    /// Whether one answer may hold several calls; `None` leaves it to the model.
    pub parallel_tool_calls: Option<bool>,
    /// The shape of the answer.
    pub format: Format,
    /// `None` leaves it to the server.
    pub reasoning_effort: Option<ReasoningEffort>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// When the answer ends by itself.
    pub limits: Limits,
    /// Independent answers.
    pub n: NonZeroU32,
    /// Alternatives of each token; `None` for no log-probabilities.
    pub num_top_logprobs: Option<u32>,
    /// What the model is told about itself.
    pub system_prompt: SystemPrompt,
    /// How the server treats it.
    pub handling: Handling,
}

/// What somebody said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// The application, as `system`.
    System(String),
    /// The application, as `developer`.
    Developer(String),
    /// The person.
    User(String),
    /// The model.
    Assistant {
        /// What was thought first.
        reasoning: Option<String>,
        /// What was said.
        content: Option<String>,
        /// What was called then.
        calls: Vec<ToolCall>,
    },
    /// A function that was called.
    Tool {
        /// Which call this answers.
        call_id: String,
        /// The answer.
        content: String,
    },
}

/// A call that the model made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolCall {
    /// Not empty.
    pub id: String,
    /// The function.
    pub name: String,
    /// As the model wrote them.
    pub arguments: String,
}

/// A function that the model may call.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    /// Letters, digits, `_`, `-` and `.`.
    pub name: String,
    /// May be empty.
    pub description: String,
    /// A JSON schema, an object.
    pub parameters: Option<Value>,
    /// Hold the arguments to the schema.
    pub strict: bool,
}

/// Whether the model calls functions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolChoice {
    /// It does not.
    None,
    /// If it wants to.
    Auto,
    /// It does.
    Required,
    /// It calls this one.
    Function(String),
}

/// The shape of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Format {
    /// Anything.
    Text,
    /// Some JSON object.
    JsonObject,
    /// What a schema describes.
    JsonSchema(SchemaFormat),
}

/// A shape that a schema describes.
#[derive(Clone, Debug, PartialEq)]
pub struct SchemaFormat {
    /// What the model may call it.
    pub name: String,
    /// When to use it.
    pub description: Option<String>,
    /// An object.
    pub schema: Value,
}

/// How long the model thinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReasoningEffort {
    /// Hardly.
    Low,
    /// As trained.
    Medium,
    /// At length.
    High,
}

/// What the model is told about itself: `None` is the server's default, empty
/// leaves the line out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SystemPrompt {
    /// Who it is.
    pub model_identity: Option<String>,
    /// Up to when it knows the world.
    pub knowledge_cutoff: Option<String>,
    /// Today.
    pub current_date: Option<String>,
}

impl TryFrom<v1::ChatRequest> for Chat {
    type Error = InvalidField;

    fn try_from(message: v1::ChatRequest) -> Result<Self, InvalidField> {
        if message.messages.is_empty() {
            return Err(InvalidField::new("messages", "must not be empty"));
        }
        let tools: Vec<Tool> = each("tools", message.tools)?;
        for (index, tool) in tools.iter().enumerate() {
            if tools[..index].iter().any(|other| other.name == tool.name) {
                let reason = format_args!("there are two tools called {:?}", tool.name);
                return Err(InvalidField::new(format!("tools[{index}].name"), reason));
            }
        }
        Ok(Self {
            model: unless_empty(message.model),
            messages: each("messages", message.messages)?,
            tool_choice: tool_choice(message.tool_choice, &tools)?,
            tools,
            parallel_tool_calls: message.parallel_tool_calls,
            format: format(message.response_format)?,
            reasoning_effort: reasoning_effort(message.reasoning_effort)?,
            sampling: optional("sampling", message.sampling)?,
            limits: optional("limits", message.limits)?,
            n: num_choices(message.n)?,
            num_top_logprobs: num_top_logprobs(message.logprobs)?,
            system_prompt: message.system_prompt.unwrap_or_default().into(),
            handling: optional("handling", message.handling)?,
        })
    }
}

/// Every item of a list.
fn each<M, T: TryFrom<M, Error = InvalidField>>(field: &str, items: Vec<M>) -> Result<Vec<T>, InvalidField> {
    let items = items.into_iter().enumerate();
    items.map(|(index, item)| T::try_from(item).map_err(|error| error.within_item(field, index))).collect()
}

impl TryFrom<v1::Message> for Message {
    type Error = InvalidField;

    fn try_from(message: v1::Message) -> Result<Self, InvalidField> {
        let role = known("role", message.role)?;
        if role != v1::Role::Assistant {
            absent("reasoning", message.reasoning.is_empty(), "assistant messages")?;
            absent("tool_calls", message.tool_calls.is_empty(), "assistant messages")?;
        }
        if role != v1::Role::Tool {
            absent("tool_call_id", message.tool_call_id.is_empty(), "tool messages")?;
        }
        let content = message.content;
        Ok(match role {
            v1::Role::Unspecified => return Err(InvalidField::new("role", "must be set")),
            v1::Role::System => Self::System(content),
            v1::Role::Developer => Self::Developer(content),
            v1::Role::User => Self::User(content),
            v1::Role::Assistant => {
                let calls: Vec<ToolCall> = each("tool_calls", message.tool_calls)?;
                let reasoning = unless_empty(message.reasoning);
                if calls.is_empty() && reasoning.is_none() {
                    filled("content", content.clone())?;
                }
                Self::Assistant { reasoning, content: unless_empty(content), calls }
            }
            v1::Role::Tool => Self::Tool { call_id: filled("tool_call_id", message.tool_call_id)?, content },
        })
    }
}

impl TryFrom<v1::ToolCall> for ToolCall {
    type Error = InvalidField;

    fn try_from(message: v1::ToolCall) -> Result<Self, InvalidField> {
        Ok(Self {
            id: filled("id", message.id)?,
            name: name("name", message.name)?,
            arguments: unless_empty(message.arguments_json).unwrap_or_else(|| "{}".to_owned()),
        })
    }
}

impl TryFrom<v1::Tool> for Tool {
    type Error = InvalidField;

    fn try_from(message: v1::Tool) -> Result<Self, InvalidField> {
        let parameters = match message.parameters_json.as_str() {
            "" => None,
            // An empty schema is the other way to say that there are none.
            text => Some(json_object("parameters_json", text)?)
                .filter(|schema| *schema != Value::Object(Map::new())),
        };
        let name = name("name", message.name)?;
        Ok(Self { name, description: message.description, parameters, strict: message.strict })
    }
}

fn tool_choice(message: Option<v1::ToolChoice>, tools: &[Tool]) -> Result<Option<ToolChoice>, InvalidField> {
    use v1::{ToolChoiceMode as Mode, tool_choice::Choice};
    let Some(message) = message else { return Ok(None) };
    let choice = match present("tool_choice", message.choice)? {
        Choice::Function(name) => {
            if !tools.iter().any(|tool| tool.name == name) {
                let reason = format_args!("there is no tool called {name:?}");
                return Err(InvalidField::new("tool_choice.function", reason));
            }
            ToolChoice::Function(name)
        }
        Choice::Mode(mode) => match known("tool_choice.mode", mode)? {
            Mode::Unspecified => return Err(InvalidField::new("tool_choice.mode", "must be set")),
            Mode::None => ToolChoice::None,
            Mode::Auto => ToolChoice::Auto,
            Mode::Required if tools.is_empty() => {
                return Err(InvalidField::new("tool_choice.mode", "there is no tool to call"));
            }
            Mode::Required => ToolChoice::Required,
        },
    };
    Ok(Some(choice))
}

fn format(message: Option<v1::ResponseFormat>) -> Result<Format, InvalidField> {
    use v1::response_format::Format as Message;
    let Some(message) = message else { return Ok(Format::Text) };
    Ok(match present("response_format", message.format)? {
        Message::Text(v1::TextFormat {}) => Format::Text,
        Message::JsonObject(v1::JsonObjectFormat {}) => Format::JsonObject,
        Message::JsonSchema(schema) => Format::JsonSchema(
            SchemaFormat::try_from(schema).map_err(|error| error.within("response_format.json_schema"))?,
        ),
    })
}

impl TryFrom<v1::JsonSchemaFormat> for SchemaFormat {
    type Error = InvalidField;

    fn try_from(message: v1::JsonSchemaFormat) -> Result<Self, InvalidField> {
        Ok(Self {
            name: name("name", message.name)?,
            description: unless_empty(message.description),
            schema: json_object("schema_json", &message.schema_json)?,
        })
    }
}

fn reasoning_effort(value: i32) -> Result<Option<ReasoningEffort>, InvalidField> {
    Ok(match known("reasoning_effort", value)? {
        v1::ReasoningEffort::Unspecified => None,
        v1::ReasoningEffort::Low => Some(ReasoningEffort::Low),
        v1::ReasoningEffort::Medium => Some(ReasoningEffort::Medium),
        v1::ReasoningEffort::High => Some(ReasoningEffort::High),
    })
}

impl From<v1::SystemPrompt> for SystemPrompt {
    fn from(message: v1::SystemPrompt) -> Self {
        let v1::SystemPrompt { model_identity, knowledge_cutoff, current_date } = message;
        Self { model_identity, knowledge_cutoff, current_date }
    }
}
