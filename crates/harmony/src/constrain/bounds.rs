//! How much of a schema is served. It measures before anything is compiled, so
//! that no request can buy much work or memory with few bytes.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::spec::SpecError;

/// The length of one schema, written as JSON.
const SCHEMA_BYTES_MAX: usize = 128 * 1024;
/// How deep a schema's values stand in each other.
const SCHEMA_DEPTH_MAX: usize = 100;
/// How large a schema may become when `allOf`, `anyOf` and their like are
/// multiplied out.
const EXPANDED_BYTES_MAX: usize = 2 * 1024 * 1024;
/// How many `properties` one schema lists: the work grows with their square.
const PROPERTIES_MAX: usize = 1_000;
/// The digits of all `multipleOf`s as numbers, added up, or multiplied where
/// keywords are merged: a matcher has a state for each remainder.
const DIVISORS_MAX: u64 = 20_000;
/// The largest `minItems`, `maxLength` and their like.
const COUNT_MAX: u64 = 100_000;

/// Keywords that say nothing about values.
const ANNOTATIONS: [&str; 13] = [
    "$anchor",
    "$comment",
    "$defs",
    "$id",
    "$schema",
    "default",
    "definitions",
    "description",
    "examples",
    "id",
    "readOnly",
    "title",
    "writeOnly",
];
const COUNTS: [&str; 6] =
    ["minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"];

/// Refuses a schema that is too large, too deep or would grow too much.
pub(super) fn check_schema(field: &str, schema: &Value) -> Result<(), SpecError> {
    let too_large = |what, found, limit| SpecError::TooLarge { field: field.to_owned(), what, found, limit };
    let depth = depth(schema);
    if depth > SCHEMA_DEPTH_MAX {
        return Err(too_large("levels", depth, SCHEMA_DEPTH_MAX));
    }
    let len = schema.to_string().len();
    if len > SCHEMA_BYTES_MAX {
        return Err(too_large("bytes", len, SCHEMA_BYTES_MAX));
    }
    if let Some((keyword, found)) = largest_count(schema).filter(|(_, count)| *count > COUNT_MAX) {
        let reason = format!("{keyword} is {found}, and at most {COUNT_MAX} is served");
        return Err(SpecError::Unsupported { field: field.to_owned(), reason });
    }
    let most_properties = most_properties(schema);
    if most_properties > PROPERTIES_MAX {
        return Err(too_large("properties in one object", most_properties, PROPERTIES_MAX));
    }
    let mut expansion = Expansion { root: schema, targets: HashMap::new(), largest: 0 };
    expansion.of(schema);
    let divisors = divisors(schema).into_iter();
    let divisor = match expansion.largest {
        0 => divisors.fold(0, u64::saturating_add),
        _ => divisors.fold(1, u64::saturating_mul),
    };
    if divisor > DIVISORS_MAX {
        let found = usize::try_from(divisor).unwrap_or(usize::MAX);
        return Err(too_large("remainders of multipleOf", found, DIVISORS_MAX as usize));
    }
    match usize::try_from(expansion.largest).unwrap_or(usize::MAX) {
        found if found > EXPANDED_BYTES_MAX => {
            Err(too_large("bytes, with its alternatives multiplied out,", found, EXPANDED_BYTES_MAX))
        }
        _ => Ok(()),
    }
}

/// How deep values stand in each other. It does not recurse: nothing is known
/// about the value yet.
fn depth(value: &Value) -> usize {
    let mut depth = 0;
    let mut waiting = vec![(value, 1)];
    while let Some((value, level)) = waiting.pop() {
        depth = depth.max(level);
        match value {
            Value::Array(items) => waiting.extend(items.iter().map(|item| (item, level + 1))),
            Value::Object(fields) => waiting.extend(fields.values().map(|field| (field, level + 1))),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    depth
}

/// Every field of every object in a value that is no deeper than is served.
fn fields(value: &Value) -> Vec<(&str, &Value)> {
    let mut found = Vec::new();
    let mut waiting = vec![value];
    while let Some(value) = waiting.pop() {
        match value {
            Value::Array(items) => waiting.extend(items),
            Value::Object(fields) => {
                found.extend(fields.iter().map(|(key, field)| (key.as_str(), field)));
                waiting.extend(fields.values());
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    found
}

/// The largest number under a keyword that counts, and the keyword.
fn largest_count(schema: &Value) -> Option<(&str, u64)> {
    let counts = fields(schema).into_iter().filter(|(key, _)| COUNTS.contains(key));
    counts.filter_map(|(key, value)| Some((key, value.as_f64()? as u64))).max_by_key(|(_, count)| *count)
}

fn most_properties(schema: &Value) -> usize {
    let lists = fields(schema).into_iter().filter(|(key, _)| *key == "properties");
    lists.filter_map(|(_, list)| Some(list.as_object()?.len())).max().unwrap_or(0)
}

/// The digits of each `multipleOf` as a number: 125 of 12.5.
fn divisors(schema: &Value) -> Vec<u64> {
    let divisors = fields(schema).into_iter().filter(|(key, _)| *key == "multipleOf");
    let digits = divisors.filter_map(|(_, value)| Some(format!("{}", value.as_f64()?)));
    digits.map(|digits| digits.replace(['.', '-'], "").parse().unwrap_or(u64::MAX)).collect()
}

/// What becomes of a schema when the keywords that stand beside each other are
/// merged: of two unions, each member of one with each of the other.
struct Expansion<'s> {
    root: &'s Value,
    /// What `$ref`s are known to lead to; nothing while they are being measured.
    targets: HashMap<&'s str, Size>,
    /// The largest schema that a merge of schemas yields; 0 if there is none.
    largest: u64,
}

#[derive(Clone, Copy)]
struct Size {
    /// How many members a union of all alternatives has.
    alternatives: u64,
    bytes: u64,
}

impl Size {
    const NOTHING: Self = Self { alternatives: 1, bytes: 0 };

    fn plain(bytes: usize) -> Self {
        Self { alternatives: 1, bytes: bytes as u64 }
    }

    /// Of a union of these.
    fn union(members: impl Iterator<Item = Self>) -> Self {
        let both = |a: Self, b: Self| Self {
            alternatives: a.alternatives.saturating_add(b.alternatives),
            bytes: a.bytes.saturating_add(b.bytes),
        };
        members.fold(Self { alternatives: 0, bytes: 0 }, both)
    }

    /// Of one schema inside which the other stands.
    fn around(self, inner: Self) -> Self {
        Self {
            alternatives: self.alternatives.saturating_add(inner.alternatives.saturating_sub(1)),
            bytes: self.bytes.saturating_add(inner.bytes),
        }
    }

    /// Of what satisfies both: each alternative of one meets each of the other.
    fn merged(self, other: Self) -> Self {
        Self {
            alternatives: self.alternatives.saturating_mul(other.alternatives),
            bytes: (self.bytes.saturating_mul(other.alternatives))
                .saturating_add(other.bytes.saturating_mul(self.alternatives)),
        }
    }
}

impl<'s> Expansion<'s> {
    fn of(&mut self, schema: &'s Value) -> Size {
        let Some(fields) = schema.as_object() else { return Size::plain(1) };
        let parts = self.parts(fields);
        let has_schemas = ["allOf", "anyOf", "oneOf", "$ref"].iter().any(|key| fields.contains_key(*key));
        let is_merge = has_schemas && parts.len() > 1;
        let size = parts.into_iter().reduce(Size::merged).unwrap_or(Size::NOTHING);
        if is_merge {
            self.largest = self.largest.max(size.bytes);
        }
        size
    }

    /// What stands beside each other in a schema and is merged.
    fn parts(&mut self, fields: &'s Map<String, Value>) -> Vec<Size> {
        let mut parts = Vec::new();
        let mut own = None;
        for (key, value) in fields.iter().filter(|(key, _)| !ANNOTATIONS.contains(&key.as_str())) {
            let items = || value.as_array().into_iter().flatten();
            match key.as_str() {
                "anyOf" | "oneOf" => parts.push(Size::union(items().map(|member| self.of(member)))),
                "enum" => parts.push(Size::union(items().map(|member| Size::plain(written_len(member))))),
                "allOf" => parts.extend(items().map(|member| self.of(member))),
                "$ref" => parts.push(self.target(value)),
                _ => {
                    let inner = self.inside(key, value);
                    own = Some(own.unwrap_or(Size::NOTHING).around(inner));
                }
            }
        }
        parts.extend(own);
        parts
    }

    /// What a keyword holds that is not merged with its neighbours.
    fn inside(&mut self, key: &'s str, value: &'s Value) -> Size {
        let name = Size::plain(key.len());
        match (key, value) {
            ("properties" | "patternProperties", Value::Object(fields)) => {
                fields.iter().fold(name, |size, (name, schema)| {
                    size.around(Size::plain(name.len())).around(self.of(schema))
                })
            }
            ("prefixItems" | "items", Value::Array(schemas)) => {
                schemas.iter().fold(name, |size, schema| size.around(self.of(schema)))
            }
            ("items" | "additionalItems" | "additionalProperties", schema) => name.around(self.of(schema)),
            ("type", Value::Array(types)) => {
                Size { alternatives: types.len().max(1) as u64, bytes: types.len() as u64 }
            }
            _ => name.around(Size::plain(written_len(value))),
        }
    }

    fn target(&mut self, reference: &'s Value) -> Size {
        let Some(reference) = reference.as_str() else { return Size::NOTHING };
        if let Some(size) = self.targets.get(reference) {
            return *size;
        }
        // A circle is a reference to itself, and that is not expanded.
        self.targets.insert(reference, Size::plain(reference.len()));
        let target = reference.strip_prefix('#').and_then(|pointer| self.root.pointer(pointer));
        let size = target.map_or(Size::NOTHING, |target| self.of(target));
        self.targets.insert(reference, size);
        size
    }
}

fn written_len(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        value => value.to_string().len(),
    }
}
