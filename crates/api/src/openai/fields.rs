//! Reads JSON field by field, so that every complaint names its place. It knows
//! types and ranges; what a field means is known where it is read.

use std::fmt::Display;
use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::error::ApiError;

/// Characters of a wrong value that an error repeats.
const MAX_SHOWN_CHARS: usize = 60;

/// A value and where it stands.
#[derive(Clone, Copy)]
pub(crate) struct Field<'a> {
    value: &'a Value,
    parent: Option<&'a Field<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Root,
    Key(&'a str),
    Index(usize),
}

/// The JSON object that a body holds.
pub(crate) fn parse_object(body: &[u8]) -> Result<Value, ApiError> {
    // serde_json refuses what is nested deeper than 128.
    let value: Value = serde_json::from_slice(body).map_err(|error| {
        ApiError::malformed("invalid_json", format!("the body must be a JSON object: {error}"))
    })?;
    if value.is_object() {
        return Ok(value);
    }
    let shown = shown(&value);
    Err(ApiError::malformed("invalid_json", format!("the body must be a JSON object, not {shown}")))
}

impl<'a> Field<'a> {
    pub(crate) fn root(value: &'a Value) -> Self {
        Self { value, parent: None, step: Step::Root }
    }

    pub(crate) fn value(&self) -> &'a Value {
        self.value
    }

    /// As `messages[2].content[0].type`.
    pub(crate) fn path(&self) -> String {
        let mut path = self.parent.map(Field::path).unwrap_or_default();
        match self.step {
            Step::Root => {}
            Step::Key(key) if path.is_empty() => path.push_str(key),
            Step::Key(key) => {
                path.push('.');
                path.push_str(key);
            }
            Step::Index(index) => path.push_str(&format!("[{index}]")),
        }
        path
    }

    /// A complaint about this field; `remedy` says what would be right.
    pub(crate) fn error(&self, remedy: impl Display) -> ApiError {
        ApiError::invalid(self.path(), remedy)
    }

    /// A complaint that repeats the value.
    pub(crate) fn wrong(&self, expected: impl Display) -> ApiError {
        self.error(format_args!("must be {expected}, not {}", shown(self.value)))
    }

    /// A member that is there and not null.
    pub(crate) fn get<'s>(&'s self, key: &'s str) -> Option<Field<'s>> {
        let value = self.value.as_object()?.get(key)?;
        (!value.is_null()).then_some(Field { value, parent: Some(self), step: Step::Key(key) })
    }

    /// A member that must be there.
    pub(crate) fn need<'s>(&'s self, key: &'s str) -> Result<Field<'s>, ApiError> {
        self.object()?;
        self.get(key).ok_or_else(|| {
            let missing = Field { value: &Value::Null, parent: Some(self), step: Step::Key(key) };
            missing.error("is missing")
        })
    }

    pub(crate) fn object(&self) -> Result<&'a Map<String, Value>, ApiError> {
        self.value.as_object().ok_or_else(|| self.wrong("an object"))
    }

    pub(crate) fn items<'s>(&'s self) -> Result<impl ExactSizeIterator<Item = Field<'s>>, ApiError> {
        let items = self.value.as_array().ok_or_else(|| self.wrong("an array"))?;
        Ok(items.iter().enumerate().map(move |(index, value)| Field {
            value,
            parent: Some(self),
            step: Step::Index(index),
        }))
    }

    pub(crate) fn text(&self) -> Result<&'a str, ApiError> {
        self.value.as_str().ok_or_else(|| self.wrong("a string"))
    }

    pub(crate) fn boolean(&self) -> Result<bool, ApiError> {
        self.value.as_bool().ok_or_else(|| self.wrong("true or false"))
    }

    /// An integer; `1.0` is one.
    pub(crate) fn integer(&self, range: RangeInclusive<i64>) -> Result<i64, ApiError> {
        let whole = |number: f64| (number.fract() == 0.0 && number.abs() < 9e15).then_some(number as i64);
        let integer = self.value.as_i64().or_else(|| self.value.as_f64().and_then(whole));
        integer
            .filter(|integer| range.contains(integer))
            .ok_or_else(|| self.wrong(format_args!("an integer from {} to {}", range.start(), range.end())))
    }

    /// As [`Self::integer`], within 32 bits.
    pub(crate) fn unsigned(&self, range: RangeInclusive<u32>) -> Result<u32, ApiError> {
        let wide = i64::from(*range.start())..=i64::from(*range.end());
        self.integer(wide).map(|integer| integer as u32)
    }

    pub(crate) fn number(&self, range: RangeInclusive<f64>) -> Result<f32, ApiError> {
        let number = self.value.as_f64().filter(|number| range.contains(number));
        number
            .map(|number| number as f32)
            .ok_or_else(|| self.wrong(format_args!("a number from {} to {}", range.start(), range.end())))
    }

    /// A string of a few that are known.
    pub(crate) fn one_of<T: Copy>(&self, known: &[(&str, T)]) -> Result<T, ApiError> {
        let found = self.value.as_str().and_then(|text| known.iter().find(|(name, _)| *name == text));
        found.map(|(_, meaning)| *meaning).ok_or_else(|| {
            let names: Vec<String> = known.iter().map(|(name, _)| format!("\"{name}\"")).collect();
            self.wrong(format_args!("one of {}", names.join(", ")))
        })
    }

    /// Complains about a member that would change the answer and cannot be
    /// honoured. What asks for nothing (`false`, `0`, `[]`) is let through.
    pub(crate) fn refuse(&self, refused: &[(&str, &str)]) -> Result<(), ApiError> {
        for (key, instead) in refused {
            let asks = self.get(key).filter(|field| !is_nothing(field.value));
            if let Some(field) = asks {
                return Err(field.error(format_args!("is not supported; {instead}")));
            }
        }
        Ok(())
    }
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(is_on) => !is_on,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
    }
}

/// A value as an error repeats it: short, and nothing of what is inside.
pub(crate) fn shown(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(text) if text.chars().count() > MAX_SHOWN_CHARS => {
            let start: String = text.chars().take(MAX_SHOWN_CHARS).collect();
            format!("{start:?}… ({} characters)", text.chars().count())
        }
        Value::String(text) => format!("{text:?}"),
        Value::Array(items) => format!("an array of {}", items.len()),
        Value::Object(_) => "an object".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_path_names_keys_and_places() {
        let value = json!({"messages": [{"content": [{"type": 5}]}]});
        let root = Field::root(&value);
        let messages = root.need("messages").unwrap();
        let message = messages.items().unwrap().next().unwrap();
        let content = message.need("content").unwrap();
        let part = content.items().unwrap().next().unwrap();
        let error = part.need("type").unwrap().text().unwrap_err();
        assert_eq!(error.to_string(), "messages[0].content[0].type: must be a string, not 5");
        assert_eq!(part.need("text").err().unwrap().to_string(), "messages[0].content[0].text: is missing");
    }

    #[test]
    fn whole_floats_are_integers_and_huge_ones_are_not() {
        let value = json!({"a": 2.0, "b": 2.5, "c": 1e300, "d": u64::MAX});
        let root = Field::root(&value);
        assert_eq!(root.need("a").unwrap().unsigned(0..=9).unwrap(), 2);
        for key in ["b", "c", "d"] {
            assert!(root.need(key).unwrap().integer(i64::MIN..=i64::MAX).is_err(), "{key}");
        }
    }

    #[test]
    fn errors_repeat_little_of_long_values() {
        let text = shown(&json!("x".repeat(1000)));
        assert!(text.len() < 100 && text.contains("(1000 characters)"), "{text}");
        assert_eq!(shown(&json!([1, 2])), "an array of 2");
    }
}
