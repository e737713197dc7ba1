//! Which field is wrong, and how single values are checked. Knows no message.

use std::fmt::Display;
use std::ops::RangeInclusive;

/// A field of a request that holds what it must not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct InvalidField {
    /// Its path in the request: `messages[2].role`.
    pub field: String,
    /// What is wrong with it, and what would be right.
    pub reason: String,
}

impl InvalidField {
    /// A field of the message at hand.
    pub fn new(field: impl Into<String>, reason: impl Display) -> Self {
        Self { field: field.into(), reason: reason.to_string() }
    }

    /// The same field, seen from the message that holds this one as `parent`.
    #[must_use]
    pub fn within(self, parent: impl Display) -> Self {
        Self { field: format!("{parent}.{}", self.field), ..self }
    }

    /// The same field, seen from the message that holds this one in a list.
    #[must_use]
    pub fn within_item(self, parent: &str, index: usize) -> Self {
        self.within(format_args!("{parent}[{index}]"))
    }
}

/// Names are what JSON schemas and the model's headers both can hold.
const MAX_NAME_BYTES: usize = 64;

/// A number of a range, if it is there. Not a number is in no range.
pub(super) fn in_range<T: PartialOrd + Display>(
    field: &str,
    value: Option<T>,
    range: RangeInclusive<T>,
) -> Result<Option<T>, InvalidField> {
    match value {
        Some(value) if !range.contains(&value) => {
            let (low, high) = range.into_inner();
            Err(InvalidField::new(field, format_args!("must be from {low} to {high}, not {value}")))
        }
        value => Ok(value),
    }
}

/// A number above zero and up to `high`, if it is there.
pub(super) fn positive(field: &str, value: Option<f32>, high: f32) -> Result<Option<f32>, InvalidField> {
    match value {
        Some(value) if !(value > 0.0 && value <= high) => {
            Err(InvalidField::new(field, format_args!("must be above 0 and at most {high}, not {value}")))
        }
        value => Ok(value),
    }
}

/// A list of so many items.
pub(super) fn at_most<T>(field: &str, list: Vec<T>, max: usize) -> Result<Vec<T>, InvalidField> {
    if list.len() > max {
        return Err(InvalidField::new(
            field,
            format_args!("must have at most {max} entries, not {}", list.len()),
        ));
    }
    Ok(list)
}

/// A text of so many bytes.
pub(super) fn short(field: &str, text: String, max_bytes: usize) -> Result<String, InvalidField> {
    if text.len() > max_bytes {
        return Err(InvalidField::new(
            field,
            format_args!("must have at most {max_bytes} bytes, not {}", text.len()),
        ));
    }
    Ok(text)
}

/// A text that says something.
pub(super) fn filled(field: &str, text: String) -> Result<String, InvalidField> {
    if text.is_empty() {
        return Err(InvalidField::new(field, "must not be empty"));
    }
    Ok(text)
}

/// A name of letters, digits, `_`, `-` and `.`.
pub(super) fn name(field: &str, text: String) -> Result<String, InvalidField> {
    let text = short(field, filled(field, text)?, MAX_NAME_BYTES)?;
    let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    if !text.bytes().all(is_legal) {
        return Err(InvalidField::new(
            field,
            format_args!("must be of letters, digits, _, - and ., not {text:?}"),
        ));
    }
    Ok(text)
}

/// An enum's value that this server knows and that says something.
pub(super) fn known<E: TryFrom<i32>>(field: &str, value: i32) -> Result<E, InvalidField> {
    E::try_from(value)
        .map_err(|_| InvalidField::new(field, format_args!("{value} is not a value of this enum")))
}

/// A JSON object, written as text.
pub(super) fn json_object(field: &str, text: &str) -> Result<serde_json::Value, InvalidField> {
    let value: serde_json::Value = serde_json::from_str(text)
        .map_err(|error| InvalidField::new(field, format_args!("must be JSON: {error}")))?;
    if !value.is_object() {
        return Err(InvalidField::new(field, "must be a JSON object"));
    }
    Ok(value)
}

/// A message that must be there.
pub(super) fn present<T>(field: &str, value: Option<T>) -> Result<T, InvalidField> {
    value.ok_or_else(|| InvalidField::new(field, "must be set"))
}

/// A field that only some messages have.
pub(super) fn absent(field: &str, is_absent: bool, where_it_belongs: &str) -> Result<(), InvalidField> {
    if is_absent {
        return Ok(());
    }
    Err(InvalidField::new(field, format_args!("belongs only to {where_it_belongs}")))
}

/// A text that stands for nothing when it is empty.
pub(super) fn unless_empty(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_grow_from_the_inside() {
        let error = InvalidField::new("name", "must not be empty").within("function");
        assert_eq!(error.within_item("tools", 3).to_string(), "tools[3].function.name: must not be empty");
    }

    #[test]
    fn what_is_no_number_is_in_no_range() {
        assert!(in_range("t", Some(f32::NAN), 0.0..=2.0).is_err());
        assert!(positive("t", Some(f32::NAN), 2.0).is_err());
        assert!(positive("t", Some(f32::INFINITY), 2.0).is_err());
        assert_eq!(in_range("t", None, 0.0..=2.0), Ok(None));
    }

    #[test]
    fn names_are_short_and_plain() {
        assert!(name("n", "get_weather-2".into()).is_ok());
        for bad in ["", "a b", "é", &"x".repeat(65)] {
            assert!(name("n", bad.into()).is_err(), "{bad}");
        }
    }
}
