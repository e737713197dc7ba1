//! The headers that the assistant may open a message with. It spells them; which
//! of them are legal at a moment is for the turn to say.

use super::literals::{Cursor, Literal};
use super::spec::{ResponseConstraint, SpecError, ToolChoice, ToolConstraint};

/// What a header announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opening {
    /// Thinking.
    Analysis,
    /// Something for the user before a call.
    Preamble,
    /// The answer.
    Answer,
    /// A call of the tool of this index.
    Call(usize),
}

/// How many functions one request may define; OpenAI's bound.
const TOOLS_MAX: usize = 128;
/// A header must stay short even if each byte of a name is a token.
const NAME_BYTES_MAX: usize = 128;
/// What stands before the header of every message but the first.
const NEXT_MESSAGE: &str = "<|start|>assistant";

/// Every header that some moment of a turn allows.
#[derive(Clone, Debug)]
pub(super) struct Openings {
    spellings: Vec<(Opening, String)>,
}

impl Openings {
    /// Checks the names, for they become part of headers.
    pub(super) fn new(
        tools: &[ToolConstraint],
        choice: &ToolChoice,
        response: &ResponseConstraint,
    ) -> Result<Self, SpecError> {
        check_names(tools)?;
        check_choice(tools, choice)?;
        let mut spellings = vec![
            (Opening::Analysis, "<|channel|>analysis<|message|>".to_owned()),
            (Opening::Answer, "<|channel|>final<|message|>".to_owned()),
        ];
        match response {
            // A preamble is content to a client, as the answer is: it would
            // spoil an answer that must have a form.
            ResponseConstraint::None => {
                spellings.push((Opening::Preamble, "<|channel|>commentary<|message|>".to_owned()));
            }
            ResponseConstraint::JsonObject | ResponseConstraint::JsonSchema(_) => {
                spellings.push((Opening::Answer, "<|channel|>final <|constrain|>json<|message|>".to_owned()))
            }
            ResponseConstraint::Regex(_) | ResponseConstraint::Choice(_) | ResponseConstraint::Lark(_) => {}
        }
        for (index, ToolConstraint { name, .. }) in tools.iter().enumerate() {
            // The model was trained on both orders.
            let headers = [
                format!("<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>"),
                format!(" to=functions.{name}<|channel|>commentary <|constrain|>json<|message|>"),
            ];
            if choice.allows(name) {
                spellings.extend(headers.map(|header| (Opening::Call(index), header)));
            }
        }
        Ok(Self { spellings })
    }

    /// The headers that `is_legal` lets pass, for the first message of a turn,
    /// whose `<|start|>assistant` the prompt has said, or a later one.
    pub(super) fn cursor(&self, is_first: bool, is_legal: impl Fn(Opening) -> bool) -> Cursor<Opening> {
        let before = if is_first { "" } else { NEXT_MESSAGE };
        let legal = self.spellings.iter().filter(|(opening, _)| is_legal(*opening));
        Cursor::new(
            legal.map(|(opening, header)| Literal::marked(&format!("{before}{header}"), *opening)).collect(),
        )
    }
}

fn check_names(tools: &[ToolConstraint]) -> Result<(), SpecError> {
    if tools.len() > TOOLS_MAX {
        let field = "tools".to_owned();
        return Err(SpecError::TooLarge { field, what: "tools", found: tools.len(), limit: TOOLS_MAX });
    }
    for (index, ToolConstraint { name, .. }) in tools.iter().enumerate() {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        let problem = match name {
            name if name.is_empty() => Some("it is empty"),
            name if name.len() > NAME_BYTES_MAX => Some("it is longer than 128 bytes"),
            name if !name.chars().all(is_plain) => Some("it may hold letters, digits, '_', '-' and '.' only"),
            name if tools[..index].iter().any(|tool| tool.name == *name) => Some("another tool has it"),
            _ => None,
        };
        if let Some(reason) = problem {
            return Err(SpecError::Name { field: format!("tools[{index}].function.name"), reason });
        }
    }
    Ok(())
}

fn check_choice(tools: &[ToolConstraint], choice: &ToolChoice) -> Result<(), SpecError> {
    match choice {
        ToolChoice::None | ToolChoice::Auto => Ok(()),
        ToolChoice::Required | ToolChoice::Named(_) if tools.is_empty() => Err(SpecError::NoTools),
        ToolChoice::Required => Ok(()),
        ToolChoice::Named(name) if tools.iter().any(|tool| tool.name == *name) => Ok(()),
        ToolChoice::Named(name) => Err(SpecError::UnknownTool { name: name.clone() }),
    }
}
