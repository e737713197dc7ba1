//! Typed access to the fields of one JSON object, with errors that name file,
//! field and value. It knows nothing of what the fields mean.

use crate::checkpoint::CheckpointError;
use serde_json::{Map, Value};
use std::path::Path;

/// No dimension of a model comes near; products of three stay far from
/// overflowing the arithmetic that checks them.
const MAX_SIZE: u64 = 1 << 30;

/// Characters of a value that a message repeats.
const MAX_SHOWN_CHARS: usize = 80;

/// One JSON object of a file.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    file: &'a Path,
    /// The path of this object in the file, with a dot at the end, or nothing.
    prefix: &'a str,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(file: &'a Path, map: &'a Map<String, Value>) -> Self {
        Self { file, prefix: "", map }
    }

    /// The object under `key`, whose own path is `prefix`.
    pub(super) fn section(&self, key: &str, prefix: &'a str) -> Result<Option<Fields<'a>>, CheckpointError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Fields { file: self.file, prefix, map })),
            Some(_) => Err(self.invalid(key, "an object is expected")),
        }
    }

    /// The value under `key`; `null` counts as absent.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn is_null(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(Value::is_null)
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (&'a str, &'a Value)> {
        self.map.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// A whole number from 1 up.
    pub(super) fn size(&self, key: &str) -> Result<usize, CheckpointError> {
        self.optional_size(key)?.ok_or_else(|| self.missing(key, "a whole number from 1 up is expected"))
    }

    pub(super) fn optional_size(&self, key: &str) -> Result<Option<usize>, CheckpointError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64() {
            Some(size @ 1..=MAX_SIZE) => Ok(Some(size as usize)),
            _ => Err(self.invalid(key, format!("a whole number from 1 to {MAX_SIZE} is expected"))),
        }
    }

    /// A whole number from 1 up that goes by either of two names.
    pub(super) fn size_by_either_name(
        &self,
        key: &'static str,
        alias: &'static str,
    ) -> Result<usize, CheckpointError> {
        match (self.optional_size(key)?, self.optional_size(alias)?) {
            (Some(size), Some(other)) if size != other => {
                Err(self.conflict(key, alias, "keep the one that the tensors' shapes follow"))
            }
            (Some(size), _) | (None, Some(size)) => Ok(size),
            (None, None) => {
                Err(self.missing(key, format!("a whole number from 1 up is expected, here or as `{alias}`")))
            }
        }
    }

    /// A finite number.
    pub(super) fn number(&self, key: &str) -> Result<f64, CheckpointError> {
        self.optional_number(key)?.ok_or_else(|| self.missing(key, "a number is expected"))
    }

    pub(super) fn optional_number(&self, key: &str) -> Result<Option<f64>, CheckpointError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64() {
            Some(number) if number.is_finite() => Ok(Some(number)),
            _ => Err(self.invalid(key, "a finite number is expected")),
        }
    }

    /// A number above zero that stays so as an `f32`.
    pub(super) fn positive_f32(&self, key: &str, default: f32) -> Result<f32, CheckpointError> {
        let Some(number) = self.optional_number(key)? else { return Ok(default) };
        let narrow = number as f32;
        if narrow > 0.0 && narrow.is_finite() {
            Ok(narrow)
        } else {
            Err(self.invalid(key, "a number above 0 within the range of a 32-bit float is expected"))
        }
    }

    pub(super) fn boolean(&self, key: &str, default: bool) -> Result<bool, CheckpointError> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(self.invalid(key, "true or false is expected")),
        }
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, CheckpointError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.invalid(key, "a string is expected")),
        }
    }

    pub(super) fn missing(&self, key: &str, remedy: impl Into<String>) -> CheckpointError {
        CheckpointError::MissingField {
            file: self.file.to_owned(),
            field: self.path(key),
            remedy: remedy.into(),
        }
    }

    pub(super) fn invalid(&self, key: &str, remedy: impl Into<String>) -> CheckpointError {
        self.invalid_value(key, self.shown(key), remedy)
    }

    /// For a value that is an element of the field, or computed from several.
    pub(super) fn invalid_value(
        &self,
        key: &str,
        value: String,
        remedy: impl Into<String>,
    ) -> CheckpointError {
        CheckpointError::InvalidField {
            file: self.file.to_owned(),
            field: self.path(key),
            value,
            remedy: remedy.into(),
        }
    }

    pub(super) fn unsupported(&self, key: &str, remedy: impl Into<String>) -> CheckpointError {
        CheckpointError::Unsupported {
            file: self.file.to_owned(),
            field: self.path(key),
            value: self.shown(key),
            remedy: remedy.into(),
        }
    }

    pub(super) fn conflict(&self, key: &str, other: &str, remedy: &'static str) -> CheckpointError {
        self.conflict_with(key, self, other, remedy)
    }

    /// As `conflict`, for a field of another object of the same file.
    pub(super) fn conflict_with(
        &self,
        key: &str,
        section: &Fields<'_>,
        other: &str,
        remedy: &'static str,
    ) -> CheckpointError {
        CheckpointError::ConflictingFields {
            file: self.file.to_owned(),
            first: Box::new((self.path(key), self.shown(key))),
            second: Box::new((section.path(other), section.shown(other))),
            remedy,
        }
    }

    fn path(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// The value as JSON, cut where it gets long.
    fn shown(&self, key: &str) -> String {
        let text = self.map.get(key).map_or_else(|| "absent".to_owned(), Value::to_string);
        match text.char_indices().nth(MAX_SHOWN_CHARS) {
            Some((end, _)) => format!("{}…", &text[..end]),
            None => text,
        }
    }
}
