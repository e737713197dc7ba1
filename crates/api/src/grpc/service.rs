//! The methods of `chorale.inference.v1.Inference`: each asks who calls, reads
//! the request, and hands it to whoever answers. Nothing is decided here.

use super::call::Call;
use super::deadline::within;
use super::response::{Ending, Response, Translate};
use super::{chat, generate, load};
use crate::error::ApiError;
use crate::generation::{Generation, Generator};
use crate::openai::Limits;
use crate::server::{RequestView, Shared};
use chorale_harmony::Tokenizer;
use chorale_wire::inference::v1::inference_server::Inference;
use chorale_wire::inference::{
    Begun, Cancel, Chat, Detokenize, Event, Generate, InvalidField, Model, RequestState, RequestSummary,
    Tokenize, TokenizeInput, Tokenized, WatchLoadStatus, v1,
};
use futures_util::Stream;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::Semaphore;
use tonic::{Request, Status};

/// Tokenizations at a time: each takes a thread, and further ones are refused.
const MAX_TOKENIZATIONS: usize = 64;

/// The service over what all doors share.
#[derive(Clone)]
pub(super) struct Door {
    shared: Shared,
    ending: Ending,
    tokenizations: Arc<Semaphore>,
}

type Reply<T> = Result<tonic::Response<T>, Status>;
type Events<M> = Pin<Box<dyn Stream<Item = Result<M, Status>> + Send>>;

impl Door {
    pub(super) fn new(shared: Shared, ending: Ending) -> Self {
        Self { shared, ending, tokenizations: Arc::new(Semaphore::new(MAX_TOKENIZATIONS)) }
    }

    fn call<M>(&self, request: Request<M>) -> Result<(Call, M), ApiError> {
        let (metadata, extensions, message) = request.into_parts();
        Ok((Call::new(&self.shared, &metadata, &extensions)?, message))
    }

    /// The served name that answers.
    fn model(&self, asked: Option<String>) -> Result<String, ApiError> {
        let served = self.shared.served_model_names();
        match asked {
            None => Ok(served.first().cloned().unwrap_or_default()),
            Some(model) if served.contains(&model) => Ok(model),
            Some(model) => Err(ApiError::UnknownModel { model, served: served.join(", ") }),
        }
    }

    /// Lets a request in and gives its response.
    fn answer<T: Send + 'static, M: From<Event<T>> + Send + 'static>(
        &self,
        call: Call,
        model: Option<String>,
        generation: impl FnOnce(&Limits) -> Result<Generation, ApiError> + Send + 'static,
        translate: Translate<T>,
    ) -> Reply<Events<M>> {
        let Call { account, id, deadline, notes } = call;
        let model = self.model(model)?;
        let admission = self.shared.admit(&id.0, &account)?;
        admission.request().set_model(&model);
        notes.set_active(admission.request());
        let created_unix_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let begun = Begun { request_id: id.0.to_string(), model, created_unix_s };
        let prepare = move |generator: &Generator, limits: &Limits| generator.prepare(generation(limits)?);
        let shared = self.shared.clone();
        let response = Response { shared, admission, deadline, begun, prepare: Box::new(prepare), translate };
        Ok(tonic::Response::new(Box::pin(response.into_stream(self.ending.clone()))))
    }

    /// Does work that takes a while where it holds up nobody.
    async fn on_a_thread<T: Send + 'static>(
        &self,
        call: &Call,
        work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let busy = |_| ApiError::RateLimited {
            message: format!("{MAX_TOKENIZATIONS} texts are being tokenized already"),
            retry_after_s: 1,
        };
        // Held by the work itself: it goes on when its caller is gone.
        let place = self.tokenizations.clone().try_acquire_owned().map_err(busy)?;
        let done = tokio::task::spawn_blocking(move || {
            let _place = place;
            work()
        });
        let done = within(call.deadline, done).await?;
        done.map_err(|error| ApiError::Engine { reason: format!("reading the request: {error}") })?
    }
}

/// What a request says, or which field of it is wrong.
fn read<M, T: TryFrom<M, Error = InvalidField>>(message: M) -> Result<T, ApiError> {
    T::try_from(message).map_err(ApiError::from)
}

#[tonic::async_trait]
impl Inference for Door {
    type ChatStream = Events<v1::ChatEvent>;
    type GenerateStream = Events<v1::GenerateEvent>;
    type WatchLoadStatusStream = Events<v1::WatchLoadStatusResponse>;

    async fn chat(&self, request: Request<v1::ChatRequest>) -> Reply<Self::ChatStream> {
        let (call, message) = self.call(request)?;
        let mut chat: Chat = read(message)?;
        let (deadline, model) = (call.deadline, chat.model.take());
        let generation = move |limits: &Limits| chat::generation(chat, limits, deadline);
        self.answer(call, model, generation, Box::new(chat::events))
    }

    async fn generate(&self, request: Request<v1::GenerateRequest>) -> Reply<Self::GenerateStream> {
        let (call, message) = self.call(request)?;
        let mut asked: Generate = read(message)?;
        let (deadline, model) = (call.deadline, asked.model.take());
        let view = generate::View {
            include_text: asked.include_text,
            has_logprobs: asked.num_top_logprobs.is_some(),
        };
        let generation = move |limits: &Limits| generate::generation(asked, limits, deadline);
        self.answer(call, model, generation, Box::new(move |update| generate::events(update, view)))
    }

    async fn cancel(&self, request: Request<v1::CancelRequest>) -> Reply<v1::CancelResponse> {
        let (call, message) = self.call(request)?;
        let Cancel { request_id } = read(message)?;
        if self.shared.requests().cancel(&request_id, call.account.caller()) == 0 {
            let message = format!("no request {request_id:?} is being answered");
            return Err(ApiError::NotFound { message }.into());
        }
        Ok(tonic::Response::new(v1::CancelResponse {}))
    }

    async fn list_requests(
        &self,
        request: Request<v1::ListRequestsRequest>,
    ) -> Reply<v1::ListRequestsResponse> {
        let (call, _) = self.call(request)?;
        let requests = self.shared.requests().list(call.account.caller());
        Ok(tonic::Response::new(requests.into_iter().map(summary).collect()))
    }

    async fn list_models(&self, request: Request<v1::ListModelsRequest>) -> Reply<v1::ListModelsResponse> {
        self.call(request)?;
        let served = self.shared.ready()?;
        let created_unix_s = served.since.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let model = |id: &String| Model {
            id: id.clone(),
            max_context_tokens: served.max_model_len,
            vocabulary_size: served.vocab_size,
            created_unix_s,
        };
        Ok(tonic::Response::new(self.shared.served_model_names().iter().map(model).collect()))
    }

    async fn get_load_status(
        &self,
        request: Request<v1::GetLoadStatusRequest>,
    ) -> Reply<v1::GetLoadStatusResponse> {
        self.call(request)?;
        Ok(tonic::Response::new(load::status(&self.shared).into()))
    }

    async fn watch_load_status(
        &self,
        request: Request<v1::WatchLoadStatusRequest>,
    ) -> Reply<Self::WatchLoadStatusStream> {
        let (_, message) = self.call(request)?;
        let WatchLoadStatus { interval } = read(message)?;
        Ok(tonic::Response::new(Box::pin(load::watch(self.shared.clone(), interval))))
    }

    async fn tokenize(&self, request: Request<v1::TokenizeRequest>) -> Reply<v1::TokenizeResponse> {
        let (call, message) = self.call(request)?;
        let Tokenize { model, input } = read(message)?;
        self.model(model)?;
        let served = self.shared.ready()?;
        let max_context_tokens = served.max_model_len;
        let tokens = self.on_a_thread(&call, move || match input {
            TokenizeInput::Text(text) => Ok(Tokenizer::shared().encode_text(&text)),
            TokenizeInput::Chat(asked) => {
                let generation = chat::generation(*asked, served.openai.limits(), None)?;
                let prepared = served.openai.generator().prepare(generation)?;
                Ok(prepared.prompts().flatten().copied().collect())
            }
        });
        let tokens = tokens.await?;
        Ok(tonic::Response::new(Tokenized { tokens, max_context_tokens }.into()))
    }

    async fn detokenize(&self, request: Request<v1::DetokenizeRequest>) -> Reply<v1::DetokenizeResponse> {
        let (call, message) = self.call(request)?;
        let Detokenize { model, tokens } = read(message)?;
        self.model(model)?;
        let served = self.shared.ready()?;
        super::sampling::all_in_vocabulary(&tokens, "tokens.ids", served.vocab_size)?;
        let text = self.on_a_thread(&call, move || Ok(Tokenizer::shared().decode(&tokens))).await?;
        Ok(tonic::Response::new(text.into()))
    }
}

fn summary(request: RequestView) -> RequestSummary {
    RequestSummary {
        request_id: request.id.to_string(),
        model: request.model.map(|model| model.to_string()),
        state: match request.state {
            "cancelling" => RequestState::Cancelling,
            "running" => RequestState::Running,
            _ => RequestState::Waiting,
        },
        age_ms: request.age_ms,
        prompt_tokens: request.prompt_tokens,
        completion_tokens: request.output_tokens,
        key_name: request.key.map(|name| name.to_string()),
    }
}
