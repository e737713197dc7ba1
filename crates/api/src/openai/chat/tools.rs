//! `tools`, `tool_choice` and `parallel_tool_calls`. It reads what may be called
//! and how often; that calls keep to it is for decoding to enforce.

use chorale_harmony::{Tool, ToolChoice, ToolConstraint};

use super::super::Limits;
use super::super::fields::Field;
use super::allows_calls;
use crate::error::ApiError;

/// Characters of a function's name.
const MAX_NAME_CHARS: usize = 64;

/// What the client lets the model call.
#[derive(Debug, Default)]
pub(super) struct Tools {
    /// As the model reads them.
    pub(super) tools: Vec<Tool>,
    /// As decoding enforces them.
    pub(super) constraints: Vec<ToolConstraint>,
    pub(super) choice: ToolChoice,
    /// Whether a second call in a turn is wanted if the model makes one.
    pub(super) several_calls: bool,
    /// Whether `parallel_tool_calls: true` was asked for.
    asks_for_several: bool,
}

impl Tools {
    pub(super) fn read(root: &Field<'_>, limits: &Limits) -> Result<Self, ApiError> {
        let parallel = root.get("parallel_tool_calls").map(|field| field.boolean()).transpose()?;
        let mut tools = Self {
            several_calls: parallel != Some(false),
            asks_for_several: parallel == Some(true),
            ..Self::default()
        };
        if let Some(field) = root.get("tools") {
            let items = field.items()?;
            if items.len() > limits.max_tools {
                let limit = limits.max_tools;
                return Err(
                    field.error(format_args!("has {} tools, at most {limit} are served", items.len()))
                );
            }
            for tool in items {
                tools.add(&tool)?;
            }
        }
        tools.choice = tools.read_choice(root)?;
        Ok(tools)
    }

    /// Whether generation goes on after a call. The model ends its turn with a
    /// call by nature, so this takes an explicit `parallel_tool_calls: true`.
    pub(super) fn goes_past_calls(&self) -> bool {
        let is_one = matches!(self.choice, ToolChoice::Named(_));
        self.asks_for_several && !self.tools.is_empty() && allows_calls(&self.choice) && !is_one
    }

    fn add(&mut self, tool: &Field<'_>) -> Result<(), ApiError> {
        tool.object()?;
        tool.need("type")?.one_of(&[("function", ())])?;
        let function = tool.need("function")?;
        let name_field = function.need("name")?;
        let name = name(&name_field)?;
        if self.tools.iter().any(|other| other.name == name) {
            return Err(name_field.error(format_args!("{name:?} is defined twice")));
        }
        let description =
            function.get("description").map(|field| field.text()).transpose()?.unwrap_or_default();
        let parameters = function
            .get("parameters")
            .map(|field| field.object().map(|_| field.value().clone()))
            .transpose()?
            // OpenAI's way to say that there are none.
            .filter(|schema| schema.as_object().is_some_and(|members| !members.is_empty()));
        let strict = function.get("strict").map(|field| field.boolean()).transpose()?.unwrap_or(false);
        self.constraints.push(ToolConstraint {
            name: name.to_owned(),
            parameters: parameters.clone(),
            strict,
        });
        self.tools.push(Tool { name: name.to_owned(), description: description.to_owned(), parameters });
        Ok(())
    }

    fn read_choice(&self, root: &Field<'_>) -> Result<ToolChoice, ApiError> {
        let Some(field) = root.get("tool_choice") else { return Ok(ToolChoice::Auto) };
        if field.value().is_object() {
            field.need("type")?.one_of(&[("function", ())])?;
            let function = field.need("function")?;
            let name = function.need("name")?;
            let text = name.text()?;
            if self.tools.iter().any(|tool| tool.name == text) {
                return Ok(ToolChoice::Named(text.to_owned()));
            }
            return Err(name.wrong("the name of one of the tools"));
        }
        #[derive(Clone, Copy)]
        enum Mode {
            None,
            Auto,
            Required,
        }
        let modes = [("none", Mode::None), ("auto", Mode::Auto), ("required", Mode::Required)];
        match field.one_of(&modes)? {
            Mode::None => Ok(ToolChoice::None),
            Mode::Auto => Ok(ToolChoice::Auto),
            Mode::Required if self.tools.is_empty() => {
                Err(field.error("\"required\" needs at least one tool to call"))
            }
            Mode::Required => Ok(ToolChoice::Required),
        }
    }
}

/// A function's name, as OpenAI allows it, and dots.
pub(super) fn name<'a>(field: &Field<'a>) -> Result<&'a str, ApiError> {
    let name = field.text()?;
    let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    if (1..=MAX_NAME_CHARS).contains(&name.len()) && name.bytes().all(is_legal) {
        return Ok(name);
    }
    Err(field.wrong(format_args!("1 to {MAX_NAME_CHARS} letters, digits, \"_\", \"-\" or \".\"")))
}
