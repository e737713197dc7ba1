//! What the answer must look like: `response_format`, and vLLM's
//! `structured_outputs` and `guided_*`. At most one of them; reading only.

use chorale_harmony::{ResponseConstraint, ResponseFormat};
use serde_json::Value;

use super::super::fields::Field;
use crate::error::ApiError;

/// Schemas without a name of their own.
const UNNAMED: &str = "answer";
/// Texts in a choice.
const MAX_CHOICES: usize = 1024;

/// A demand, and where it was made.
#[derive(Debug)]
pub(super) struct Format {
    /// For complaints of those who enforce it.
    pub(super) field: &'static str,
    pub(super) constraint: ResponseConstraint,
    /// What the model is told about it.
    pub(super) told: Option<ResponseFormat>,
}

#[derive(Clone, Copy)]
enum Kind {
    Text,
    JsonObject,
    JsonSchema,
}

impl Format {
    pub(super) fn read(root: &Field<'_>) -> Result<Self, ApiError> {
        let mut found = vec![];
        found.extend(response_format(root)?);
        found.extend(structured_outputs(root)?);
        found.extend(guided(root)?);
        if let [first, second, ..] = found.as_slice() {
            return Err(ApiError::invalid(
                second.field,
                format_args!("{} demands something already", first.field),
            ));
        }
        Ok(found.pop().unwrap_or(Self {
            field: "response_format",
            constraint: ResponseConstraint::None,
            told: None,
        }))
    }

    fn untold(field: &'static str, constraint: ResponseConstraint) -> Self {
        Self { field, constraint, told: None }
    }
}

fn response_format(root: &Field<'_>) -> Result<Option<Format>, ApiError> {
    let Some(format) = root.get("response_format") else { return Ok(None) };
    format.object()?;
    let kinds = [("text", Kind::Text), ("json_object", Kind::JsonObject), ("json_schema", Kind::JsonSchema)];
    match format.need("type")?.one_of(&kinds)? {
        Kind::Text => Ok(None),
        Kind::JsonObject => Ok(Some(Format::untold("response_format", ResponseConstraint::JsonObject))),
        Kind::JsonSchema => {
            let definition = format.need("json_schema")?;
            let schema = json_schema(&definition.need("schema")?)?;
            let name = definition.get("name").map(|field| super::tools::name(&field).map(str::to_owned));
            let description = definition.get("description").map(|field| field.text().map(str::to_owned));
            if let Some(strict) = definition.get("strict") {
                strict.boolean()?;
            }
            Ok(Some(Format {
                field: "response_format.json_schema.schema",
                constraint: ResponseConstraint::JsonSchema(schema.clone()),
                told: Some(ResponseFormat {
                    name: name.transpose()?.unwrap_or_else(|| UNNAMED.to_owned()),
                    description: description.transpose()?,
                    schema,
                }),
            }))
        }
    }
}

fn structured_outputs(root: &Field<'_>) -> Result<Option<Format>, ApiError> {
    let Some(outputs) = root.get("structured_outputs") else { return Ok(None) };
    outputs.object()?;
    outputs.refuse(&[("structural_tag", "use tools, or response_format")])?;
    let mut found = Vec::new();
    if let Some(field) = outputs.get("json") {
        found.push(("structured_outputs.json", ResponseConstraint::JsonSchema(json_schema(&field)?)));
    }
    if let Some(field) = outputs.get("regex") {
        found.push(("structured_outputs.regex", ResponseConstraint::Regex(field.text()?.to_owned())));
    }
    if let Some(field) = outputs.get("choice") {
        found.push(("structured_outputs.choice", choice(&field)?));
    }
    if let Some(field) = outputs.get("grammar") {
        found.push(("structured_outputs.grammar", ResponseConstraint::Lark(field.text()?.to_owned())));
    }
    if outputs.get("json_object").map(|field| field.boolean()).transpose()? == Some(true) {
        found.push(("structured_outputs.json_object", ResponseConstraint::JsonObject));
    }
    if let [(first, _), (second, _), ..] = found.as_slice() {
        return Err(ApiError::invalid(*second, format_args!("{first} demands something already")));
    }
    match found.pop() {
        Some((field, constraint)) => Ok(Some(Format::untold(field, constraint))),
        None => Err(outputs.error("needs one of json, regex, choice, grammar and json_object")),
    }
}

/// The names that vLLM had before `structured_outputs`.
fn guided(root: &Field<'_>) -> Result<Vec<Format>, ApiError> {
    let mut found = Vec::new();
    if let Some(field) = root.get("guided_json") {
        found.push(Format::untold("guided_json", ResponseConstraint::JsonSchema(json_schema(&field)?)));
    }
    if let Some(field) = root.get("guided_regex") {
        found.push(Format::untold("guided_regex", ResponseConstraint::Regex(field.text()?.to_owned())));
    }
    if let Some(field) = root.get("guided_choice") {
        found.push(Format::untold("guided_choice", choice(&field)?));
    }
    if let Some(field) = root.get("guided_grammar") {
        found.push(Format::untold("guided_grammar", ResponseConstraint::Lark(field.text()?.to_owned())));
    }
    Ok(found)
}

/// A schema, or the text of one.
fn json_schema(field: &Field<'_>) -> Result<Value, ApiError> {
    let schema = match field.value().as_str() {
        Some(text) => serde_json::from_str(text)
            .map_err(|error| field.error(format_args!("must be a JSON schema: {error}")))?,
        None => field.value().clone(),
    };
    if schema.is_object() { Ok(schema) } else { Err(field.wrong("a JSON schema, which is an object")) }
}

fn choice(field: &Field<'_>) -> Result<ResponseConstraint, ApiError> {
    let choices = field.items()?;
    if !(1..=MAX_CHOICES).contains(&choices.len()) {
        return Err(
            field.error(format_args!("has {} texts, from 1 to {MAX_CHOICES} are served", choices.len()))
        );
    }
    let choices: Result<Vec<String>, ApiError> =
        choices.map(|choice| choice.text().map(str::to_owned)).collect();
    choices.map(ResponseConstraint::Choice)
}
