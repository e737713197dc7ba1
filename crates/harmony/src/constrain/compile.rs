//! From what a client wrote to grammars, with every check that comes before.
//! Nothing here outlives the call.

use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::bounded::until;
use super::bounds::check_schema;
use super::grammar::Grammar;
use super::literals::{Cursor, Literal};
use super::spec::{ConstraintSpec, ResponseConstraint, SpecError, ToolConstraint};
use super::vocabulary::parser_factory;

/// How long the demands of one request may take together. What `bounds` lets pass
/// takes a fraction of it, all but what was made to take long.
const COMPILE_TIME_MAX: Duration = Duration::from_secs(5);
/// The length of an expression.
const REGEX_BYTES_MAX: usize = 16 * 1024;
/// The length of a grammar.
const LARK_BYTES_MAX: usize = 64 * 1024;
/// How many texts may be chosen from.
const CHOICES_MAX: usize = 1024;
/// The length of all of them together.
const CHOICE_BYTES_MAX: usize = 64 * 1024;

/// What an answer's body must be.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    Free,
    Literals(Cursor<()>),
    Grammar(Grammar),
}

/// Everything that a turn may arm.
#[derive(Clone, Debug)]
pub(super) struct Bodies {
    pub(super) answer: Answer,
    /// The arguments of each tool; `None` where it cannot be called.
    pub(super) arguments: Vec<Option<Grammar>>,
}

/// Compiles all of a request's demands.
pub(super) fn compile(spec: &ConstraintSpec) -> Result<Bodies, SpecError> {
    let deadline = Instant::now() + COMPILE_TIME_MAX;
    let answer = answer(&spec.response, deadline)?;
    let callable = spec.tools.iter().enumerate().map(|(index, tool)| {
        let is_callable = spec.tool_choice.allows(&tool.name);
        is_callable.then(|| arguments(index, tool, deadline)).transpose()
    });
    Ok(Bodies { answer, arguments: callable.collect::<Result<_, _>>()? })
}

/// Builds what all requests share.
pub(super) fn prepare() -> Result<(), String> {
    parser_factory()?;
    any_object().map(drop)
}

fn answer(response: &ResponseConstraint, deadline: Instant) -> Result<Answer, SpecError> {
    let grammar = match response {
        ResponseConstraint::None => return Ok(Answer::Free),
        ResponseConstraint::Choice(choices) => return choice(choices),
        ResponseConstraint::JsonObject => any_object().map_err(unsupported("response_format")),
        ResponseConstraint::JsonSchema(schema) => json("response_format", schema.clone(), deadline),
        ResponseConstraint::Regex(expression) => {
            text("regex", expression, REGEX_BYTES_MAX, Grammar::regex, deadline)
        }
        ResponseConstraint::Lark(grammar) => {
            text("grammar", grammar, LARK_BYTES_MAX, Grammar::lark, deadline)
        }
    };
    grammar.map(Answer::Grammar)
}

fn json(field: &str, schema: Value, deadline: Instant) -> Result<Grammar, SpecError> {
    let name = field.to_owned();
    let work = move || {
        check_schema(&name, &schema)?;
        Grammar::json(&schema).map_err(unsupported(&name))
    };
    until(deadline, work).map_err(unsupported(field)).flatten()
}

fn text(
    field: &str,
    source: &str,
    limit: usize,
    compile: fn(&str) -> Result<Grammar, String>,
    deadline: Instant,
) -> Result<Grammar, SpecError> {
    if source.len() > limit {
        let field = field.to_owned();
        return Err(SpecError::TooLarge { field, what: "bytes", found: source.len(), limit });
    }
    let source = source.to_owned();
    until(deadline, move || compile(&source)).flatten().map_err(unsupported(field))
}

fn unsupported(field: &str) -> impl Fn(String) -> SpecError {
    move |reason| SpecError::Unsupported { field: field.to_owned(), reason }
}

fn choice(choices: &[String]) -> Result<Answer, SpecError> {
    let field = "choice".to_owned();
    let num_bytes = choices.iter().map(String::len).sum();
    match choices.len() {
        0 => Err(SpecError::Unsupported { field, reason: "there is nothing to choose from".to_owned() }),
        found if found > CHOICES_MAX => {
            Err(SpecError::TooLarge { field, what: "choices", found, limit: CHOICES_MAX })
        }
        _ if num_bytes > CHOICE_BYTES_MAX => {
            Err(SpecError::TooLarge { field, what: "bytes", found: num_bytes, limit: CHOICE_BYTES_MAX })
        }
        _ => {
            let literals = choices.iter().map(|text| Literal::plain(text, ()));
            Ok(Answer::Literals(Cursor::new(literals.collect())))
        }
    }
}

fn arguments(index: usize, tool: &ToolConstraint, deadline: Instant) -> Result<Grammar, SpecError> {
    let field = format!("tools[{index}].function.parameters");
    match &tool.parameters {
        Some(schema) if tool.strict => {
            let schema = object_schema(schema).map_err(unsupported(&field))?;
            json(&field, schema, deadline)
        }
        Some(_) | None => any_object().map_err(unsupported(&field)),
    }
}

/// The schema, narrowed to objects if it says nothing of types.
fn object_schema(schema: &Value) -> Result<Value, String> {
    match schema {
        Value::Bool(true) => Ok(serde_json::json!({"type": "object"})),
        Value::Object(fields) => match fields.get("type") {
            None => {
                let mut fields = fields.clone();
                fields.insert("type".to_owned(), serde_json::json!("object"));
                Ok(Value::Object(fields))
            }
            Some(Value::String(name)) if name == "object" => Ok(schema.clone()),
            Some(other) => Err(format!("arguments are an object, and the schema's type is {other}")),
        },
        _ => Err("arguments are an object, which the schema does not describe".to_owned()),
    }
}

/// Any JSON object: what most calls are, so it is compiled once.
fn any_object() -> Result<Grammar, String> {
    static ANY_OBJECT: LazyLock<Mutex<Result<Grammar, String>>> =
        LazyLock::new(|| Mutex::new(Grammar::json(&serde_json::json!({"type": "object"}))));
    ANY_OBJECT.lock().unwrap_or_else(PoisonError::into_inner).clone()
}
