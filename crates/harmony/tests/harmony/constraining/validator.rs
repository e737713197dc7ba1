//! JSON schema as far as these tests use it: an oracle that shares no code with
//! what it judges. A keyword it does not know is a mistake of the test.

use regex::Regex;
use serde_json::Value;

/// Why `value` is not what `schema`, a part of `root`, demands.
pub(crate) fn problem(root: &Value, schema: &Value, value: &Value) -> Option<String> {
    let fields = match schema {
        Value::Bool(true) => return None,
        Value::Bool(false) => return Some(format!("{value} is where nothing may be")),
        schema => schema.as_object().unwrap(),
    };
    fields.iter().find_map(|(keyword, demand)| {
        let why = keyword_problem(root, schema, keyword, demand, value)?;
        Some(if why.is_empty() { format!("{value} fails {keyword}: {demand}") } else { why })
    })
}

fn keyword_problem(
    root: &Value,
    schema: &Value,
    keyword: &str,
    demand: &Value,
    value: &Value,
) -> Option<String> {
    let unless = |is_good: bool| (!is_good).then(String::new);
    let members = || demand.as_array().unwrap().iter();
    let num_valid = || members().filter(|member| problem(root, member, value).is_none()).count();
    let at_least = |count: usize| count as u64 >= demand.as_u64().unwrap();
    match keyword {
        "title" | "description" | "$defs" | "default" => None,
        "type" => match demand {
            Value::Array(names) => unless(names.iter().any(|name| is_of_type(name, value))),
            name => unless(is_of_type(name, value)),
        },
        "enum" => unless(members().any(|member| is_equal(member, value))),
        "const" => unless(is_equal(demand, value)),
        "anyOf" => unless(num_valid() > 0),
        "oneOf" => unless(num_valid() == 1),
        "allOf" => unless(num_valid() == members().count()),
        "$ref" => {
            let pointer = demand.as_str().unwrap().trim_start_matches('#');
            problem(root, root.pointer(pointer).unwrap(), value)
        }
        "minimum" => value.as_f64().and_then(|number| unless(number >= demand.as_f64().unwrap())),
        "maximum" => value.as_f64().and_then(|number| unless(number <= demand.as_f64().unwrap())),
        "exclusiveMinimum" => value.as_f64().and_then(|number| unless(number > demand.as_f64().unwrap())),
        "exclusiveMaximum" => value.as_f64().and_then(|number| unless(number < demand.as_f64().unwrap())),
        "multipleOf" => value.as_i64().and_then(|number| unless(number % demand.as_i64().unwrap() == 0)),
        "minLength" => value.as_str().and_then(|text| unless(at_least(text.chars().count()))),
        "maxLength" => {
            value.as_str().and_then(|text| unless(text.chars().count() as u64 <= demand.as_u64().unwrap()))
        }
        "pattern" => value
            .as_str()
            .and_then(|text| unless(Regex::new(demand.as_str().unwrap()).unwrap().is_match(text))),
        "minItems" => value.as_array().and_then(|items| unless(at_least(items.len()))),
        "maxItems" => {
            value.as_array().and_then(|items| unless(items.len() as u64 <= demand.as_u64().unwrap()))
        }
        "items" => {
            let items = value.as_array()?.iter().skip(num_listed(schema, "prefixItems"));
            items.into_iter().find_map(|item| problem(root, demand, item))
        }
        "prefixItems" => {
            value.as_array()?.iter().zip(members()).find_map(|(item, schema)| problem(root, schema, item))
        }
        "required" => value
            .as_object()
            .and_then(|fields| unless(members().all(|name| fields.contains_key(name.as_str().unwrap())))),
        "properties" => value
            .as_object()?
            .iter()
            .find_map(|(name, field)| demand.get(name).and_then(|schema| problem(root, schema, field))),
        "additionalProperties" => value.as_object()?.iter().find_map(|(name, field)| {
            let is_listed = schema.get("properties").is_some_and(|listed| listed.get(name).is_some());
            if is_listed { None } else { problem(root, demand, field) }
        }),
        other => panic!("the validator does not know {other}"),
    }
}

fn num_listed(schema: &Value, keyword: &str) -> usize {
    schema.get(keyword).and_then(Value::as_array).map_or(0, Vec::len)
}

fn is_of_type(name: &Value, value: &Value) -> bool {
    match name.as_str().unwrap() {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "number" => value.is_number(),
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        other => panic!("{other} is no type"),
    }
}

fn is_equal(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}
