//! A text that must follow a schema, an expression or a grammar, said token by
//! token. It wraps llguidance and knows neither channels nor messages.

use chorale_plan::{TokenId, TokenMask};
use llguidance::api::{StopReason, TopLevelGrammar};
use llguidance::{JsonCompileOptions, Matcher};
use serde_json::Value;

use super::mask::MaskBuilder;
use super::spec::ConstraintError;
use super::unions::exclusive_as_any;
use super::vocabulary::{is_end, parser_factory};

/// White space between the parts of a JSON text: enough for deep indentation,
/// too little for a model that has lost its way among blanks.
const JSON_WHITE_SPACE: &str = r"[ \n\r\t]{1,80}";

/// Where llguidance finds the options of a schema. A client's own are ignored:
/// they could turn its checks off.
const OPTIONS_KEY: &str = "x-guidance";

/// The longest explanation that a client gets.
const REASON_CHARS_MAX: usize = 300;

/// How much of a text has been said.
pub(super) struct Grammar {
    matcher: Box<Matcher>,
}

impl Grammar {
    /// JSON of this schema.
    pub(super) fn json(schema: &Value) -> Result<Self, String> {
        let mut schema = match schema {
            Value::Bool(true) => Value::Object(serde_json::Map::new()),
            Value::Bool(false) => return Err("no value satisfies it".to_owned()),
            schema => exclusive_as_any(schema.clone()),
        };
        let Some(fields) = schema.as_object_mut() else {
            return Err("a schema is an object or a boolean".to_owned());
        };
        fields.remove(OPTIONS_KEY);
        let options = JsonCompileOptions {
            whitespace_pattern: Some(JSON_WHITE_SPACE.to_owned()),
            ..JsonCompileOptions::default()
        };
        options.apply_to(&mut schema);
        Self::compile(TopLevelGrammar::from_json_schema(schema))
    }

    /// A text that the expression matches as a whole.
    pub(super) fn regex(expression: &str) -> Result<Self, String> {
        Self::compile(TopLevelGrammar::from_regex(expression))
    }

    /// A text of this grammar.
    pub(super) fn lark(grammar: &str) -> Result<Self, String> {
        // They could name special tokens, which then nothing can say.
        if grammar.contains("<[") {
            return Err("tokens by number, <[...]>, are not served".to_owned());
        }
        Self::compile(TopLevelGrammar::from_lark(grammar.to_owned()))
    }

    /// Compiles, and sees whether the grammar allows any beginning at all.
    fn compile(grammar: TopLevelGrammar) -> Result<Self, String> {
        let mut matcher = Matcher::new(parser_factory()?.create_parser(grammar));
        match matcher.compute_mask_or_eos() {
            Ok(_) => Ok(Self { matcher: Box::new(matcher) }),
            Err(error) => Err(reason(&error.to_string())),
        }
    }

    /// One that starts anew and shares what this one has learnt about its
    /// expressions. Only one of them may be in use at a time.
    pub(super) fn begin(&self) -> Self {
        Self { matcher: self.matcher.clone() }
    }

    /// The tokens that may come next, `end` among them if the text is complete.
    pub(super) fn allowed(&mut self, end: TokenId) -> Result<TokenMask, ConstraintError> {
        let mut mask = MaskBuilder::empty();
        if self.is_finished()? {
            mask.allow(end);
            return Ok(mask.finish());
        }
        let allowed = self.matcher.compute_mask().map_err(failed)?;
        mask = MaskBuilder::text_of(allowed.as_slice());
        if is_end(|token| allowed.is_allowed(token)) {
            mask.allow(end);
        }
        if mask.is_empty() {
            return Err(ConstraintError::Grammar { reason: "no token can follow".to_owned() });
        }
        Ok(mask.finish())
    }

    /// Says a text token; `false`, and nothing is said, if it cannot be next.
    pub(super) fn accept(&mut self, token: TokenId) -> Result<bool, ConstraintError> {
        if self.is_finished()? {
            return Ok(false);
        }
        Ok(self.matcher.try_consume_tokens(&[token]).map_err(failed)? == 1)
    }

    /// Whether the text may end here.
    pub(super) fn is_complete(&mut self) -> Result<bool, ConstraintError> {
        Ok(self.is_finished()? || self.matcher.is_accepting().map_err(failed)?)
    }

    /// Whether the text can only end here.
    fn is_finished(&self) -> Result<bool, ConstraintError> {
        match self.matcher.stop_reason() {
            StopReason::NotStopped => Ok(false),
            reason if reason.is_ok() => Ok(true),
            stopped => {
                let error = self.matcher.get_error().unwrap_or_else(|| stopped.to_string());
                Err(ConstraintError::Grammar { reason: reason(&error) })
            }
        }
    }
}

impl Clone for Grammar {
    /// An independent one: it shares nothing, so each may live in its own thread.
    fn clone(&self) -> Self {
        Self { matcher: Box::new(self.matcher.deep_clone()) }
    }
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammar").field("stop_reason", &self.matcher.stop_reason()).finish_non_exhaustive()
    }
}

fn failed(error: impl std::fmt::Display) -> ConstraintError {
    ConstraintError::Grammar { reason: reason(&error.to_string()) }
}

/// What of an error's text is for people: its first line, and not too much of it.
/// llguidance panics on a few odd grammars, and reports that as an error.
fn reason(error: &str) -> String {
    if error.starts_with("panic") {
        return "the compiler gave up on it".to_owned();
    }
    if error.starts_with("NoExtension") {
        return "no token can follow".to_owned();
    }
    error.lines().next().unwrap_or_default().chars().take(REASON_CHARS_MAX).collect()
}
