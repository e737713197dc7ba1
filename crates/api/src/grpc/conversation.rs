//! Messages of the API as messages of harmony. How they are written in tokens,
//! and what may follow, is not decided here.

use crate::error::ApiError;
use chorale_harmony::{
    Channel, Conversation, DeveloperContent, Message, ReasoningEffort, ResponseFormat, SystemContent, Tool,
    ToolNamespace,
};
use chorale_wire::inference as wire;
use std::collections::BTreeMap;

/// The conversation that the model sees: what it is told about itself, what the
/// application asks, and the turns.
///
/// `current_date` is what the server tells the model unless the request says
/// otherwise.
pub(super) fn conversation(
    request: &wire::Chat,
    current_date: Option<String>,
) -> Result<Conversation, ApiError> {
    let num_leading = request.messages.iter().take_while(|message| instructions(message).is_some()).count();
    let (leading, turns) = request.messages.split_at(num_leading);
    let system = Message::system(system(request, current_date));
    let mut conversation = Conversation::new([system].into_iter().chain(developer(request, leading)));
    conversation.extend(Turns::new(turns).read(num_leading)?);
    Ok(conversation)
}

fn system(request: &wire::Chat, current_date: Option<String>) -> SystemContent {
    let default = SystemContent::default();
    let wire::SystemPrompt { model_identity, knowledge_cutoff, current_date: asked } = &request.system_prompt;
    // Set and empty leaves the line out.
    let or = |asked: &Option<String>, default: Option<String>| {
        asked.clone().or(default).filter(|text| !text.is_empty())
    };
    SystemContent {
        model_identity: or(model_identity, default.model_identity),
        knowledge_cutoff: or(knowledge_cutoff, default.knowledge_cutoff),
        current_date: or(asked, current_date),
        reasoning_effort: request.reasoning_effort.map(effort).or(default.reasoning_effort),
        ..SystemContent::default()
    }
}

fn effort(effort: wire::ReasoningEffort) -> ReasoningEffort {
    match effort {
        wire::ReasoningEffort::Low => ReasoningEffort::Low,
        wire::ReasoningEffort::Medium => ReasoningEffort::Medium,
        wire::ReasoningEffort::High => ReasoningEffort::High,
    }
}

/// What the application says, whichever of its two roles it uses: harmony's
/// system message is ours.
fn instructions(message: &wire::Message) -> Option<&str> {
    match message {
        wire::Message::System(text) | wire::Message::Developer(text) => Some(text),
        wire::Message::User(_) | wire::Message::Assistant { .. } | wire::Message::Tool { .. } => None,
    }
}

/// The message of the application, if it says, offers or demands something.
fn developer(request: &wire::Chat, leading: &[wire::Message]) -> Option<Message> {
    let texts: Vec<&str> = leading.iter().filter_map(instructions).filter(|text| !text.is_empty()).collect();
    let instructions = (!texts.is_empty()).then(|| texts.join("\n\n"));
    let tools: Vec<Tool> = request.tools.iter().map(tool).collect();
    let tools = if tools.is_empty() { Vec::new() } else { vec![ToolNamespace::functions(tools)] };
    let response_formats: Vec<_> = response_format(&request.format).into_iter().collect();
    if instructions.is_none() && tools.is_empty() && response_formats.is_empty() {
        return None;
    }
    Some(Message::developer(DeveloperContent { instructions, tools, response_formats }))
}

fn tool(tool: &wire::Tool) -> Tool {
    Tool {
        name: tool.name.clone(),
        description: tool.description.clone(),
        parameters: tool.parameters.clone(),
    }
}

fn response_format(format: &wire::Format) -> Option<ResponseFormat> {
    match format {
        wire::Format::JsonSchema(format) => Some(ResponseFormat {
            name: format.name.clone(),
            description: format.description.clone(),
            schema: format.schema.clone(),
        }),
        wire::Format::Text | wire::Format::JsonObject => None,
    }
}

/// What was said after the instructions.
struct Turns<'m> {
    messages: &'m [wire::Message],
    /// Thinking up to here led to an answer, and is dropped.
    num_answered: usize,
    /// The functions of the calls so far, by the calls' ids.
    calls: BTreeMap<&'m str, &'m str>,
}

impl<'m> Turns<'m> {
    fn new(messages: &'m [wire::Message]) -> Self {
        let is_answer = |message: &wire::Message| matches!(message, wire::Message::Assistant { content: Some(_), calls, .. } if calls.is_empty());
        let num_answered = messages.iter().rposition(is_answer).map_or(0, |last| last + 1);
        Self { messages, num_answered, calls: BTreeMap::new() }
    }

    /// The messages; `offset` stand before them in the request.
    fn read(mut self, offset: usize) -> Result<Vec<Message>, ApiError> {
        let mut read = Vec::with_capacity(self.messages.len());
        for (index, message) in self.messages.iter().enumerate() {
            self.message(index, message, &mut read).map_err(|(field, reason)| {
                ApiError::invalid(format!("messages[{}].{field}", offset + index), reason)
            })?;
        }
        Ok(read)
    }

    fn message(
        &mut self,
        index: usize,
        message: &'m wire::Message,
        read: &mut Vec<Message>,
    ) -> Result<(), (&'static str, String)> {
        match message {
            wire::Message::System(text) | wire::Message::Developer(text) => {
                let content = DeveloperContent { instructions: Some(text.clone()), ..Default::default() };
                read.push(Message::developer(content));
            }
            wire::Message::User(text) => read.push(Message::user(text.clone())),
            wire::Message::Assistant { reasoning, content, calls } => {
                if let Some(reasoning) = reasoning.as_ref().filter(|_| index >= self.num_answered) {
                    read.push(Message::assistant(Channel::Analysis, reasoning.clone()));
                }
                if let Some(content) = content {
                    // Before calls it is a preamble.
                    let channel = if calls.is_empty() { Channel::Final } else { Channel::Commentary };
                    read.push(Message::assistant(channel, content.clone()));
                }
                for call in calls {
                    self.calls.insert(&call.id, &call.name);
                    read.push(Message::tool_call(qualified(&call.name), call.arguments.clone()));
                }
            }
            wire::Message::Tool { call_id, content } => {
                let name = self.calls.get(call_id.as_str());
                let name = name
                    .ok_or_else(|| ("tool_call_id", format!("no call before it has the id {call_id:?}")))?;
                read.push(Message::tool_result(qualified(name), content.clone()));
            }
        }
        Ok(())
    }
}

fn qualified(name: &str) -> String {
    format!("{}.{name}", ToolNamespace::FUNCTIONS)
}
