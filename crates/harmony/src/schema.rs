//! JSON schema to the TypeScript types that gpt-oss was trained to read. It
//! describes to a model; it validates nothing and accepts any JSON.
//!
//! The target is what openai-harmony 0.0.8 prints, flaws included, because that
//! is what the model has seen: nested objects say their description twice, a
//! description's second line loses its `//`, a union's `[]` binds to the last
//! member only, and `anyOf`, `const`, `$ref` and `null` are `any`.

use serde_json::Value;

/// How much deeper the properties of a nested object stand.
const OBJECT_STEP: &str = "    ";
/// How much deeper an object stands that is a member of a union.
const UNION_STEP: &str = "   ";

/// The type that `schema` describes. `indent` stands before each line after the
/// first.
pub(crate) fn typescript(schema: &Value, indent: &str) -> String {
    if let Some(variants) = one_of(schema) {
        return union(variants, None, indent);
    }
    match schema.get("type") {
        Some(Value::Array(names)) => {
            either(names.iter().filter_map(Value::as_str).map(scalar)).unwrap_or_else(any)
        }
        Some(Value::String(name)) => match name.as_str() {
            "object" => object(schema, indent),
            "array" => array(schema, indent),
            "string" => string(schema),
            "number" | "integer" | "boolean" => scalar(name).to_owned(),
            _ => any(),
        },
        _ => any(),
    }
}

fn any() -> String {
    "any".to_owned()
}

fn scalar(name: &str) -> &str {
    if name == "integer" { "number" } else { name }
}

fn string(schema: &Value) -> String {
    let choices = schema.get("enum").and_then(Value::as_array).into_iter().flatten();
    either(choices.filter_map(Value::as_str).map(|choice| format!("\"{choice}\"")))
        .unwrap_or_else(|| "string".to_owned())
}

fn array(schema: &Value, indent: &str) -> String {
    match schema.get("items") {
        Some(items) => format!("{}[]", typescript(items, indent)),
        None => "Array<any>".to_owned(),
    }
}

fn object(schema: &Value, indent: &str) -> String {
    let mut text = String::new();
    comment(&mut text, indent, text_of(schema, "description"));
    text.push_str("{\n");
    let required = schema.get("required").and_then(Value::as_array);
    for (name, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let is_required = required.is_some_and(|names| names.iter().any(|n| n.as_str() == Some(name)));
        let name = if is_required { format!("{name}:") } else { format!("{name}?:") };
        match one_of(property) {
            Some(variants) => union_property(&mut text, &name, property, variants, indent),
            None => plain_property(&mut text, &name, property, indent),
        }
    }
    text.push_str(indent);
    text.push('}');
    text
}

fn plain_property(text: &mut String, name: &str, property: &Value, indent: &str) {
    title(text, indent, property);
    comment(text, indent, text_of(property, "description"));
    examples(text, indent, property);
    let kind = or_null(typescript(property, &format!("{indent}{OBJECT_STEP}")), property);
    let default =
        default(property, is_enum(property)).map(|value| format!(" // default: {value}")).unwrap_or_default();
    text.push_str(&format!("{indent}{name} {kind},{default}\n"));
}

fn union_property(text: &mut String, name: &str, property: &Value, variants: &[Value], indent: &str) {
    let description = text_of(property, "description");
    let members = union(variants, Some(property), indent);
    let first_says_it = variants.first().and_then(|first| text_of(first, "description")) == description;
    title(text, indent, property);
    examples(text, indent, property);
    comment(text, indent, description.filter(|_| !first_says_it));
    comment(
        text,
        indent,
        default(property, is_enum(property)).map(|value| format!("default: {value}")).as_deref(),
    );
    text.push_str(&format!("{indent}{name}{members}\n{indent},\n"));
}

/// One line for each variant. If the union is a property's, the description
/// above it silences the first variant's and every one that equals it.
fn union(variants: &[Value], property: Option<&Value>, indent: &str) -> String {
    let said = property.and_then(|property| text_of(property, "description"));
    let mut text = String::new();
    for (index, variant) in variants.iter().enumerate() {
        let kind = or_null(typescript(variant, &format!("{indent}{UNION_STEP}")), variant);
        let is_silenced = |description: &str| said.is_some_and(|said| index == 0 || said == description);
        let description = text_of(variant, "description").filter(|description| !is_silenced(description));
        let is_bare = property.is_some() && is_enum(variant);
        let default = default(variant, is_bare).map(|value| format!("default: {value}"));
        let notes: Vec<&str> = description.into_iter().chain(default.as_deref()).collect();
        let notes = if notes.is_empty() { String::new() } else { format!(" // {}", notes.join(" ")) };
        text.push_str(&format!("\n{indent} | {kind}{notes}"));
    }
    text
}

fn one_of(schema: &Value) -> Option<&[Value]> {
    schema.get("oneOf")?.as_array().map(Vec::as_slice)
}

fn text_of<'s>(schema: &'s Value, key: &str) -> Option<&'s str> {
    schema.get(key)?.as_str()
}

/// `a | b`, or `None` of nothing.
fn either(members: impl Iterator<Item = impl AsRef<str>>) -> Option<String> {
    members.fold(None, |joined: Option<String>, member| match joined {
        Some(joined) => Some(format!("{joined} | {}", member.as_ref())),
        None => Some(member.as_ref().to_owned()),
    })
}

fn or_null(kind: String, schema: &Value) -> String {
    let is_nullable = schema.get("nullable").and_then(Value::as_bool).unwrap_or(false);
    if is_nullable && !kind.contains("null") { format!("{kind} | null") } else { kind }
}

/// A default as JSON, but a string in it neither escaped nor, if bare, quoted.
fn default(schema: &Value, is_bare: bool) -> Option<String> {
    let default = schema.get("default")?;
    Some(match default.as_str() {
        Some(text) if is_bare => text.to_owned(),
        Some(text) => format!("\"{text}\""),
        None => default.to_string(),
    })
}

fn is_enum(schema: &Value) -> bool {
    schema.get("enum").and_then(Value::as_array).is_some_and(|choices| !choices.is_empty())
}

fn comment(text: &mut String, indent: &str, comment: Option<&str>) {
    if let Some(comment) = comment {
        text.push_str(&format!("{indent}// {comment}\n"));
    }
}

fn title(text: &mut String, indent: &str, schema: &Value) {
    if let Some(title) = text_of(schema, "title") {
        text.push_str(&format!("{indent}// {title}\n{indent}//\n"));
    }
}

fn examples(text: &mut String, indent: &str, schema: &Value) {
    let Some(examples) = schema.get("examples").and_then(Value::as_array) else { return };
    if !examples.is_empty() {
        text.push_str(&format!("{indent}// Examples:\n"));
    }
    for example in examples.iter().filter_map(Value::as_str) {
        text.push_str(&format!("{indent}// - \"{example}\"\n"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::typescript;

    #[test]
    fn scalars_and_lists_of_types() {
        assert_eq!(typescript(&json!({"type": "integer"}), ""), "number");
        assert_eq!(typescript(&json!({"type": ["integer", "null"]}), ""), "number | null");
        assert_eq!(typescript(&json!({"type": []}), ""), "any");
        assert_eq!(typescript(&json!({"type": "string", "enum": ["a", 1, "b"]}), ""), r#""a" | "b""#);
        assert_eq!(typescript(&json!({"type": "string", "enum": [1]}), ""), "string");
    }

    #[test]
    fn what_is_not_understood_is_any() {
        for schema in
            [json!({}), json!(true), json!([]), json!({"anyOf": [{"type": "string"}]}), json!({"type": 5})]
        {
            assert_eq!(typescript(&schema, ""), "any", "{schema}");
        }
    }

    #[test]
    fn a_union_repeats_no_description_that_stands_above_it() {
        let schema = json!({"type": "object", "properties": {"a": {"description": "above", "oneOf": [
            {"type": "string", "description": "silenced as the first"},
            {"type": "number", "description": "kept"},
            {"type": "boolean", "description": "above"},
        ]}}});
        let expected = "{\n// above\na?:\n | string\n | number // kept\n | boolean\n,\n}";
        assert_eq!(typescript(&schema, ""), expected);
    }

    #[test]
    fn a_nested_object_says_its_description_twice() {
        let schema = json!({"type": "object", "required": ["a"], "properties": {"a": {
            "type": "object", "description": "D", "properties": {"b": {"type": "string", "default": "x"}},
        }}});
        let expected = "{\n// D\na:     // D\n{\n    b?: string, // default: \"x\"\n    },\n}";
        assert_eq!(typescript(&schema, ""), expected);
    }

    #[test]
    fn an_enums_default_is_bare_in_a_property_only() {
        let union = json!({"oneOf": [{"type": "string", "enum": ["a"], "default": "a"}]});
        assert_eq!(typescript(&union, ""), "\n | \"a\" // default: \"a\"");
        let schema = json!({"type": "object", "properties": {"p": union}});
        assert_eq!(typescript(&schema, ""), "{\np?:\n | \"a\" // default: a\n,\n}");
    }

    #[test]
    fn a_deep_schema_is_only_deep() {
        let mut schema = json!({"type": "string"});
        for _ in 0..100 {
            schema = json!({"type": "array", "items": schema});
        }
        assert!(typescript(&schema, "").ends_with("[][]"));
    }
}
