//! The JSON form that openai-harmony gives conversations, which the fixtures are
//! written in. Only tests read it: clients speak OpenAI's API.

use std::collections::BTreeMap;
use std::fs;

use chorale_harmony::{
    Author, Channel, Channels, Content, ContentType, Conversation, DeveloperContent, Header, Message,
    ReasoningEffort, Role, SystemContent, Tool, ToolNamespace,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Reads `tests/fixtures/PATH` of the workspace.
pub(crate) fn fixture<T: DeserializeOwned>(path: &str) -> T {
    let path = format!("{}/../../tests/fixtures/{path}", env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[derive(Deserialize)]
pub(crate) struct WireConversation {
    messages: Vec<WireMessage>,
}

#[derive(Deserialize)]
pub(crate) struct WireMessage {
    role: String,
    name: Option<String>,
    content: Vec<WireContent>,
    channel: Option<String>,
    recipient: Option<String>,
    content_type: Option<String>,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum WireContent {
    Text { text: String },
    SystemContent(WireSystem),
    DeveloperContent(WireDeveloper),
}

#[derive(Deserialize)]
struct WireSystem {
    model_identity: Option<String>,
    knowledge_cutoff: Option<String>,
    conversation_start_date: Option<String>,
    reasoning_effort: Option<String>,
    channel_config: Option<WireChannels>,
    tools: Option<BTreeMap<String, WireNamespace>>,
}

#[derive(Deserialize)]
struct WireChannels {
    valid_channels: Vec<String>,
    channel_required: bool,
}

#[derive(Deserialize)]
struct WireDeveloper {
    instructions: Option<String>,
    tools: Option<BTreeMap<String, WireNamespace>>,
}

#[derive(Deserialize)]
struct WireNamespace {
    name: String,
    description: Option<String>,
    tools: Vec<WireTool>,
}

#[derive(Deserialize)]
struct WireTool {
    name: String,
    description: String,
    parameters: Option<Value>,
}

impl From<WireConversation> for Conversation {
    fn from(wire: WireConversation) -> Self {
        Self::new(wire.messages.into_iter().map(Message::from))
    }
}

impl From<WireMessage> for Message {
    fn from(wire: WireMessage) -> Self {
        let role = Role::from_name(&wire.role).unwrap_or_else(|| panic!("role {}", wire.role));
        Self {
            header: Header {
                author: Author { role, name: wire.name },
                recipient: wire.recipient,
                channel: wire.channel.as_deref().map(Channel::from_name),
                content_type: wire.content_type.as_deref().map(content_type),
            },
            content: wire.content.into_iter().map(Content::from).collect(),
        }
    }
}

pub(crate) fn content_type(text: &str) -> ContentType {
    match text.strip_prefix("<|constrain|>") {
        Some(name) => ContentType { constrained: true, name: name.to_owned() },
        None => ContentType { constrained: false, name: text.to_owned() },
    }
}

pub(crate) fn effort(text: &str) -> ReasoningEffort {
    match text.to_lowercase().as_str() {
        "low" => ReasoningEffort::Low,
        "medium" => ReasoningEffort::Medium,
        "high" => ReasoningEffort::High,
        other => panic!("reasoning effort {other}"),
    }
}

impl From<WireContent> for Content {
    fn from(wire: WireContent) -> Self {
        match wire {
            WireContent::Text { text } => Self::Text(text),
            WireContent::SystemContent(system) => Self::System(SystemContent {
                model_identity: system.model_identity,
                knowledge_cutoff: system.knowledge_cutoff,
                current_date: system.conversation_start_date,
                reasoning_effort: system.reasoning_effort.as_deref().map(effort),
                tools: namespaces(system.tools),
                channels: system.channel_config.map(|channels| Channels {
                    valid: channels.valid_channels.iter().map(|name| Channel::from_name(name)).collect(),
                    required: channels.channel_required,
                }),
            }),
            WireContent::DeveloperContent(developer) => Self::Developer(DeveloperContent {
                instructions: developer.instructions,
                tools: namespaces(developer.tools),
                response_formats: Vec::new(),
            }),
        }
    }
}

fn namespaces(wire: Option<BTreeMap<String, WireNamespace>>) -> Vec<ToolNamespace> {
    let namespaces = wire.unwrap_or_default().into_values().map(|space| ToolNamespace {
        name: space.name,
        description: space.description,
        tools: space.tools.into_iter().map(tool).collect(),
    });
    namespaces.collect()
}

fn tool(wire: WireTool) -> Tool {
    Tool { name: wire.name, description: wire.description, parameters: wire.parameters }
}
