//! Text completions: prompts as they are, continued. Special tokens that are
//! spelled in a prompt are tokens, as in vLLM, so that a prompt can be written in
//! harmony by hand; in the answer they are left out unless
//! `skip_special_tokens` is false.

mod writer;

use chorale_harmony::{TokenId, Tokenizer};

pub(super) use writer::Writer;

use super::fields::{Field, parse_object};
use super::{Limits, StreamOptions, sampling};
use crate::error::ApiError;
use crate::generation::{Generation, Input, Output};

/// What `max_tokens` is if nobody says, as in OpenAI's and vLLM's.
const DEFAULT_MAX_TOKENS: std::num::NonZeroU32 = std::num::NonZeroU32::new(16).expect("16 is not 0");

/// Fields of completions that would change the answer and are not offered.
const REFUSED: [(&str, &str); 7] = [
    ("guided_choice", "use /v1/chat/completions"),
    ("guided_grammar", "use /v1/chat/completions"),
    ("guided_json", "use /v1/chat/completions"),
    ("guided_regex", "use /v1/chat/completions"),
    ("prompt_embeds", "use prompt"),
    ("structured_outputs", "use /v1/chat/completions"),
    ("suffix", "gpt-oss does not fill in the middle"),
];

/// A completion request, read.
#[derive(Clone, Debug)]
pub struct CompletionRequest {
    /// What to do.
    pub generation: Generation,
    /// How to answer.
    pub reply: CompletionReply,
}

/// How a completion is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CompletionReply {
    /// The name that was asked for.
    pub model: String,
    /// The client's own id for the request.
    pub request_id: Option<String>,
    /// Set if chunks are wanted.
    pub stream: Option<StreamOptions>,
    /// The prompts' texts, if the answers are to begin with them.
    pub echo: Option<Vec<String>>,
    /// How many answers each prompt gets.
    pub n: u32,
    /// Whether the client sees log-probabilities.
    pub has_logprobs: bool,
}

/// Reads the body of `POST /v1/completions`.
///
/// # Errors
///
/// The field that is wrong, and what would be right.
pub fn parse_completion(body: &[u8], limits: &Limits) -> Result<CompletionRequest, ApiError> {
    let value = parse_object(body)?;
    let root = Field::root(&value);
    root.refuse(&REFUSED)?;
    check_best_of(&root)?;
    check_response_format(&root)?;
    let prompt = root.need("prompt")?;
    let prompts = prompts(&prompt, limits)?;
    let skip_special_tokens = sampling::flag(&root, "skip_special_tokens", true)?;
    let is_echoed = sampling::flag(&root, "echo", false)?;
    let echo = is_echoed.then(|| prompts.iter().map(|prompt| Tokenizer::shared().decode(prompt)).collect());
    let num_prompts = prompts.len() as u32;

    let output = Output::Text { skip_special_tokens };
    let greedy = chorale_plan::SamplingParams::greedy();
    let mut generation = Generation::new(Input::Prompts(prompts), output, greedy);
    sampling::read(&root, limits, &mut generation)?;
    let n = generation.n.get();
    if n.saturating_mul(num_prompts) > limits.max_choices {
        let limit = limits.max_choices;
        return Err(
            prompt.error(format_args!("{num_prompts} prompts times n = {n} is more than {limit} choices"))
        );
    }
    generation.max_tokens = Some(sampling::max_tokens(&root, &["max_tokens"])?.unwrap_or(DEFAULT_MAX_TOKENS));
    sampling::check_min_tokens(&root, &generation)?;
    generation.sampling.num_logprobs =
        root.get("logprobs").map(|field| field.unsigned(0..=sampling::MAX_LOGPROBS)).transpose()?;
    let has_logprobs = generation.sampling.num_logprobs.is_some();
    if is_echoed && has_logprobs {
        let remedy =
            "with echo is not supported: log-probabilities are those of sampled tokens; leave one out";
        return Err(root.need("logprobs")?.error(remedy));
    }
    let reply = CompletionReply {
        model: sampling::model(&root, limits)?,
        request_id: sampling::request_id(&root)?,
        stream: sampling::stream(&root)?,
        echo,
        n,
        has_logprobs,
    };
    Ok(CompletionRequest { generation, reply })
}

fn check_best_of(root: &Field<'_>) -> Result<(), ApiError> {
    if let Some(user) = root.get("user") {
        user.text()?;
    }
    match root.get("best_of") {
        Some(field) if field.unsigned(0..=u32::MAX)? > 1 => Err(field.error("is not supported; use n")),
        _ => Ok(()),
    }
}

fn check_response_format(root: &Field<'_>) -> Result<(), ApiError> {
    let Some(format) = root.get("response_format") else { return Ok(()) };
    match format.need("type")?.text()? {
        "text" => Ok(()),
        _ => Err(format.error("is not supported; use /v1/chat/completions")),
    }
}

/// A text, texts, token ids, or lists of token ids.
fn prompts(prompt: &Field<'_>, limits: &Limits) -> Result<Vec<Vec<TokenId>>, ApiError> {
    if prompt.value().is_string() {
        return Ok(vec![encode(prompt)?]);
    }
    let Some(items) = prompt.value().as_array() else {
        return Err(prompt.wrong("a string, an array of strings, or token ids"));
    };
    if items.is_empty() {
        return Err(prompt.error("must not be empty"));
    }
    if items.iter().all(serde_json::Value::is_number) {
        return Ok(vec![token_ids(prompt, limits)?]);
    }
    if items.len() > limits.max_choices as usize {
        let limit = limits.max_choices;
        return Err(prompt.error(format_args!("holds {} prompts, at most {limit} are served", items.len())));
    }
    prompt
        .items()?
        .map(|item| if item.value().is_array() { token_ids(&item, limits) } else { encode(&item) })
        .collect()
}

fn encode(text: &Field<'_>) -> Result<Vec<TokenId>, ApiError> {
    let tokens = Tokenizer::shared().encode_with_specials(text.text()?);
    if tokens.is_empty() { Err(text.error("must not be empty")) } else { Ok(tokens) }
}

fn token_ids(ids: &Field<'_>, limits: &Limits) -> Result<Vec<TokenId>, ApiError> {
    let tokens: Result<Vec<TokenId>, ApiError> =
        ids.items()?.map(|id| id.unsigned(0..=limits.vocabulary_size - 1)).collect();
    let tokens = tokens?;
    if tokens.is_empty() { Err(ids.error("must not be empty")) } else { Ok(tokens) }
}
