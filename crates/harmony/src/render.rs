//! Conversation to tokens, token for token as openai-harmony 0.0.8 does it.
//! It does not judge: a conversation that makes no sense is rendered as it is.

use chorale_plan::TokenId;

use crate::conversation::{
    Channel, Channels, Content, ContentType, Conversation, DeveloperContent, Header, Message, ResponseFormat,
    Role, SystemContent, ToolNamespace,
};
use crate::schema::typescript;
use crate::tokenizer::{Tokenizer, special};

/// How to render, beyond what the conversation says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenderOptions {
    /// What becomes of old thinking.
    pub analysis: AnalysisHistory,
    /// Who is to speak next: the prompt ends in `<|start|>` and this.
    pub next: Role,
}

impl Default for RenderOptions {
    /// The assistant speaks next, old analysis is dropped.
    fn default() -> Self {
        Self { analysis: AnalysisHistory::DropAnswered, next: Role::Assistant }
    }
}

/// What becomes of the analysis messages of earlier turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnalysisHistory {
    /// If the assistant's last message is on `final`, analysis before the
    /// *first* `final` is left out. Analysis between two finals stays and a
    /// turn that ends in a call keeps everything: odd, but it is what the
    /// reference does by default.
    DropAnswered,
    /// All of it stays.
    Keep,
}

/// Why a conversation cannot be written in harmony. The client must change it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    /// A tool is written by its name, and this one has none.
    #[error("message {index} comes from a tool without a name")]
    UnnamedTool {
        /// Position in the conversation.
        index: usize,
    },
    /// System content outside of a system message, or developer content outside
    /// of a developer message.
    #[error("message {index} comes from the {found} but holds {expected} content", found = found.as_str(), expected = expected.as_str())]
    MisplacedContent {
        /// Position in the conversation.
        index: usize,
        /// Who speaks.
        found: Role,
        /// Who alone may say such a thing.
        expected: Role,
    },
}

/// The prompt after which the next speaker begins.
///
/// # Errors
///
/// [`RenderError`] names the message at fault.
pub fn render_for_completion(
    conversation: &Conversation,
    options: &RenderOptions,
) -> Result<Vec<TokenId>, RenderError> {
    let mut writer = Writer::new(conversation);
    writer.conversation(conversation, options.analysis)?;
    writer.special(special::START);
    writer.text(options.next.as_str());
    Ok(writer.tokens)
}

/// The conversation alone, for training: nobody is asked to speak, and an answer
/// that stands last ends in `<|return|>`, as it was generated.
///
/// # Errors
///
/// As [`render_for_completion`].
pub fn render_for_training(
    conversation: &Conversation,
    analysis: AnalysisHistory,
) -> Result<Vec<TokenId>, RenderError> {
    let mut writer = Writer::new(conversation);
    writer.conversation(conversation, analysis)?;
    let ends_in_answer = conversation
        .messages
        .last()
        .is_some_and(|last| last.header.author.role == Role::Assistant && is_final(last));
    if let (true, Some(end)) = (ends_in_answer, writer.tokens.last_mut()) {
        *end = special::RETURN;
    }
    Ok(writer.tokens)
}

/// [`render_for_completion`] to be read by people, special tokens spelled.
///
/// Not for encoding again: text of a client that looks like a special token
/// cannot be told from one any more.
///
/// # Errors
///
/// As [`render_for_completion`].
pub fn render_text(conversation: &Conversation, options: &RenderOptions) -> Result<String, RenderError> {
    render_for_completion(conversation, options).map(|tokens| Tokenizer::shared().decode(&tokens))
}

struct Writer {
    tokenizer: &'static Tokenizer,
    tokens: Vec<TokenId>,
    /// Then the system message says on which channel to call them.
    has_functions: bool,
}

impl Writer {
    fn new(conversation: &Conversation) -> Self {
        let has_functions = developer_contents(conversation).any(|content| {
            content
                .tools
                .iter()
                .any(|space| space.name == ToolNamespace::FUNCTIONS && !space.tools.is_empty())
        });
        Self { tokenizer: Tokenizer::shared(), tokens: Vec::new(), has_functions }
    }

    fn special(&mut self, token: TokenId) {
        self.tokens.push(token);
    }

    fn text(&mut self, text: &str) {
        self.tokenizer.encode_text_into(text, &mut self.tokens);
    }

    fn conversation(
        &mut self,
        conversation: &Conversation,
        analysis: AnalysisHistory,
    ) -> Result<(), RenderError> {
        let num_answered = match analysis {
            AnalysisHistory::DropAnswered => num_answered(&conversation.messages),
            AnalysisHistory::Keep => 0,
        };
        for (index, message) in conversation.messages.iter().enumerate() {
            let is_dropped = index < num_answered && message.header.channel == Some(Channel::Analysis);
            if !is_dropped {
                self.message(index, message)?;
            }
        }
        Ok(())
    }

    fn message(&mut self, index: usize, message: &Message) -> Result<(), RenderError> {
        self.special(special::START);
        self.header(index, &message.header)?;
        self.special(special::MESSAGE);
        for part in &message.content {
            self.content(index, message.header.author.role, part)?;
        }
        // A recipient that is not written, `all`, ends the message as a call
        // nevertheless; the reference does so.
        let is_call = message.header.author.role == Role::Assistant && message.header.recipient.is_some();
        self.special(if is_call { special::CALL } else { special::END });
        Ok(())
    }

    fn header(&mut self, index: usize, header: &Header) -> Result<(), RenderError> {
        match (header.author.role, &header.author.name) {
            (Role::Tool, Some(name)) => self.text(name),
            (Role::Tool, None) => return Err(RenderError::UnnamedTool { index }),
            (role, Some(name)) => self.text(&format!("{}:{name}", role.as_str())),
            (role, None) => self.text(role.as_str()),
        }
        if let Some(recipient) = header.recipient.as_ref().filter(|recipient| *recipient != "all") {
            self.text(&format!(" to={recipient}"));
        }
        if let Some(channel) = &header.channel {
            self.special(special::CHANNEL);
            self.text(channel.as_str());
        }
        match &header.content_type {
            Some(ContentType { constrained: true, name }) => {
                self.text(" ");
                self.special(special::CONSTRAIN);
                self.text(name);
            }
            Some(ContentType { constrained: false, name }) => self.text(&format!(" {name}")),
            None => {}
        }
        Ok(())
    }

    fn content(&mut self, index: usize, role: Role, content: &Content) -> Result<(), RenderError> {
        let only_from = |expected: Role| match role == expected {
            true => Ok(()),
            false => Err(RenderError::MisplacedContent { index, found: role, expected }),
        };
        match content {
            Content::Text(text) => self.text(text),
            Content::System(content) => {
                only_from(Role::System)?;
                self.text(&system_text(content, self.has_functions));
            }
            Content::Developer(content) => {
                only_from(Role::Developer)?;
                self.text(&developer_text(content));
            }
        }
        Ok(())
    }
}

/// How many messages stand before the first answer; none if the turn goes on.
fn num_answered(messages: &[Message]) -> usize {
    let mut from_assistant = messages.iter().filter(|message| message.header.author.role == Role::Assistant);
    match from_assistant.next_back() {
        Some(last) if is_final(last) => messages.iter().position(is_final).unwrap_or(0),
        _ => 0,
    }
}

fn is_final(message: &Message) -> bool {
    message.header.channel == Some(Channel::Final)
}

fn developer_contents(conversation: &Conversation) -> impl Iterator<Item = &DeveloperContent> {
    conversation.messages.iter().flat_map(|message| &message.content).filter_map(|part| match part {
        Content::Developer(content) => Some(content),
        Content::Text(_) | Content::System(_) => None,
    })
}

fn system_text(content: &SystemContent, has_functions: bool) -> String {
    let facts = [
        content.model_identity.clone(),
        content.knowledge_cutoff.as_ref().map(|date| format!("Knowledge cutoff: {date}")),
        content.current_date.as_ref().map(|date| format!("Current date: {date}")),
    ];
    let facts: Vec<String> = facts.into_iter().flatten().collect();
    let sections = [
        (!facts.is_empty()).then(|| facts.join("\n")),
        content.reasoning_effort.map(|effort| format!("Reasoning: {}", effort.as_str())),
        tools_text(&content.tools),
        content.channels.as_ref().and_then(|channels| channels_text(channels, has_functions)),
    ];
    join_sections(sections)
}

fn channels_text(channels: &Channels, has_functions: bool) -> Option<String> {
    if channels.valid.is_empty() {
        return None;
    }
    let names: Vec<&str> = channels.valid.iter().map(Channel::as_str).collect();
    let mut text = format!("# Valid channels: {}.", names.join(", "));
    if channels.required {
        text.push_str(" Channel must be included for every message.");
    }
    if has_functions {
        text.push_str("\nCalls to these tools must go to the commentary channel: 'functions'.");
    }
    Some(text)
}

fn developer_text(content: &DeveloperContent) -> String {
    let sections = [
        content.instructions.as_ref().map(|instructions| format!("# Instructions\n\n{instructions}")),
        tools_text(&content.tools),
        response_formats_text(&content.response_formats),
    ];
    join_sections(sections)
}

fn response_formats_text(formats: &[ResponseFormat]) -> Option<String> {
    let formats = formats.iter().map(|format| {
        let description = format.description.as_deref().map(comment_lines).unwrap_or_default();
        format!("\n\n## {}\n\n{description}{}", format.name, format.schema)
    });
    let formats: String = formats.collect();
    (!formats.is_empty()).then(|| format!("# Response Formats{formats}"))
}

fn tools_text(namespaces: &[ToolNamespace]) -> Option<String> {
    let mut namespaces: Vec<&ToolNamespace> = namespaces.iter().collect();
    namespaces.sort_by_key(|space| &space.name);
    let namespaces: String = namespaces.into_iter().map(namespace_text).collect();
    (!namespaces.is_empty()).then(|| format!("# Tools{namespaces}"))
}

fn namespace_text(namespace: &ToolNamespace) -> String {
    let ToolNamespace { name, description, tools } = namespace;
    let description = description.as_deref().unwrap_or_default();
    let heading = format!("\n\n## {name}\n");
    if tools.is_empty() {
        // Nothing can be commented here, so the description is prose.
        let lines: String = description.lines().map(|line| format!("\n{line}")).collect();
        return heading + &lines;
    }
    let mut text = format!("{heading}\n{}namespace {name} {{\n", comment_lines(description));
    for tool in tools {
        let parameters = tool.parameters.as_ref().map(|schema| format!("_: {}", typescript(schema, "")));
        text.push_str(&format!(
            "\n{}type {} = ({}) => any;\n",
            comment_lines(&tool.description),
            tool.name,
            parameters.unwrap_or_default()
        ));
    }
    text.push_str(&format!("\n}} // namespace {name}"));
    text
}

fn comment_lines(text: &str) -> String {
    text.lines().map(|line| format!("// {line}\n")).collect()
}

fn join_sections(sections: impl IntoIterator<Item = Option<String>>) -> String {
    sections.into_iter().flatten().collect::<Vec<String>>().join("\n\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::conversation::Tool;

    fn text(messages: impl IntoIterator<Item = Message>) -> String {
        render_text(&Conversation::new(messages), &RenderOptions::default()).unwrap()
    }

    #[test]
    fn instructions_tools_and_formats_stand_in_this_order() {
        let tool = Tool { name: "f".into(), description: "Does it.".into(), parameters: None };
        let developer = DeveloperContent {
            instructions: Some("Be kind.".into()),
            tools: vec![ToolNamespace::functions([tool])],
            response_formats: vec![ResponseFormat {
                name: "answer".into(),
                description: Some("For all.\nAlways.".into()),
                schema: json!({"type": "object", "a": 1}),
            }],
        };
        let expected = "<|start|>developer<|message|># Instructions\n\nBe kind.\n\n\
            # Tools\n\n## functions\n\nnamespace functions {\n\n// Does it.\ntype f = () => any;\n\n\
            } // namespace functions\n\n\
            # Response Formats\n\n## answer\n\n// For all.\n// Always.\n{\"type\":\"object\",\"a\":1}\
            <|end|><|start|>assistant";
        assert_eq!(text([Message::developer(developer)]), expected);
    }

    #[test]
    fn an_answer_that_stands_last_is_returned_in_training_only() {
        let conversation = Conversation::new([Message::assistant(Channel::Final, "y")]);
        let tokens = render_for_training(&conversation, AnalysisHistory::Keep).unwrap();
        assert_eq!(
            Tokenizer::shared().decode(&tokens),
            "<|start|>assistant<|channel|>final<|message|>y<|return|>"
        );
        let call = Conversation::new([Message::tool_call("functions.f", "{}")]);
        let tokens = render_for_training(&call, AnalysisHistory::Keep).unwrap();
        assert_eq!(tokens.last(), Some(&special::CALL));
    }

    #[test]
    fn developer_content_is_the_developers() {
        let mut message = Message::user("x");
        message.content.push(DeveloperContent::default().into());
        let error = render_for_completion(&Conversation::new([message]), &RenderOptions::default());
        let error = error.unwrap_err();
        assert_eq!(error.to_string(), "message 0 comes from the user but holds developer content");
    }
}
