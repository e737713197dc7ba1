//! Harmony's nouns: conversations of messages, each a header and content.
//! Plain data; how it is written in tokens is the business of `render` and
//! `parse`.

mod content;

use std::fmt;

pub use content::{
    Channels, Content, DeveloperContent, ReasoningEffort, ResponseFormat, SystemContent, Tool, ToolNamespace,
};

/// Messages in the order in which they were said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    /// Oldest first. Usually a system message, a developer message, then turns.
    pub messages: Vec<Message>,
}

impl Conversation {
    /// A conversation of these messages.
    pub fn new(messages: impl IntoIterator<Item = Message>) -> Self {
        Self { messages: messages.into_iter().collect() }
    }
}

impl Extend<Message> for Conversation {
    fn extend<I: IntoIterator<Item = Message>>(&mut self, messages: I) {
        self.messages.extend(messages);
    }
}

/// One utterance.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Who says it, to whom, and on which channel.
    pub header: Header,
    /// Parts follow each other without a separator, but no token spans two:
    /// "Hel" and "lo" are not encoded as "Hello".
    pub content: Vec<Content>,
}

impl Message {
    /// A message of one part, without recipient, channel or content type.
    pub fn new(author: Author, content: impl Into<Content>) -> Self {
        let header = Header { author, recipient: None, channel: None, content_type: None };
        Self { header, content: vec![content.into()] }
    }

    /// The message that sets up the model; gpt-oss expects it first.
    pub fn system(content: SystemContent) -> Self {
        Self::new(Author::of(Role::System), content)
    }

    /// Instructions and tools. What OpenAI's API calls the system prompt belongs here.
    pub fn developer(content: DeveloperContent) -> Self {
        Self::new(Author::of(Role::Developer), content)
    }

    /// What the user says.
    pub fn user(text: impl Into<String>) -> Self {
        Self::new(Author::of(Role::User), text.into())
    }

    /// What the model said or thought.
    pub fn assistant(channel: Channel, text: impl Into<String>) -> Self {
        Self::new(Author::of(Role::Assistant), text.into()).on(channel)
    }

    /// The model's call of a tool, with its arguments in JSON. `recipient` is
    /// qualified: `functions.get_weather`.
    pub fn tool_call(recipient: impl Into<String>, arguments: impl Into<String>) -> Self {
        let mut call = Self::assistant(Channel::Commentary, arguments).to(recipient);
        call.header.content_type = Some(ContentType::json());
        call
    }

    /// What the tool of this (qualified) name answered.
    pub fn tool_result(name: impl Into<String>, text: impl Into<String>) -> Self {
        let author = Author { role: Role::Tool, name: Some(name.into()) };
        Self::new(author, text.into()).on(Channel::Commentary).to(Role::Assistant.as_str())
    }

    /// The same message on `channel`.
    #[must_use]
    pub fn on(mut self, channel: Channel) -> Self {
        self.header.channel = Some(channel);
        self
    }

    /// The same message addressed to `recipient`.
    #[must_use]
    pub fn to(mut self, recipient: impl Into<String>) -> Self {
        self.header.recipient = Some(recipient.into());
        self
    }

    /// The text parts joined; structured content has no text of its own.
    pub fn text(&self) -> String {
        let texts = self.content.iter().map(|part| match part {
            Content::Text(text) => text.as_str(),
            Content::System(_) | Content::Developer(_) => "",
        });
        texts.collect()
    }
}

/// What stands before a message's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Who speaks.
    pub author: Author,
    /// Whom it is for; a tool's qualified name makes the message a call. `all`
    /// is never written, since everybody is the default.
    pub recipient: Option<String>,
    /// `None` for everybody but the assistant and its tools.
    pub channel: Option<Channel>,
    /// What the content is written in; `None` means prose or whatever fits.
    pub content_type: Option<ContentType>,
}

impl Header {
    /// What a front end does with the message's text.
    ///
    /// Surprises: commentary without a recipient is a preamble, so it is for the
    /// user; a recipient makes a call on any channel; an assistant's message
    /// without a channel or on an unknown one counts as an answer, for losing
    /// it would be worse.
    pub fn kind(&self) -> Kind<'_> {
        if self.author.role != Role::Assistant {
            return Kind::NotAssistant;
        }
        match (&self.recipient, &self.channel) {
            (Some(recipient), _) if is_tool(recipient) => Kind::ToolCall { name: function_name(recipient) },
            (_, Some(Channel::Analysis)) => Kind::Reasoning,
            (_, Some(Channel::Commentary | Channel::Final | Channel::Other(_)) | None) => Kind::Content,
        }
    }
}

/// Whether a recipient is neither a participant nor everybody.
fn is_tool(recipient: &str) -> bool {
    recipient != "all" && Role::from_name(recipient).is_none()
}

/// The name under which a client defined the function.
fn function_name(recipient: &str) -> &str {
    match recipient.strip_prefix("functions.") {
        Some(name) if !name.is_empty() => name,
        _ => recipient,
    }
}

/// What a message's text is to a front end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind<'h> {
    /// Hidden thinking.
    Reasoning,
    /// For the user: the answer, or a preamble before a call.
    Content,
    /// The arguments of a call.
    ToolCall {
        /// Without the `functions.` of a client's own functions; built-in tools
        /// keep their whole name (`browser.search`, `python`).
        name: &'h str,
    },
    /// Somebody else speaks: part of a parsed history, or a model that ran on
    /// past its turn. No front end shows it.
    NotAssistant,
}

/// Who speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Author {
    /// In what capacity.
    pub role: Role,
    /// For a tool its qualified name, which is written instead of the role and
    /// so must be there; for others a name beside the role.
    pub name: Option<String>,
}

impl Author {
    /// Somebody in this role, without a name.
    pub fn of(role: Role) -> Self {
        Self { role, name: None }
    }
}

/// Participants, from the highest authority to the lowest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// The operator of the model.
    System,
    /// The author of the application; OpenAI's API also says `system` for it.
    Developer,
    /// The person who talks with the model.
    User,
    /// The model.
    Assistant,
    /// A function or a built-in tool.
    Tool,
}

impl Role {
    pub(crate) const ALL: [Self; 5] =
        [Self::System, Self::Developer, Self::User, Self::Assistant, Self::Tool];

    /// As headers spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Developer => "developer",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }

    /// The role of exactly this spelling.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == name)
    }
}

/// Which of its voices the assistant uses.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Channel {
    /// Thinking, and calls of built-in tools.
    Analysis,
    /// Calls of functions, and preambles before them.
    Commentary,
    /// The answer.
    Final,
    /// A name that gpt-oss was not trained on. Never one of the three above.
    Other(String),
}

impl Channel {
    /// The ones that gpt-oss was trained on.
    pub(crate) const KNOWN: [Self; 3] = [Self::Analysis, Self::Commentary, Self::Final];

    /// As headers spell it.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Analysis => "analysis",
            Self::Commentary => "commentary",
            Self::Final => "final",
            Self::Other(name) => name,
        }
    }

    /// The channel of this spelling; every name is one.
    pub fn from_name(name: &str) -> Self {
        Self::known(name).unwrap_or_else(|| Self::Other(name.to_owned()))
    }

    /// The channel of this spelling if it is one of the three.
    pub(crate) fn known(name: &str) -> Option<Self> {
        Self::KNOWN.into_iter().find(|channel| channel.as_str() == name)
    }
}

/// What a message's content is written in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContentType {
    /// Whether `<|constrain|>` stands before the name.
    pub constrained: bool,
    /// `json`, `code`, ...; may be empty after `<|constrain|>`.
    pub name: String,
}

impl ContentType {
    /// `<|constrain|>json`: the arguments of function calls.
    pub fn json() -> Self {
        Self { constrained: true, name: "json".to_owned() }
    }
}

impl fmt::Display for ContentType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let marker = if self.constrained { "<|constrain|>" } else { "" };
        write!(f, "{marker}{}", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::{Channel, Kind, Message};

    #[test]
    fn a_preamble_is_content_and_a_call_is_a_call_on_any_channel() {
        assert_eq!(Message::assistant(Channel::Commentary, "").header.kind(), Kind::Content);
        assert_eq!(Message::assistant(Channel::Analysis, "").header.kind(), Kind::Reasoning);
        let call = |channel, name: &str| Message::assistant(channel, "{}").to(name);
        let name = |message: &Message| match message.header.kind() {
            Kind::ToolCall { name } => Some(name.to_owned()),
            _ => None,
        };
        assert_eq!(name(&call(Channel::Analysis, "functions.f")).as_deref(), Some("f"));
        assert_eq!(name(&call(Channel::Final, "python")).as_deref(), Some("python"));
        assert_eq!(name(&call(Channel::Commentary, "functions.")).as_deref(), Some("functions."));
    }

    #[test]
    fn people_are_not_tools() {
        for recipient in ["all", "user", "assistant"] {
            let message = Message::assistant(Channel::Final, "").to(recipient);
            assert_eq!(message.header.kind(), Kind::Content, "{recipient}");
        }
    }

    #[test]
    fn known_channels_have_one_form() {
        assert_eq!(Channel::from_name("final"), Channel::Final);
        assert_eq!(Channel::from_name("finally"), Channel::Other("finally".into()));
    }
}
