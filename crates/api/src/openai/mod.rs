//! OpenAI's completions over HTTP: requests in JSON, answers in JSON or as
//! server-sent events. Both ways go through [`crate::generation`]; what a client
//! sees is decided here, what the model does is not.
//!
//! Unknown fields are accepted and ignored. Known ones are checked, and those
//! that would change the answer but are not offered are refused by name.

pub mod chat;
pub mod completions;
mod fields;
mod logprobs;
mod sampling;
mod sse;
mod types;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;

pub use chat::parse_chat;
pub use completions::parse_completion;
pub use logprobs::{ChatLogprobs, TextLogprobs, TokenLogprobs, TopLogprob};
pub use types::{Limits, StreamOptions, SystemDate, Usage};

use crate::ActiveRequest;
use crate::error::ApiError;
use crate::generation::{Answer, Generation, Generator, Prepared};

/// Bodies above this are parsed and tokenised on a thread that may block: below,
/// it takes about a millisecond at most.
const MAX_INLINE_BODY_BYTES: usize = 16 << 10;

/// The two completions endpoints. Clones are the same.
#[derive(Clone)]
pub struct OpenAi(Arc<Inner>);

struct Inner {
    generator: Generator,
    limits: Limits,
    keep_alive: Duration,
}

/// `POST /v1/chat/completions`, of a request that was let in.
pub async fn chat_completions(
    State(openai): State<OpenAi>,
    Extension(request): Extension<ActiveRequest>,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    match body {
        Ok(body) => openai.chat_completions(request, body).await,
        Err(error) => ApiError::malformed("invalid_body", error.body_text()).into_response(),
    }
}

/// `POST /v1/completions`, of a request that was let in.
pub async fn completions(
    State(openai): State<OpenAi>,
    Extension(request): Extension<ActiveRequest>,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    match body {
        Ok(body) => openai.completions(request, body).await,
        Err(error) => ApiError::malformed("invalid_body", error.body_text()).into_response(),
    }
}

impl OpenAi {
    /// Endpoints over this generator. A stream that is silent for `keep_alive`
    /// sends a comment.
    pub fn new(generator: Generator, limits: Limits, keep_alive: Duration) -> Self {
        Self(Arc::new(Inner { generator, limits, keep_alive }))
    }

    /// The way to the engine.
    pub fn generator(&self) -> &Generator {
        &self.0.generator
    }

    /// What is served.
    pub fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// `POST /v1/chat/completions`. The response is complete or a stream; either
    /// way, dropping it ends the generation.
    pub async fn chat_completions(&self, request: ActiveRequest, body: Bytes) -> Response {
        self.try_chat(request, body).await.unwrap_or_else(IntoResponse::into_response)
    }

    /// `POST /v1/completions`, likewise.
    pub async fn completions(&self, request: ActiveRequest, body: Bytes) -> Response {
        self.try_completions(request, body).await.unwrap_or_else(IntoResponse::into_response)
    }

    async fn try_chat(&self, request: ActiveRequest, body: Bytes) -> Result<Response, ApiError> {
        let (prepared, reply) = self
            .parse(body, |body, limits| parse_chat(body, limits).map(|chat| (chat.generation, chat.reply)))
            .await?;
        request.set_model(&reply.model);
        if let Some(id) = &reply.request_id {
            request.also_called(id);
        }
        let writer = chat::Writer::new(request.id(), reply);
        let mut stream = self.0.generator.submit(prepared, request, "chat").await?;
        if writer.is_streamed() {
            return Ok(sse::respond(stream, writer, self.0.keep_alive));
        }
        let answer = Answer::collect(&mut stream).await?;
        Ok(axum::Json(writer.body(answer)).into_response())
    }

    async fn try_completions(&self, request: ActiveRequest, body: Bytes) -> Result<Response, ApiError> {
        let (prepared, reply) = self
            .parse(body, |body, limits| {
                parse_completion(body, limits).map(|text| (text.generation, text.reply))
            })
            .await?;
        request.set_model(&reply.model);
        if let Some(id) = &reply.request_id {
            request.also_called(id);
        }
        let writer = completions::Writer::new(request.id(), reply);
        let mut stream = self.0.generator.submit(prepared, request, "completions").await?;
        if writer.is_streamed() {
            return Ok(sse::respond(stream, writer, self.0.keep_alive));
        }
        let answer = Answer::collect(&mut stream).await?;
        Ok(axum::Json(writer.body(answer)).into_response())
    }

    /// Parses a body and renders its prompt, where that does not hold up others.
    async fn parse<R: Send + 'static>(
        &self,
        body: Bytes,
        parse: impl FnOnce(&[u8], &Limits) -> Result<(Generation, R), ApiError> + Send + 'static,
    ) -> Result<(Prepared, R), ApiError> {
        let inner = Arc::clone(&self.0);
        let is_small = body.len() <= MAX_INLINE_BODY_BYTES;
        let work = move || {
            let (generation, reply) = parse(&body, &inner.limits)?;
            inner.generator.prepare(generation).map(|prepared| (prepared, reply))
        };
        if is_small {
            return work();
        }
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|error| ApiError::Engine { reason: format!("reading the request: {error}") })?
    }
}
