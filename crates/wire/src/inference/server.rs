//! What surrounds inference, in both directions: models, requests, loading and
//! the tokenizer. Whether a request or a model exists is not known here.

use super::chat::Chat;
use super::v1;
use crate::field::{InvalidField, filled, in_range, present, unless_empty};
use chorale_plan::TokenId;
use std::time::Duration;

/// Asks for the end of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cancel {
    /// Not empty.
    pub request_id: String,
}

impl TryFrom<v1::CancelRequest> for Cancel {
    type Error = InvalidField;

    fn try_from(message: v1::CancelRequest) -> Result<Self, InvalidField> {
        Ok(Self { request_id: filled("request_id", message.request_id)? })
    }
}

/// A request in the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestSummary {
    /// For cancelling.
    pub request_id: String,
    /// Who answers, once that is known.
    pub model: Option<String>,
    /// What becomes of it.
    pub state: RequestState,
    /// Since it came.
    pub age_ms: u64,
    /// Of its prompt.
    pub prompt_tokens: u32,
    /// Sampled so far.
    pub completion_tokens: u32,
    /// Of the key that pays.
    pub key_name: Option<String>,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestState {
    /// No token yet.
    Waiting,
    /// Tokens come.
    Running,
    /// No token comes any more.
    Cancelling,
}

impl FromIterator<RequestSummary> for v1::ListRequestsResponse {
    fn from_iter<I: IntoIterator<Item = RequestSummary>>(requests: I) -> Self {
        Self { requests: requests.into_iter().map(Into::into).collect() }
    }
}

impl From<RequestSummary> for v1::RequestSummary {
    fn from(request: RequestSummary) -> Self {
        let state = match request.state {
            RequestState::Waiting => v1::RequestState::Waiting,
            RequestState::Running => v1::RequestState::Running,
            RequestState::Cancelling => v1::RequestState::Cancelling,
        };
        Self {
            request_id: request.request_id,
            model: request.model.unwrap_or_default(),
            state: state as i32,
            age_ms: request.age_ms,
            prompt_tokens: request.prompt_tokens,
            completion_tokens: request.completion_tokens,
            key_name: request.key_name.unwrap_or_default(),
        }
    }
}

/// A name under which the model is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// The name.
    pub id: String,
    /// Prompt and output together.
    pub max_context_tokens: u32,
    /// Token ids are below.
    pub vocabulary_size: u32,
    /// Served since, since 1970 in UTC.
    pub created_unix_s: u64,
}

impl FromIterator<Model> for v1::ListModelsResponse {
    fn from_iter<I: IntoIterator<Item = Model>>(models: I) -> Self {
        let model = |model: Model| v1::Model {
            id: model.id,
            max_context_tokens: model.max_context_tokens,
            vocabulary_size: model.vocabulary_size,
            created_unix_s: model.created_unix_s,
        };
        Self { models: models.into_iter().map(model).collect() }
    }
}

/// What the server does now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoadStatus {
    /// Reading weights.
    Loading(LoadProgress),
    /// Serving.
    Ready,
    /// Finishing.
    Draining,
    /// It will not serve, for this reason.
    Failed(String),
}

/// How far loading is, over all ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadProgress {
    /// On devices so far.
    pub bytes_loaded: u64,
    /// 0 while unknown.
    pub bytes_total: u64,
    /// On devices so far.
    pub tensors_loaded: u64,
    /// 0 while unknown.
    pub tensors_total: u64,
    /// Ranks that have all of theirs.
    pub ranks_ready: u32,
    /// Ranks that are needed.
    pub ranks_total: u32,
    /// Since loading began.
    pub elapsed_ms: u64,
    /// Until it is ready.
    pub remaining_ms: Option<u64>,
}

impl From<LoadStatus> for v1::LoadStatus {
    fn from(status: LoadStatus) -> Self {
        let plain =
            |state: v1::LoadState| Self { state: state as i32, progress: None, failure: String::new() };
        match status {
            LoadStatus::Loading(progress) => {
                Self { progress: Some(progress.into()), ..plain(v1::LoadState::Loading) }
            }
            LoadStatus::Ready => plain(v1::LoadState::Ready),
            LoadStatus::Draining => plain(v1::LoadState::Draining),
            LoadStatus::Failed(failure) => Self { failure, ..plain(v1::LoadState::Failed) },
        }
    }
}

impl From<LoadProgress> for v1::LoadProgress {
    fn from(progress: LoadProgress) -> Self {
        let LoadProgress {
            bytes_loaded,
            bytes_total,
            tensors_loaded,
            tensors_total,
            ranks_ready,
            ranks_total,
            elapsed_ms,
            remaining_ms,
        } = progress;
        Self {
            bytes_loaded,
            bytes_total,
            tensors_loaded,
            tensors_total,
            ranks_ready,
            ranks_total,
            elapsed_ms,
            remaining_ms,
        }
    }
}

impl From<LoadStatus> for v1::GetLoadStatusResponse {
    fn from(status: LoadStatus) -> Self {
        Self { status: Some(status.into()) }
    }
}

impl From<LoadStatus> for v1::WatchLoadStatusResponse {
    fn from(status: LoadStatus) -> Self {
        Self { status: Some(status.into()) }
    }
}

/// Asks to be told how far the server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchLoadStatus {
    /// The least time between two answers.
    pub interval: Duration,
}

const DEFAULT_INTERVAL_MS: u32 = 250;

impl TryFrom<v1::WatchLoadStatusRequest> for WatchLoadStatus {
    type Error = InvalidField;

    fn try_from(message: v1::WatchLoadStatusRequest) -> Result<Self, InvalidField> {
        let interval_ms = in_range("interval_ms", message.interval_ms, 10..=60_000)?;
        let interval = Duration::from_millis(interval_ms.unwrap_or(DEFAULT_INTERVAL_MS).into());
        Ok(Self { interval })
    }
}

/// Asks for tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Tokenize {
    /// `None` takes the default.
    pub model: Option<String>,
    /// What is to be encoded.
    pub input: TokenizeInput,
}

/// What is to be encoded.
#[derive(Clone, Debug, PartialEq)]
pub enum TokenizeInput {
    /// Without special tokens; may be empty.
    Text(String),
    /// As the model would see it.
    Chat(Box<Chat>),
}

impl TryFrom<v1::TokenizeRequest> for Tokenize {
    type Error = InvalidField;

    fn try_from(message: v1::TokenizeRequest) -> Result<Self, InvalidField> {
        let input = match present("input", message.input)? {
            v1::tokenize_request::Input::Text(text) => TokenizeInput::Text(text),
            v1::tokenize_request::Input::Chat(chat) => {
                let chat = Chat::try_from(chat).map_err(|error| error.within("chat"))?;
                TokenizeInput::Chat(Box::new(chat))
            }
        };
        Ok(Self { model: unless_empty(message.model), input })
    }
}

/// What was encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokenized {
    /// The tokens.
    pub tokens: Vec<TokenId>,
    /// Prompt and output of a request together.
    pub max_context_tokens: u32,
}

impl From<Tokenized> for v1::TokenizeResponse {
    fn from(tokenized: Tokenized) -> Self {
        Self { token_ids: tokenized.tokens, max_context_tokens: tokenized.max_context_tokens }
    }
}

/// Asks for text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detokenize {
    /// `None` takes the default.
    pub model: Option<String>,
    /// What is to be decoded; may be empty.
    pub tokens: Vec<TokenId>,
}

impl TryFrom<v1::DetokenizeRequest> for Detokenize {
    type Error = InvalidField;

    fn try_from(message: v1::DetokenizeRequest) -> Result<Self, InvalidField> {
        let tokens = present("tokens", message.tokens)?.ids;
        Ok(Self { model: unless_empty(message.model), tokens })
    }
}

impl From<String> for v1::DetokenizeResponse {
    fn from(text: String) -> Self {
        Self { text }
    }
}
