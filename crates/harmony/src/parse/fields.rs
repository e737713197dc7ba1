//! The words of a header and what they mean. A header that `<|message|>` ended
//! is trusted to be one; of any other only the words that must belong to a
//! header are.

use super::draft::Marker;
use super::repairs::{Repair, Repairs};
use crate::conversation::{Author, Channel, ContentType, Header, Role, ToolNamespace};

/// What stands before a recipient.
pub(super) const RECIPIENT: &str = "to=";

/// What gpt-oss says that content is written in.
const CONTENT_TYPES: [&str; 2] = ["json", "code"];

/// A header's parts as far as they are known.
pub(super) struct Fields<'r> {
    author: Option<Author>,
    /// A first word that is no role: a tool's name, or a mistake.
    stranger: Option<String>,
    recipient: Option<String>,
    /// `to=` came, the recipient did not yet.
    expects_recipient: bool,
    channel: Option<Channel>,
    content_type: Option<ContentType>,
    /// What a later word took the place of.
    overridden: Vec<String>,
    /// Words without a place.
    stray: Vec<String>,
    repairs: &'r mut Repairs,
}

impl<'r> Fields<'r> {
    pub(super) fn new(author: Option<Author>, repairs: &'r mut Repairs) -> Self {
        Self {
            author,
            stranger: None,
            recipient: None,
            expects_recipient: false,
            channel: None,
            content_type: None,
            overridden: Vec::new(),
            stray: Vec::new(),
            repairs,
        }
    }

    /// Takes all words of a segment.
    pub(super) fn segment(&mut self, marker: Marker, text: &str) {
        self.end_recipient();
        let mut is_named = false;
        if marker == Marker::Constrain && text.trim().is_empty() {
            self.set_content_type("");
        }
        for word in text.split_whitespace() {
            if self.recipient_word(word) {
                continue;
            }
            if !is_named && self.name(marker, word) {
                is_named = true;
            } else if !self.loose_word(marker, word) {
                self.stray.push(word.to_owned());
            }
        }
    }

    /// Takes `to=x`, `to=` and what follows the latter.
    fn recipient_word(&mut self, word: &str) -> bool {
        if std::mem::take(&mut self.expects_recipient) {
            self.set_recipient(word);
            return true;
        }
        match word.strip_prefix(RECIPIENT) {
            Some("") => self.expects_recipient = true,
            Some(recipient) => self.set_recipient(recipient),
            None => return false,
        }
        true
    }

    /// Nothing more comes after a `to=`. That it is dropped is counted.
    fn end_recipient(&mut self) {
        if std::mem::take(&mut self.expects_recipient) {
            self.repairs.add(Repair::StrayHeaderText);
        }
    }

    /// Takes the word that the marker announced.
    fn name(&mut self, marker: Marker, word: &str) -> bool {
        match marker {
            Marker::Author if self.author.is_none() && self.stranger.is_none() => {
                if !self.set_author(word) {
                    self.stranger = Some(word.to_owned());
                }
                true
            }
            Marker::Author => false,
            Marker::Channel => {
                self.set_channel(Channel::from_name(word));
                true
            }
            Marker::Constrain => self.set_content_type(word),
        }
    }

    /// Takes a word that nothing announced, if it can only mean one thing.
    fn loose_word(&mut self, marker: Marker, word: &str) -> bool {
        if marker == Marker::Author {
            if self.author.as_ref().is_some_and(|author| author.role.as_str() == word) {
                self.repairs.add(Repair::RepeatedStart);
                return true;
            }
            if let (Some(channel), None) = (Channel::known(word), &self.channel) {
                self.set_channel(channel);
                return true;
            }
        }
        if is_tool_name(word) && self.recipient.is_none() {
            self.set_recipient(word);
            return true;
        }
        false
    }

    fn set_author(&mut self, word: &str) -> bool {
        let (role, name) = match word.split_once(':') {
            Some((role, name)) => (role, Some(name.to_owned())),
            None => (word, None),
        };
        if let Some(role) = Role::from_name(role) {
            self.author = Some(Author { role, name });
        } else if let Some(channel) = Channel::known(word) {
            self.repairs.add(Repair::UnknownAuthor);
            self.author = Some(Author::of(Role::Assistant));
            self.set_channel(channel);
        } else if is_tool_name(word) {
            self.author = Some(Author { role: Role::Tool, name: Some(word.to_owned()) });
        } else {
            return false;
        }
        true
    }

    fn set_recipient(&mut self, recipient: &str) {
        if let Some(old) = self.recipient.replace(recipient.to_owned()).filter(|old| old != recipient) {
            self.repairs.add(Repair::RepeatedRecipient);
            self.overridden.push(format!("{RECIPIENT}{old}"));
        }
    }

    fn set_channel(&mut self, channel: Channel) {
        match self.channel.replace(channel) {
            None => {}
            Some(Channel::Other(old)) => {
                self.repairs.add(Repair::RepeatedChannel);
                self.overridden.push(old);
            }
            Some(Channel::Analysis | Channel::Commentary | Channel::Final) => {
                self.repairs.add(Repair::RepeatedChannel);
            }
        }
    }

    fn set_content_type(&mut self, name: &str) -> bool {
        let is_free = self.content_type.is_none();
        if is_free {
            self.content_type = Some(ContentType { constrained: true, name: name.to_owned() });
        }
        is_free
    }

    /// The header and the words that found no place in it.
    pub(super) fn complete(mut self) -> (Header, String) {
        self.end_recipient();
        // One word alone is a content type without its marker; more are prose.
        if self.content_type.is_none() && self.stray.len() == 1 {
            self.content_type = self.stray.pop().map(|name| ContentType { constrained: false, name });
        }
        if !self.stray.is_empty() {
            self.repairs.add(Repair::StrayHeaderText);
        }
        let mut stray = std::mem::take(&mut self.overridden);
        stray.append(&mut self.stray);
        if self.author.is_none() {
            self.author = Some(self.unknown_author());
        }
        (self.header(), stray.join(" "))
    }

    fn unknown_author(&mut self) -> Author {
        let name = self.stranger.take();
        // Only tools speak to the assistant.
        let is_spoken_to = self.recipient.as_deref() == Some(Role::Assistant.as_str());
        if name.as_ref().is_some_and(|name| is_spoken_to || is_qualified(name) || name == "python") {
            return Author { role: Role::Tool, name };
        }
        self.repairs.add(Repair::UnknownAuthor);
        Author { role: Role::Assistant, name }
    }

    pub(super) fn header(self) -> Header {
        Header {
            author: self.author.unwrap_or(Author::of(Role::Assistant)),
            recipient: self.recipient,
            channel: self.channel,
            content_type: self.content_type,
        }
    }

    /// Takes the words at the beginning of a segment that can only belong to a
    /// header, and returns the rest, which is content. `is_cut_off` says that the
    /// last word may be the beginning of one.
    pub(super) fn leading<'t>(&mut self, marker: Marker, text: &'t str, is_cut_off: bool) -> &'t str {
        let mut rest = text;
        let mut is_named = false;
        loop {
            let words = rest.trim_start();
            let len = self.len_of_certain(marker, is_named, words).or_else(|| {
                let is_half = is_cut_off && begins_header_word(marker, words);
                is_half.then_some(words.len())
            });
            match len {
                Some(0) => return "",
                Some(len) => rest = &words[len..],
                // Blanks that nothing precedes are the content's own.
                None if rest.len() == text.len() => return rest,
                None => return words,
            }
            is_named = true;
        }
    }

    /// Takes the first word if it is certain; returns its length in bytes.
    fn len_of_certain(&mut self, marker: Marker, is_named: bool, words: &str) -> Option<usize> {
        if words.is_empty() {
            return Some(0);
        }
        let word = words.split_whitespace().next()?;
        if let Some(recipient) = word.strip_prefix(RECIPIENT) {
            let recipient = identifier(recipient);
            if recipient.is_empty() || self.recipient.as_deref().is_some_and(|old| old != recipient) {
                return None;
            }
            self.set_recipient(recipient);
            return Some(RECIPIENT.len() + recipient.len());
        }
        let is_taken = match marker {
            Marker::Author if self.author.is_none() => self.set_author(word),
            Marker::Author => self.author.as_ref().is_some_and(|author| author.role.as_str() == word),
            Marker::Channel => match Channel::known(word) {
                Some(channel) if !is_named => {
                    self.set_channel(channel);
                    true
                }
                _ => false,
            },
            Marker::Constrain => {
                let name = identifier(word);
                let is_certain = !is_named && CONTENT_TYPES.contains(&name);
                return (is_certain && self.set_content_type(name)).then_some(name.len());
            }
        };
        is_taken.then_some(word.len())
    }
}

/// Whether a stream that ends in `words` was cut off inside a header's word.
fn begins_header_word(marker: Marker, words: &str) -> bool {
    let begins = |word: &str| word.starts_with(words);
    let is_name = match marker {
        Marker::Author => Role::ALL.iter().any(|role| begins(role.as_str())),
        Marker::Channel => Channel::KNOWN.iter().any(|channel| begins(channel.as_str())),
        Marker::Constrain => CONTENT_TYPES.iter().any(|name| begins(name)),
    };
    is_name || begins(RECIPIENT)
}

/// The part of `word` that can be a name: arguments may be glued to it.
fn identifier(word: &str) -> &str {
    let is_part = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | '/' | ':' | '+');
    word.split(|c| !is_part(c)).next().unwrap_or_default()
}

/// Whether a word can only be the qualified name of a tool. Any namespace would
/// do after `to=`, but a bare "v1.0" or "python" is more likely prose.
fn is_tool_name(word: &str) -> bool {
    let namespace = word.split_once('.').map(|(namespace, _)| namespace);
    is_qualified(word) && matches!(namespace, Some(ToolNamespace::FUNCTIONS | "browser"))
}

/// Whether a word looks like a namespace, a dot and a name.
fn is_qualified(word: &str) -> bool {
    word.split_once('.').is_some_and(|(namespace, name)| {
        !namespace.is_empty() && !name.is_empty() && identifier(word).len() == word.len()
    })
}
