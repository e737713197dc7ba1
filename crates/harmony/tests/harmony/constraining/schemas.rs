//! Answers of each form: JSON of many schemas, expressions, choices, grammars.

use chorale_harmony::ResponseConstraint;
use regex::Regex;
use serde_json::{Value, json};

use super::model::{Rng, Style, generate};
use super::validator::problem;
use super::{STYLES, answer, response};

fn check(schema: &Value, style: Style, seed: u64) {
    let said = generate(&response(ResponseConstraint::JsonSchema(schema.clone())), style, seed);
    let text = answer(&said);
    if let Some(why) = super::json(&text).and_then(|value| problem(schema, schema, &value)) {
        panic!("{why}\nin {text}\nfor {schema}");
    }
}

fn schemas() -> Vec<Value> {
    vec![
        json!({"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city", "days"], "additionalProperties": false}),
        json!({"type": "object", "properties": {"a": {"type": "object", "properties": {"b": {"type": "object",
            "properties": {"c": {"type": "boolean"}}, "required": ["c"], "additionalProperties": false}},
            "required": ["b"], "additionalProperties": false}}, "required": ["a"], "additionalProperties": false}),
        json!({"type": "array", "items": {"type": "string", "enum": ["red", "green", "Grün", "赤"]},
            "minItems": 1, "maxItems": 4}),
        json!({"anyOf": [{"type": "integer", "minimum": -3, "maximum": 17}, {"type": "null"},
            {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}]}),
        json!({"$defs": {"node": {"type": "object", "properties": {"value": {"type": "integer"},
            "children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2}},
            "required": ["value"], "additionalProperties": false}}, "$ref": "#/$defs/node"}),
        json!({"type": "object", "properties": {"p": {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
            "n": {"type": "integer", "exclusiveMinimum": 10, "maximum": 99}}, "required": ["p", "n"],
            "additionalProperties": false}),
        json!({"type": "object", "properties": {"straße": {"type": "string", "minLength": 2, "maxLength": 5},
            "\"quoted\"": {"const": "a\\b\n\u{1F600}"}}, "required": ["straße", "\"quoted\""],
            "additionalProperties": false}),
        json!({"type": "object", "properties": {"id": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"}},
            "required": ["id"], "additionalProperties": {"type": "integer"}}),
        json!({"allOf": [{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
            {"properties": {"b": {"type": ["string", "null"]}}, "required": ["b"]}]}),
        json!({"type": "array", "prefixItems": [{"type": "integer"}, {"enum": [true, null, 2.5, "x"]}],
            "items": {"type": "null"}, "minItems": 2, "maxItems": 3}),
        json!({"oneOf": [{"type": "string", "maxLength": 3}, {"type": "boolean"}]}),
        json!({"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 1000}),
        json!({"title": "nullable", "type": ["object", "null"], "properties": {"x": {"default": 1, "type": "integer"}}}),
        json!({"$defs": {"cat": {"type": "object", "properties": {"kind": {"const": "cat"}, "lives": {"type": "integer"}},
            "required": ["kind"], "additionalProperties": false}, "dog": {"type": "object", "properties":
            {"kind": {"const": "dog"}, "name": {"type": "string"}}, "required": ["kind", "name"],
            "additionalProperties": false}}, "oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}]}),
        json!(true),
    ]
}

#[test]
fn an_answer_is_what_its_schema_demands() {
    for (index, schema) in schemas().iter().enumerate() {
        for seed in 0..6 {
            check(schema, Style::Random, seed * 100 + index as u64);
        }
        check(schema, Style::Highest, 1);
        check(schema, Style::Lowest, 2);
    }
}

const PATTERNS: [&str; 3] = ["^a+b?$", "^[0-9a-f]{4}$", "^(x|yz){1,3}$"];

/// A schema of a few levels, from what the validator knows.
fn any_schema(rng: &mut Rng, depth: usize) -> Value {
    let inner = |rng: &mut Rng| any_schema(rng, depth - 1);
    match rng.below(if depth == 0 { 6 } else { 10 }) {
        0 => json!({"type": "boolean"}),
        1 => {
            let low = rng.below(50) as i64 - 25;
            json!({"type": "integer", "minimum": low, "maximum": low + rng.below(200) as i64})
        }
        2 => json!({"type": "string", "minLength": rng.below(3), "maxLength": 3 + rng.below(9)}),
        3 => json!({"enum": ["a", 1, null, "ü\"", [true, {}], {"k": -1}]}),
        4 => json!({"type": "string", "pattern": PATTERNS[rng.below(PATTERNS.len())]}),
        5 => json!({"type": ["null", "number"], "minimum": 1.5, "maximum": 2.75}),
        6 => {
            json!({"type": "array", "items": inner(rng), "minItems": rng.below(2), "maxItems": 1 + rng.below(3)})
        }
        7 => json!({"anyOf": [inner(rng), inner(rng)]}),
        _ => {
            let names = ["a", "b c", "ß", "\"", "long_name_of_a_field"];
            let num = rng.below(names.len());
            let properties: serde_json::Map<String, Value> =
                names[..num].iter().map(|name| ((*name).to_owned(), inner(rng))).collect();
            let required: Vec<&str> = names[..num].iter().copied().filter(|_| rng.below(2) == 0).collect();
            let more = [json!(false), json!(true), json!({"type": "null"})][rng.below(3)].clone();
            json!({"type": "object", "properties": properties, "required": required, "additionalProperties": more})
        }
    }
}

#[test]
fn an_answer_is_what_any_small_schema_demands() {
    let mut rng = Rng(11);
    for seed in 0..120 {
        let schema = any_schema(&mut rng, 2);
        check(&schema, Style::Random, seed);
    }
}

#[test]
fn a_json_object_is_any_json_object() {
    for style in STYLES {
        for seed in 0..8 {
            let text = answer(&generate(&response(ResponseConstraint::JsonObject), style, seed));
            assert!(super::json(&text).is_none_or(|value| value.is_object()), "{text}");
        }
    }
}

#[test]
fn an_expression_matches_as_a_whole() {
    for expression in
        [r"[0-9]{3}-[0-9]{4}", r"(ja|nein|vielleicht)!?", r"\p{Lu}\p{Ll}{2,6}", r"a/b\\c\.d", "x*"]
    {
        let whole = Regex::new(&format!("^(?:{expression})$")).unwrap();
        for style in STYLES {
            for seed in 0..8 {
                let spec = response(ResponseConstraint::Regex(expression.to_owned()));
                let text = answer(&generate(&spec, style, seed));
                assert!(whole.is_match(&text), "{expression}: {text:?}");
            }
        }
    }
}

#[test]
fn a_choice_is_one_of_the_choices() {
    let choices = ["yes", "yes, sir", "no", "", "<|return|>", "日本"].map(str::to_owned).to_vec();
    let mut said = std::collections::BTreeSet::new();
    for style in STYLES {
        for seed in 0..40 {
            let text = answer(&generate(&response(ResponseConstraint::Choice(choices.clone())), style, seed));
            assert!(choices.contains(&text), "{text:?}");
            said.insert(text);
        }
    }
    assert_eq!(said.len(), choices.len());
}

#[test]
fn a_grammar_is_followed() {
    let grammar = "start: term (op term)*\nop: \"+\" | \"-\"\nterm: /[0-9]+/ | \"(\" start \")\"";
    let spec = response(ResponseConstraint::Lark(grammar.to_owned()));
    for seed in 0..8 {
        let text = answer(&generate(&spec, Style::Lowest, seed));
        assert!(text.chars().all(|c| "0123456789+-()".contains(c)) && !text.is_empty(), "{text}");
    }
}
