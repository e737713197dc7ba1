//! The tokens that end a completion. Which of the two files says so is decided
//! here; what the tokens mean is harmony's business.

use super::fields::Fields;
use crate::checkpoint::CheckpointError;
use serde_json::Value;

const KEY: &str = "eos_token_id";
const REMEDY: &str = "a token id or a list of token ids is expected";

/// From `generation_config.json` if it names any, else from `config.json`, else none.
pub(super) fn end_of_sequence(
    config: &Fields<'_>,
    generation: Option<&Fields<'_>>,
) -> Result<Vec<u32>, CheckpointError> {
    let preferred = generation.map(read).transpose()?.unwrap_or_default();
    if preferred.is_empty() { read(config) } else { Ok(preferred) }
}

fn read(fields: &Fields<'_>) -> Result<Vec<u32>, CheckpointError> {
    let listed = match fields.get(KEY) {
        None => return Ok(Vec::new()),
        Some(Value::Array(values)) => values.as_slice(),
        Some(value) => std::slice::from_ref(value),
    };
    let mut tokens = Vec::with_capacity(listed.len());
    for value in listed {
        let token = value.as_u64().and_then(|id| u32::try_from(id).ok());
        let token = token.ok_or_else(|| fields.invalid(KEY, REMEDY))?;
        if !tokens.contains(&token) {
            tokens.push(token);
        }
    }
    Ok(tokens)
}
