//! OpenAI's messages to harmony's. It decides who said what to whom, and what
//! of old thinking is still of use; how it is written is harmony's business.
//!
//! System and developer messages before the first turn are the developer
//! message's instructions, with tools and response formats; later ones stay
//! where they are, as developer messages. Names of participants are dropped.

use std::collections::HashMap;

use chorale_harmony::ToolNamespace;
use chorale_harmony::{
    Author, Channel, Content, Conversation, DeveloperContent, Message, Role, SystemContent,
};

use super::super::fields::Field;
use super::format::Format;
use super::tools::{self, Tools};
use crate::error::ApiError;

/// The conversation that the model is to continue.
pub(super) fn read(
    root: &Field<'_>,
    system: SystemContent,
    tools: &Tools,
    format: &Format,
) -> Result<Conversation, ApiError> {
    let mut turns = Turns::default();
    let messages = root.need("messages")?;
    for message in messages.items()? {
        turns.add(&message)?;
    }
    if turns.messages.is_empty() && turns.instructions.is_empty() {
        return Err(messages.error("must hold at least one message"));
    }
    let mut opening = vec![Message::system(system)];
    let developer = developer(&turns.instructions, tools, format);
    if developer != DeveloperContent::default() {
        opening.push(Message::developer(developer));
    }
    turns.forget_answered_thinking();
    Ok(Conversation::new(opening.into_iter().chain(turns.messages)))
}

fn developer(instructions: &[String], tools: &Tools, format: &Format) -> DeveloperContent {
    let namespace = (!tools.tools.is_empty()).then(|| ToolNamespace::functions(tools.tools.iter().cloned()));
    DeveloperContent {
        instructions: (!instructions.is_empty()).then(|| instructions.join("\n\n")),
        tools: namespace.into_iter().collect(),
        response_formats: format.told.iter().cloned().collect(),
    }
}

#[derive(Default)]
struct Turns {
    instructions: Vec<String>,
    messages: Vec<Message>,
    /// Names of the functions that were called, by the ids of the calls.
    calls: HashMap<String, String>,
}

#[derive(Clone, Copy)]
enum Speaker {
    Instructor,
    User,
    Assistant,
    Tool,
    Function,
}

const SPEAKERS: [(&str, Speaker); 6] = [
    ("system", Speaker::Instructor),
    ("developer", Speaker::Instructor),
    ("user", Speaker::User),
    ("assistant", Speaker::Assistant),
    ("tool", Speaker::Tool),
    ("function", Speaker::Function),
];

impl Turns {
    fn add(&mut self, message: &Field<'_>) -> Result<(), ApiError> {
        message.object()?;
        let speaker = message.need("role")?.one_of(&SPEAKERS)?;
        if let Some(name) = message.get("name") {
            name.text()?;
        }
        match speaker {
            Speaker::Instructor => self.instruct(texts(&message.need("content")?)?.join("\n")),
            Speaker::User => {
                let content = texts(&message.need("content")?)?.into_iter().map(Content::Text).collect();
                self.messages.push(Message { content, ..Message::user("") });
            }
            Speaker::Assistant => self.assistant(message)?,
            Speaker::Tool => self.tool(message)?,
            Speaker::Function => {
                let name = tools::name(&message.need("name")?)?;
                self.result(name, message)?;
            }
        }
        Ok(())
    }

    fn instruct(&mut self, text: String) {
        if self.messages.is_empty() {
            if !text.is_empty() {
                self.instructions.push(text);
            }
            return;
        }
        let content = DeveloperContent { instructions: Some(text), ..DeveloperContent::default() };
        self.messages.push(Message::developer(content));
    }

    /// Thinking, then a preamble or an answer, then calls.
    fn assistant(&mut self, message: &Field<'_>) -> Result<(), ApiError> {
        let reasoning = match message.get("reasoning").or_else(|| message.get("reasoning_content")) {
            Some(field) => texts(&field)?.concat(),
            None => String::new(),
        };
        let calls = message.get("tool_calls").filter(|calls| calls.value() != &serde_json::json!([]));
        let old_call = message.get("function_call");
        let content = message.get("content").map(|field| texts(&field)).transpose()?;
        let is_call = calls.is_some() || old_call.is_some();
        if content.is_none() && !is_call && reasoning.is_empty() {
            return Err(message.need("content").err().unwrap_or_else(|| message.wrong("a message")));
        }
        if !reasoning.is_empty() {
            self.messages.push(Message::assistant(Channel::Analysis, reasoning));
        }
        let content: Vec<Content> = content.into_iter().flatten().map(Content::Text).collect();
        let is_blank = content.iter().all(|part| *part == Content::Text(String::new()));
        let channel = if is_call { Channel::Commentary } else { Channel::Final };
        let is_thought_only = !is_call && is_blank && message.get("content").is_none();
        if !(is_blank && is_call || is_thought_only) {
            self.messages.push(Message { content, ..Message::assistant(channel, "") });
        }
        if let Some(call) = old_call {
            self.call(&call)?;
        }
        if let Some(calls) = calls {
            for call in calls.items()? {
                call.object()?;
                if let Some(kind) = call.get("type") {
                    kind.one_of(&[("function", ())])?;
                }
                let id = call.need("id")?.text()?.to_owned();
                let name = self.call(&call.need("function")?)?;
                self.calls.insert(id, name);
            }
        }
        Ok(())
    }

    fn call(&mut self, function: &Field<'_>) -> Result<String, ApiError> {
        let name = tools::name(&function.need("name")?)?.to_owned();
        let arguments = function.get("arguments").map(|field| field.text()).transpose()?.unwrap_or("{}");
        self.messages.push(Message::tool_call(qualified(&name), arguments));
        Ok(name)
    }

    fn tool(&mut self, message: &Field<'_>) -> Result<(), ApiError> {
        let field = message.need("tool_call_id")?;
        let id = field.text()?;
        match self.calls.get(id).cloned() {
            Some(name) => self.result(&name, message),
            None => Err(field.wrong("the id of a tool call in an assistant message before it")),
        }
    }

    fn result(&mut self, name: &str, message: &Field<'_>) -> Result<(), ApiError> {
        let content: Vec<Content> =
            texts(&message.need("content")?)?.into_iter().map(Content::Text).collect();
        self.messages.push(Message { content, ..Message::tool_result(qualified(name), "") });
        Ok(())
    }

    /// Thinking serves its own turn: it stays between the calls that lead to an
    /// answer, and goes when the answer is there.
    fn forget_answered_thinking(&mut self) {
        let is_on = |message: &Message, channel: &Channel| {
            message.header.author == Author::of(Role::Assistant)
                && message.header.channel.as_ref() == Some(channel)
        };
        let last_final = self.messages.iter().rposition(|message| is_on(message, &Channel::Final));
        let Some(last_final) = last_final else { return };
        let mut index = 0;
        self.messages.retain(|message| {
            let is_kept = index > last_final || !is_on(message, &Channel::Analysis);
            index += 1;
            is_kept
        });
    }
}

fn qualified(name: &str) -> String {
    format!("{}.{name}", ToolNamespace::FUNCTIONS)
}

/// Content is a text or an array of parts that are texts.
fn texts(content: &Field<'_>) -> Result<Vec<String>, ApiError> {
    if let Some(text) = content.value().as_str() {
        return Ok(vec![text.to_owned()]);
    }
    if !content.value().is_array() {
        return Err(content.wrong("a string or an array of text parts"));
    }
    content.items()?.map(|part| text_part(&part)).collect()
}

fn text_part(part: &Field<'_>) -> Result<String, ApiError> {
    part.object()?;
    let kind = part.need("type")?;
    let key = match kind.text()? {
        "text" | "input_text" | "output_text" => "text",
        "refusal" => "refusal",
        other => {
            let other: String = other.chars().take(40).collect();
            return Err(kind.error(format_args!(
                "{other:?} is not supported: gpt-oss reads text only; send parts of type \"text\""
            )));
        }
    };
    part.need(key)?.text().map(str::to_owned)
}
