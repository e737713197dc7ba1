//! The text of a JSON file, parsed into its outermost object. A syntax error
//! names the field it stands in, for Python writes `NaN` where JSON has no
//! such number.

use crate::checkpoint::CheckpointError;
use serde_json::{Map, Value};
use std::path::Path;

pub(super) fn parse(file: &Path, text: &str) -> Result<Map<String, Value>, CheckpointError> {
    let refuse = |reason: String| CheckpointError::Json { file: file.to_owned(), reason };
    match serde_json::from_str(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(refuse("an object is expected".to_owned())),
        Err(error) => Err(refuse(match field_before(text, error.line(), error.column()) {
            Some(field) => format!("{error}, after field `{field}`; numbers must be finite"),
            None => error.to_string(),
        })),
    }
}

/// The last `"field":` before a position that serde_json reports (from 1).
fn field_before(text: &str, line: usize, column: usize) -> Option<&str> {
    let line_start: usize = text.split_inclusive('\n').take(line.checked_sub(1)?).map(str::len).sum();
    let end = (line_start + column).min(text.len());
    let before = text.as_bytes().get(..end)?;
    let colon = before.windows(2).rposition(|pair| pair == b"\":")?;
    let start = before[..colon].iter().rposition(|&byte| byte == b'"')? + 1;
    text.get(start..colon)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(text: &str) -> String {
        parse(Path::new("config.json"), text).unwrap_err().to_string()
    }

    #[test]
    fn nan_is_refused_with_its_field() {
        assert_eq!(
            reason("{\n \"rope_theta\": NaN\n}"),
            "config.json: not valid JSON: expected value at line 2 column 16, after field `rope_theta`; \
             numbers must be finite"
        );
        assert!(reason("{\"a\": 1, \"factor\": -Infinity}").contains("`factor`"));
        assert!(reason("{\"a\": 1, \"eps\": 1e999}").contains("`eps`"));
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for text in ["", "[]", "null", "7", "{", "{}{}", "{\"a\"}", "\u{feff}{}", "ä\n\"ü\":"] {
            assert!(reason(text).starts_with("config.json: not valid JSON: "), "{text:?}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        assert!(reason(&"{\"a\":".repeat(100_000)).contains("recursion limit"));
    }
}
