//! The fields that both kinds of completions share: how tokens are chosen, what
//! ends a choice, how the answer is sent. Ranges are OpenAI's and vLLM's.

use std::num::NonZeroU32;

use chorale_harmony::TokenId;
use chorale_plan::{Penalties, SamplingParams};

use super::fields::Field;
use super::{Limits, StreamOptions};
use crate::error::ApiError;
use crate::generation::Generation;

/// Texts in `stop`; OpenAI takes 4.
const MAX_STOPS: usize = 16;
/// Bytes of one of them: what may be held back while streaming.
const MAX_STOP_BYTES: usize = 1024;
/// Tokens in `stop_token_ids`.
const MAX_STOP_TOKENS: usize = 256;
/// Entries of `logit_bias`; each is work for every sampled token.
const MAX_BIASES: usize = 1024;
/// Alternatives to each token.
pub(super) const MAX_LOGPROBS: u32 = 20;
/// Characters of `request_id`.
const MAX_ID_CHARS: usize = 128;
/// Bytes of `cache_salt`.
const MAX_SALT_BYTES: usize = 256;
/// Temperatures below this are greedy, as vLLM has it: they would overflow.
const MIN_TEMPERATURE: f32 = 1e-5;

/// Fields that would change the answer and are not offered at either door.
const REFUSED: [(&str, &str); 9] = [
    ("allowed_token_ids", "use logit_bias"),
    ("bad_words", "use logit_bias"),
    ("kv_transfer_params", "leave it out"),
    ("length_penalty", "leave it out"),
    ("logits_processors", "leave it out"),
    ("prompt_logprobs", "leave it out: log-probabilities are those of sampled tokens"),
    ("thinking_token_budget", "use reasoning_effort or max_tokens"),
    ("truncate_prompt_tokens", "shorten the prompt"),
    ("use_beam_search", "use n"),
];

/// Reads what both doors share into `generation`.
pub(super) fn read(root: &Field<'_>, limits: &Limits, generation: &mut Generation) -> Result<(), ApiError> {
    root.refuse(&REFUSED)?;
    generation.sampling = sampling(root, limits)?;
    generation.n = n(root, limits)?;
    generation.stops = stops(root)?;
    generation.stop_token_ids = stop_token_ids(root, limits)?;
    generation.include_stop = flag(root, "include_stop_str_in_output", false)?;
    generation.ignore_eos = flag(root, "ignore_eos", false)?;
    generation.min_tokens =
        root.get("min_tokens").map(|field| field.unsigned(0..=u32::MAX)).transpose()?.unwrap_or(0);
    generation.priority = root
        .get("priority")
        .map(|field| field.integer(i64::from(i32::MIN)..=i64::from(i32::MAX)))
        .transpose()?
        .unwrap_or(0) as i32;
    generation.cache_salt = cache_salt(root)?;
    Ok(())
}

fn sampling(root: &Field<'_>, limits: &Limits) -> Result<SamplingParams, ApiError> {
    let number = |key: &str, range| root.get(key).map(|field| field.number(range)).transpose();
    let temperature = number("temperature", 0.0..=2.0)?.unwrap_or(1.0);
    let top_k = root.get("top_k").map(|field| field.integer(-1..=i64::from(u32::MAX))).transpose()?;
    let top_p = number("top_p", 0.0..=1.0)?.unwrap_or(1.0);
    if top_p == 0.0 {
        return Err(root.need("top_p")?.error("must be above 0; use temperature 0 for the likeliest token"));
    }
    Ok(SamplingParams {
        temperature: if temperature < MIN_TEMPERATURE { 0.0 } else { temperature },
        // vLLM's -1 and 0 keep all.
        top_k: top_k.filter(|&k| k > 0).map(|k| k as u32),
        top_p,
        min_p: number("min_p", 0.0..=1.0)?.unwrap_or(0.0),
        penalties: penalties(root)?,
        logit_bias: logit_bias(root, limits)?,
        seed: seed(root)?,
        allowed: None,
        num_logprobs: None,
    })
}

fn penalties(root: &Field<'_>) -> Result<Option<Penalties>, ApiError> {
    let number = |key: &str, range| root.get(key).map(|field| field.number(range)).transpose();
    let repetition = number("repetition_penalty", 0.01..=100.0)?.unwrap_or(1.0);
    let presence = number("presence_penalty", -2.0..=2.0)?.unwrap_or(0.0);
    let frequency = number("frequency_penalty", -2.0..=2.0)?.unwrap_or(0.0);
    let does_nothing = repetition == 1.0 && presence == 0.0 && frequency == 0.0;
    Ok((!does_nothing).then(|| Penalties { repetition, presence, frequency, history: Vec::new() }))
}

fn logit_bias(root: &Field<'_>, limits: &Limits) -> Result<Vec<(TokenId, f32)>, ApiError> {
    let Some(field) = root.get("logit_bias") else { return Ok(Vec::new()) };
    let entries = field.object()?;
    if entries.len() > MAX_BIASES {
        return Err(
            field.error(format_args!("has {} entries, at most {MAX_BIASES} are served", entries.len()))
        );
    }
    let mut biases = Vec::with_capacity(entries.len());
    for key in entries.keys() {
        let token = key.parse::<TokenId>().ok().filter(|&token| token < limits.vocabulary_size);
        let token = token.ok_or_else(|| {
            field.error(format_args!(
                "the key {} is no token id from 0 to {}",
                super::fields::shown(&serde_json::Value::from(key.as_str())),
                limits.vocabulary_size - 1
            ))
        })?;
        biases.push((token, field.need(key)?.number(-100.0..=100.0)?));
    }
    Ok(biases)
}

/// Without a seed the answer is nobody's to repeat.
fn seed(root: &Field<'_>) -> Result<u64, ApiError> {
    let Some(field) = root.get("seed") else { return Ok(uuid::Uuid::new_v4().as_u64_pair().0) };
    match field.value().as_u64() {
        Some(seed) => Ok(seed),
        None => field.integer(i64::MIN..=i64::MAX).map(|seed| seed as u64),
    }
}

fn n(root: &Field<'_>, limits: &Limits) -> Result<NonZeroU32, ApiError> {
    let n = root.get("n").map(|field| field.unsigned(1..=limits.max_choices)).transpose()?;
    Ok(n.and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN))
}

fn stops(root: &Field<'_>) -> Result<Vec<String>, ApiError> {
    let Some(field) = root.get("stop") else { return Ok(Vec::new()) };
    if field.value().is_string() {
        return Ok(vec![stop(&field)?]);
    }
    if !field.value().is_array() {
        return Err(field.wrong("a string or an array of strings"));
    }
    let stops = field.items()?;
    if stops.len() > MAX_STOPS {
        return Err(field.error(format_args!("has {} texts, at most {MAX_STOPS} are served", stops.len())));
    }
    stops.map(|field| stop(&field)).collect()
}

fn stop(field: &Field<'_>) -> Result<String, ApiError> {
    let stop = field.text()?;
    match stop.len() {
        0 => Err(field.error("must not be empty")),
        1..=MAX_STOP_BYTES => Ok(stop.to_owned()),
        len => Err(field.error(format_args!("has {len} bytes, at most {MAX_STOP_BYTES} are served"))),
    }
}

fn stop_token_ids(root: &Field<'_>, limits: &Limits) -> Result<Vec<TokenId>, ApiError> {
    let Some(field) = root.get("stop_token_ids") else { return Ok(Vec::new()) };
    let tokens = field.items()?;
    if tokens.len() > MAX_STOP_TOKENS {
        return Err(
            field.error(format_args!("has {} ids, at most {MAX_STOP_TOKENS} are served", tokens.len()))
        );
    }
    tokens.map(|token| token.unsigned(0..=limits.vocabulary_size - 1)).collect()
}

fn cache_salt(root: &Field<'_>) -> Result<Vec<u8>, ApiError> {
    let Some(field) = root.get("cache_salt") else { return Ok(Vec::new()) };
    let salt = field.text()?;
    match salt.len() {
        1..=MAX_SALT_BYTES => Ok(salt.as_bytes().to_vec()),
        len => Err(field.error(format_args!("has {len} bytes, from 1 to {MAX_SALT_BYTES} are served"))),
    }
}

/// The first of these fields that is there, as a token count.
pub(super) fn max_tokens(root: &Field<'_>, keys: &[&str]) -> Result<Option<NonZeroU32>, ApiError> {
    let mut limit = None;
    for key in keys {
        if let Some(field) = root.get(key) {
            let found = field.unsigned(1..=u32::MAX)?;
            limit = limit.or(NonZeroU32::new(found));
        }
    }
    Ok(limit)
}

/// `min_tokens` must leave room below `max_tokens`.
pub(super) fn check_min_tokens(root: &Field<'_>, generation: &Generation) -> Result<(), ApiError> {
    match (root.get("min_tokens"), generation.max_tokens) {
        (Some(field), Some(max)) if generation.min_tokens > max.get() => {
            Err(field.error(format_args!("is {}, above max_tokens {max}", generation.min_tokens)))
        }
        _ => Ok(()),
    }
}

pub(super) fn flag(root: &Field<'_>, key: &str, default: bool) -> Result<bool, ApiError> {
    Ok(root.get(key).map(|field| field.boolean()).transpose()?.unwrap_or(default))
}

/// The model's name; the first one served if none is asked for.
pub(super) fn model(root: &Field<'_>, limits: &Limits) -> Result<String, ApiError> {
    let Some(field) = root.get("model") else {
        return Ok(limits.models.first().cloned().unwrap_or_default());
    };
    let model = field.text()?;
    if limits.models.iter().any(|served| served == model) {
        return Ok(model.to_owned());
    }
    let model = model.chars().take(MAX_ID_CHARS).collect();
    Err(ApiError::UnknownModel { model, served: limits.models.join(", ") })
}

/// How the answer is to be streamed, if it is.
pub(super) fn stream(root: &Field<'_>) -> Result<Option<StreamOptions>, ApiError> {
    let is_streamed = flag(root, "stream", false)?;
    let mut options = StreamOptions::default();
    if let Some(field) = root.get("stream_options") {
        field.object()?;
        if !is_streamed {
            return Err(field.error("is only for stream: true"));
        }
        options.include_usage = flag(&field, "include_usage", false)?;
        options.continuous_usage = flag(&field, "continuous_usage_stats", false)?;
    }
    Ok(is_streamed.then_some(options))
}

/// The client's own id for the request, of characters that a header can hold.
pub(super) fn request_id(root: &Field<'_>) -> Result<Option<String>, ApiError> {
    let Some(field) = root.get("request_id") else { return Ok(None) };
    let id = field.text()?;
    if (1..=MAX_ID_CHARS).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(Some(id.to_owned()));
    }
    Err(field.wrong(format_args!("1 to {MAX_ID_CHARS} visible ASCII characters")))
}
