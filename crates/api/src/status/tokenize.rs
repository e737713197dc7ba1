//! Text to tokens and back, in the shapes of vLLM. Conversations are read and
//! written as for chat completions, so that the count is what they would cost.

use crate::error::ApiError;
use crate::generation::Input;
use crate::openai::{Limits, parse_chat};
use crate::server::Shared;
use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use chorale_harmony::{TokenId, Tokenizer, render_for_completion};
use serde::{Deserialize, Serialize};

/// Longer bodies are worked on where that holds nobody up.
const MAX_INLINE_BODY_BYTES: usize = 16 << 10;

/// Without `messages`, or `messages` beside what chat completions take.
#[derive(Debug, Deserialize)]
struct TokenizeRequest {
    model: Option<String>,
    prompt: Option<String>,
    messages: Option<serde::de::IgnoredAny>,
    /// gpt-oss has no tokens that every text begins or ends with: either way
    /// the tokens are the same. Specials that the text spells are tokens.
    #[serde(rename = "add_special_tokens")]
    _add_special_tokens: Option<bool>,
    return_token_strs: Option<bool>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Tokenized {
    count: usize,
    max_model_len: u32,
    tokens: Vec<TokenId>,
    token_strs: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
struct DetokenizeRequest {
    model: Option<String>,
    tokens: Vec<i64>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Detokenized {
    prompt: String,
}

pub(crate) async fn tokenize(State(shared): State<Shared>, body: Bytes) -> Result<Json<Tokenized>, ApiError> {
    let served = shared.ready()?;
    let num_bytes = body.len();
    let work = move || to_tokens(&body, served.openai.limits(), served.max_model_len);
    aside(num_bytes, work).await.map(Json)
}

pub(crate) async fn detokenize(
    State(shared): State<Shared>,
    body: Bytes,
) -> Result<Json<Detokenized>, ApiError> {
    let served = shared.ready()?;
    let num_bytes = body.len();
    let work = move || to_text(&body, served.openai.limits());
    aside(num_bytes, work).await.map(Json)
}

/// Does short work here, and long work where it holds nobody up.
async fn aside<T: Send + 'static>(
    num_bytes: usize,
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    if num_bytes <= MAX_INLINE_BODY_BYTES {
        return work();
    }
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| ApiError::Engine { reason: error.to_string() })?
}

fn to_tokens(body: &[u8], limits: &Limits, max_model_len: u32) -> Result<Tokenized, ApiError> {
    let request: TokenizeRequest = parse(body)?;
    check_model(request.model, limits)?;
    let tokenizer = Tokenizer::shared();
    let tokens = match (request.prompt, request.messages) {
        (Some(prompt), None) => tokenizer.encode_with_specials(&prompt),
        (None, Some(_)) => match parse_chat(body, limits)?.generation.input {
            Input::Conversation { conversation, options } => {
                render_for_completion(&conversation, &options)
                    .map_err(|error| ApiError::invalid("messages", error))?
            }
            Input::Prompts(prompts) => prompts.concat(),
        },
        (None, None) => return Err(ApiError::invalid("prompt", "this or messages must be given")),
        (Some(_), Some(_)) => return Err(ApiError::invalid("prompt", "cannot be given beside messages")),
    };
    let spell = |token: &TokenId| tokenizer.decode(std::slice::from_ref(token));
    let token_strs = request.return_token_strs.unwrap_or(false).then(|| tokens.iter().map(spell).collect());
    Ok(Tokenized { count: tokens.len(), max_model_len, tokens, token_strs })
}

fn to_text(body: &[u8], limits: &Limits) -> Result<Detokenized, ApiError> {
    let request: DetokenizeRequest = parse(body)?;
    check_model(request.model, limits)?;
    let mut tokens = Vec::with_capacity(request.tokens.len());
    for (index, token) in request.tokens.into_iter().enumerate() {
        let known = TokenId::try_from(token).ok().filter(|token| *token < limits.vocabulary_size);
        let last = limits.vocabulary_size.saturating_sub(1);
        tokens.push(known.ok_or_else(|| {
            ApiError::invalid(format!("tokens[{index}]"), format!("must be from 0 to {last}, not {token}"))
        })?);
    }
    Ok(Detokenized { prompt: Tokenizer::shared().decode(&tokens) })
}

fn parse<'b, T: Deserialize<'b>>(body: &'b [u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body)
        .map_err(|error| ApiError::malformed("invalid_json", format!("the body cannot be read: {error}")))
}

fn check_model(model: Option<String>, limits: &Limits) -> Result<(), ApiError> {
    match model {
        Some(model) if !limits.models.contains(&model) => {
            Err(ApiError::UnknownModel { model, served: limits.models.join(", ") })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openai::SystemDate;

    fn limits() -> Limits {
        Limits {
            models: vec!["m".to_owned()],
            vocabulary_size: 201_088,
            max_choices: 1,
            max_tools: 1,
            system_date: SystemDate::Omitted,
        }
    }

    #[test]
    fn text_goes_there_and_back() {
        let prompt = "Grüße, <|start|>world<|end|> 🦀\n";
        let body = serde_json::json!({ "prompt": prompt, "return_token_strs": true }).to_string();
        let tokenized = to_tokens(body.as_bytes(), &limits(), 4096).unwrap();
        assert_eq!(tokenized.count, tokenized.tokens.len());
        assert!(tokenized.token_strs.unwrap().contains(&"<|start|>".to_owned()));
        let body = serde_json::json!({ "model": "m", "tokens": tokenized.tokens }).to_string();
        assert_eq!(to_text(body.as_bytes(), &limits()).unwrap().prompt, prompt);
    }

    #[test]
    fn a_conversation_is_written_as_chat_completions_write_it() {
        let body = r#"{ "messages": [{ "role": "user", "content": "Hi" }] }"#;
        let tokens = to_tokens(body.as_bytes(), &limits(), 4096).unwrap().tokens;
        let text = Tokenizer::shared().decode(&tokens);
        assert!(text.contains("<|start|>user<|message|>Hi<|end|><|start|>assistant"), "{text}");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (body, param) in [
            (r#"{}"#, Some("prompt")),
            (r#"{ "prompt": "a", "messages": [] }"#, Some("prompt")),
            (r#"{ "prompt": "a", "model": "x" }"#, Some("model")),
            (r#"{ "prompt": 3 }"#, None),
            ("[", None),
        ] {
            let error = to_tokens(body.as_bytes(), &limits(), 1).unwrap_err();
            assert_eq!(error.param(), param, "{body}");
        }
        for (body, param) in [
            (r#"{ "tokens": [0, -1] }"#, Some("tokens[1]")),
            (r#"{ "tokens": [201088] }"#, Some("tokens[0]")),
            (r#"{ "tokens": "a" }"#, None),
        ] {
            assert_eq!(to_text(body.as_bytes(), &limits()).unwrap_err().param(), param, "{body}");
        }
    }
}
