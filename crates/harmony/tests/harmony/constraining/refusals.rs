//! Demands that are refused before anything is generated, by the name of their
//! field; and hostile ones that must cost little.

use std::time::{Duration, Instant};

use chorale_harmony::{
    Constraint, ConstraintSpec, ResponseConstraint, SpecError, ToolChoice, ToolConstraint,
};
use serde_json::{Value, json};

use super::{response, tool};

fn refusal(spec: &ConstraintSpec) -> SpecError {
    match Constraint::new(spec) {
        Ok(_) => panic!("{spec:?} is served"),
        Err(error) => error,
    }
}

fn schema(schema: Value) -> ConstraintSpec {
    response(ResponseConstraint::JsonSchema(schema))
}

#[test]
fn what_demands_nothing_costs_nothing() {
    for tool_choice in [ToolChoice::Auto, ToolChoice::None] {
        let spec = ConstraintSpec { tool_choice, parallel_tool_calls: true, ..ConstraintSpec::default() };
        assert!(Constraint::new(&spec).unwrap().is_none());
    }
}

#[test]
fn bad_demands_are_refused_by_name() {
    let mut deep = json!({"type": "string"});
    for _ in 0..101 {
        deep = json!({"type": "array", "items": deep});
    }
    let union: Vec<Value> = (0..60).map(|i| json!({"properties": {"a": {"const": i}}})).collect();
    let wide = json!({"allOf": [{"anyOf": union}, {"anyOf": union}, {"anyOf": union}]});
    let many: serde_json::Map<String, Value> = (0..1001).map(|i| (i.to_string(), json!({}))).collect();
    let with = |tools: Vec<ToolConstraint>| ConstraintSpec { tools, ..ConstraintSpec::default() };
    let any = || json!({"type": "object"});
    let named = |name: &str| ConstraintSpec {
        tool_choice: ToolChoice::Named(name.to_owned()),
        ..with(vec![tool("f", any(), false)])
    };
    let cases = [
        (schema(json!({"type": "text"})), "response_format", "Invalid type"),
        (schema(json!({"not": {"type": "string"}})), "response_format", "not"),
        (schema(json!({"type": "array", "uniqueItems": true})), "response_format", "uniqueItems"),
        (schema(json!({"if": {}, "then": {}})), "response_format", "Unimplemented"),
        (schema(json!({"$ref": "https://example.com/schema"})), "response_format", "$ref"),
        (schema(json!({"$ref": "#/$defs/none"})), "response_format", "not found"),
        (schema(json!({"$ref": "#"})), "response_format", "no token"),
        (schema(json!({"type": "string", "pattern": "("})), "response_format", ""),
        (schema(json!({"type": "string", "format": "no-such"})), "response_format", "format"),
        (schema(json!({"type": "string", "enum": [1]})), "response_format", "nsatisfiable"),
        (schema(json!({"type": "integer", "minimum": 3, "maximum": 2})), "response_format", "nsatisfiable"),
        (schema(json!({"oneOf": [{"type": "integer"}, {"type": "number"}]})), "response_format", "oneOf"),
        (schema(json!({"type": 5})), "response_format", "type"),
        (schema(json!({"properties": []})), "response_format", "properties"),
        (schema(json!("object")), "response_format", "schema"),
        (schema(json!(false)), "response_format", "no value"),
        (schema(json!({"x-guidance": {"lenient": true}, "not": {}})), "response_format", "not"),
        (schema(deep), "response_format", "levels"),
        (schema(wide), "response_format", "multiplied out"),
        (schema(json!({"type": "array", "minItems": 1_000_000_000})), "response_format", "minItems"),
        (schema(json!({"type": "string", "maxLength": 1e18})), "response_format", "maxLength"),
        (schema(json!({"description": "x".repeat(300_000)})), "response_format", "bytes"),
        (schema(json!({"properties": many})), "response_format", "properties"),
        (schema(json!({"type": "integer", "multipleOf": 999_983})), "response_format", "multipleOf"),
        (
            schema(json!({"allOf": [{"type": "integer", "multipleOf": 9_967}, {"multipleOf": 9_973}]})),
            "response_format",
            "multipleOf",
        ),
        (response(ResponseConstraint::Regex("(".into())), "regex", ""),
        (response(ResponseConstraint::Regex("(?=a)b".into())), "regex", ""),
        (response(ResponseConstraint::Regex(r"(a)\1".into())), "regex", ""),
        (response(ResponseConstraint::Regex(r"[^\s\S]".into())), "regex", ""),
        (response(ResponseConstraint::Regex("a".repeat(20_000))), "regex", "bytes"),
        (response(ResponseConstraint::Choice(Vec::new())), "choice", "nothing"),
        (response(ResponseConstraint::Choice(vec!["a".into(); 2000])), "choice", "choices"),
        (response(ResponseConstraint::Choice(vec!["a".repeat(70_000)])), "choice", "bytes"),
        (response(ResponseConstraint::Lark("start: nothing".into())), "grammar", ""),
        (response(ResponseConstraint::Lark("start: <|return|>".into())), "grammar", "gave up"),
        (response(ResponseConstraint::Lark("start: \"a\" <[200002]>".into())), "grammar", "<["),
        (response(ResponseConstraint::Lark(String::new())), "grammar", ""),
        (with(vec![tool("f", json!({"type": "array"}), true)]), "tools[0].function.parameters", "array"),
        (
            with(vec![tool("f", any(), true), tool("g", json!({"properties": {"a": {"not": {}}}}), true)]),
            "tools[1].function.parameters",
            "not",
        ),
        (with(vec![tool("f", json!([]), true)]), "tools[0].function.parameters", "object"),
        (with(vec![tool("", any(), false)]), "tools[0].function.name", "empty"),
        (with(vec![tool("a b", any(), false)]), "tools[0].function.name", "letters"),
        (with(vec![tool("a<|message|>", any(), false)]), "tools[0].function.name", "letters"),
        (with(vec![tool(&"a".repeat(129), any(), false)]), "tools[0].function.name", "longer"),
        (with(vec![tool("f", any(), false), tool("f", any(), false)]), "tools[1].function.name", "another"),
        (with((0..129).map(|i| tool(&format!("f{i}"), any(), false)).collect()), "tools", "129 tools"),
        (named("g"), "tool_choice", "\"g\""),
        (ConstraintSpec { tool_choice: ToolChoice::Required, ..with(Vec::new()) }, "tool_choice", "no tools"),
    ];
    for (spec, field, what) in cases {
        let error = refusal(&spec);
        assert_eq!(error.field(), field, "{error}");
        let text = error.to_string();
        assert!(text.contains(what) && !text.contains('\n') && text.len() < 600, "{text} has no {what}");
    }
}

#[test]
fn what_is_not_enforced_is_not_read() {
    let strange = json!({"type": "text", "not": {}, "minItems": -1});
    let spec = ConstraintSpec { tools: vec![tool("f", strange, false)], ..ConstraintSpec::default() };
    assert!(Constraint::new(&spec).unwrap().is_some());
}

/// Each is served or refused; what matters is that neither takes long, nor
/// overflows a stack.
#[test]
fn hostile_demands_cost_little() {
    let chain: serde_json::Map<String, Value> = (0..2000)
        .map(|i| {
            (format!("d{i}"), json!({"type": "array", "items": {"$ref": format!("#/$defs/d{}", i + 1)}}))
        })
        .chain([("d2000".to_owned(), json!({"type": "null"}))])
        .collect();
    let circle =
        json!({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"});
    let many: serde_json::Map<String, Value> =
        (0..1000).map(|i| (format!("property_{i}"), json!({"type": "string"}))).collect();
    let optional: serde_json::Map<String, Value> = (0..300)
        .map(|i| (format!("p{i}"), json!({"anyOf": [{"type": "number"}, {"type": "null"}]})))
        .collect();
    let same: Vec<Value> = (0..500).map(|_| json!({"type": "object", "properties": {"a": {}}})).collect();
    let words: Vec<String> = (0..5000).map(|i| format!("word {i}")).collect();
    let specs = [
        schema(json!({"$defs": chain, "$ref": "#/$defs/d0"})),
        schema(circle),
        schema(json!({"type": "object", "properties": many})),
        schema(json!({"type": "object", "properties": many, "additionalProperties": false})),
        schema(json!({"type": "object", "properties": optional})),
        schema(json!({"anyOf": same})),
        schema(json!({"enum": words})),
        schema(json!({"type": "array", "minItems": 100_000, "items": {"type": "integer"}})),
        schema(json!({"type": "string", "minLength": 90_000, "maxLength": 100_000})),
        schema(json!({"type": "string", "pattern": "^(([a-z]{1,100}){1,100}){1,100}$"})),
        schema(json!({"type": "number", "multipleOf": 1e-9, "maximum": 1e300})),
        schema(json!({"type": "integer", "multipleOf": 9_973})),
        schema(json!({"type": "number", "multipleOf": 0.01})),
        response(ResponseConstraint::Regex("((((a{100}){100}){100}){100}){100}".into())),
        response(ResponseConstraint::Regex("(a|aa)+$(b|c|[^d]{1000})*.*x{3000}".into())),
        response(ResponseConstraint::Regex("(.*a){12}".into())),
        response(ResponseConstraint::Regex(r"(\w{1,500} ?){500}".into())),
        response(ResponseConstraint::Regex("(".repeat(5000) + "a" + &")".repeat(5000))),
        response(ResponseConstraint::Lark("start: \"a\" start | start \"b\" | start start | \"\"".into())),
        response(ResponseConstraint::Lark(
            "start: \"(\"".to_owned() + &"(".repeat(20_000) + &")".repeat(20_000),
        )),
    ];
    Constraint::prepare().unwrap();
    for spec in specs {
        let begun = Instant::now();
        let constraint = Constraint::new(&spec);
        let compiled = begun.elapsed();
        let outcome = match constraint {
            Ok(constraint) => {
                let _ = super::model::probe(constraint.unwrap(), 40);
                "served".to_owned()
            }
            Err(error) => error.to_string(),
        };
        println!("{compiled:?} + {:?}: {outcome:.150}", begun.elapsed() - compiled);
        assert!(begun.elapsed() < Duration::from_secs(10), "{outcome}");
    }
}
