//! `oneOf` where it means `anyOf`: no value satisfies two of its members. It
//! proves what it can from types and tags, and leaves the rest as it is.
//!
//! llguidance does the same within a schema, but does not look behind `$ref`,
//! where generators put the members of a tagged union.

use serde_json::{Map, Value};

/// What holds values, not schemas.
const VALUES: [&str; 4] = ["const", "default", "enum", "examples"];

/// How many references in a row are followed.
const REFERENCES_MAX: usize = 8;

/// The schema with each `oneOf` of exclusive members turned into an `anyOf`.
pub(super) fn exclusive_as_any(schema: Value) -> Value {
    let root = schema.clone();
    rewritten(schema, &root)
}

fn rewritten(schema: Value, root: &Value) -> Value {
    match schema {
        Value::Array(items) => items.into_iter().map(|item| rewritten(item, root)).collect(),
        Value::Object(fields) => {
            let is_exclusive = !fields.contains_key("anyOf") && is_exclusive(&fields, root);
            let field = |(key, value): (String, Value)| match key.as_str() {
                "oneOf" if is_exclusive => ("anyOf".to_owned(), rewritten(value, root)),
                name if VALUES.contains(&name) => (key, value),
                _ => (key, rewritten(value, root)),
            };
            fields.into_iter().map(field).collect()
        }
        value @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_)) => value,
    }
}

fn is_exclusive(fields: &Map<String, Value>, root: &Value) -> bool {
    let Some(members) = fields.get("oneOf").and_then(Value::as_array) else { return false };
    let members: Option<Vec<_>> = members.iter().map(|member| resolved(member, root)).collect();
    let Some(members) = members else { return false };
    let pairs =
        members.iter().enumerate().flat_map(|(index, a)| members[..index].iter().map(move |b| (a, b)));
    pairs.into_iter().all(|(a, b)| have_other_types(a, b) || have_other_tags(a, b, root))
}

/// The schema that a member, perhaps by reference, is.
fn resolved<'s>(schema: &'s Value, root: &'s Value) -> Option<&'s Map<String, Value>> {
    let mut fields = schema.as_object()?;
    for _ in 0..REFERENCES_MAX {
        let Some(reference) = fields.get("$ref") else { return Some(fields) };
        fields = root.pointer(reference.as_str()?.strip_prefix('#')?)?.as_object()?;
    }
    None
}

fn have_other_types(a: &Map<String, Value>, b: &Map<String, Value>) -> bool {
    let types = |fields: &Map<String, Value>| fields.get("type").and_then(Value::as_str).map(str::to_owned);
    let is_number = |name: &str| name == "integer" || name == "number";
    match (types(a), types(b)) {
        (Some(a), Some(b)) => a != b && !(is_number(&a) && is_number(&b)),
        _ => false,
    }
}

/// Whether both demand a property whose values in one are none of the other.
fn have_other_tags(a: &Map<String, Value>, b: &Map<String, Value>, root: &Value) -> bool {
    let Some(required) = a.get("required").and_then(Value::as_array) else { return false };
    required.iter().filter_map(Value::as_str).any(|name| match (tags(a, name, root), tags(b, name, root)) {
        (Some(of_a), Some(of_b)) => of_a.iter().all(|tag| !of_b.contains(tag)),
        _ => false,
    })
}

/// The texts that a demanded property may have, if they are listed.
fn tags<'s>(fields: &'s Map<String, Value>, name: &str, root: &'s Value) -> Option<Vec<&'s str>> {
    let is_object = fields.get("type").and_then(Value::as_str) == Some("object");
    let required = fields.get("required")?.as_array()?;
    if !is_object || !required.iter().any(|required| required.as_str() == Some(name)) {
        return None;
    }
    let property = resolved(fields.get("properties")?.get(name)?, root)?;
    match (property.get("const"), property.get("enum")) {
        (Some(tag), _) => Some(vec![tag.as_str()?]),
        (None, Some(tags)) => tags.as_array()?.iter().map(Value::as_str).collect(),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::exclusive_as_any;

    fn is_rewritten(members: Value) -> bool {
        let defs =
            json!({"r": {"type": "object", "required": ["t"], "properties": {"t": {"enum": ["x", "y"]}}}});
        let schema = exclusive_as_any(json!({"$defs": defs, "properties": {"p": {"oneOf": members}}}));
        schema["properties"]["p"].get("anyOf").is_some()
    }

    fn tagged(tag: &str) -> Value {
        json!({"type": "object", "required": ["t"], "properties": {"t": {"const": tag}}})
    }

    #[test]
    fn exclusive_members_are_found_and_others_left() {
        assert!(is_rewritten(json!([{"type": "string"}, {"type": "null"}])));
        assert!(is_rewritten(json!([{"$ref": "#/$defs/r"}, tagged("z"), {"type": "array"}])));
        assert!(!is_rewritten(json!([{"$ref": "#/$defs/r"}, tagged("x")])));
        assert!(!is_rewritten(json!([{"type": "integer"}, {"type": "number"}])));
        assert!(!is_rewritten(json!([{"type": "string"}, {}])));
        assert!(!is_rewritten(json!([{"type": "string"}, {"$ref": "#/nowhere"}])));
        let optional = json!({"type": "object", "properties": {"t": {"const": "z"}}});
        assert!(!is_rewritten(json!([tagged("x"), optional])));
    }

    #[test]
    fn values_and_circles_are_left() {
        for schema in [
            json!({"const": {"oneOf": [{"type": "string"}, {"type": "null"}]}}),
            json!({"oneOf": [{"$ref": "#"}, {"type": "null"}]}),
        ] {
            assert_eq!(exclusive_as_any(schema.clone()), schema);
        }
    }
}
