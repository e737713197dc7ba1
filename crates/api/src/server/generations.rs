//! The generation endpoints as the server sees them: a request is let in, handed
//! to whoever answers, and holds its place until its response is complete.

use super::access_log::Notes;
use super::request_id::RequestId;
use super::requests::ActiveRequest;
use super::state::{Admission, Shared};
use crate::auth::Account;
use crate::openai::OpenAi;
use axum::Extension;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use http_body::{Frame, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// What the layers before found out of a request.
type Extensions = (Extension<RequestId>, Extension<Arc<Account>>, Extension<Notes>);

pub(super) async fn chat_completions(
    State(shared): State<Shared>,
    extensions: Extensions,
    body: Bytes,
) -> Response {
    let answer = |openai: OpenAi, request| async move { openai.chat_completions(request, body).await };
    Box::pin(admitted(shared, extensions, answer)).await
}

pub(super) async fn completions(
    State(shared): State<Shared>,
    extensions: Extensions,
    body: Bytes,
) -> Response {
    let answer = |openai: OpenAi, request| async move { openai.completions(request, body).await };
    Box::pin(admitted(shared, extensions, answer)).await
}

async fn admitted<F>(
    shared: Shared,
    (Extension(id), Extension(account), Extension(notes)): Extensions,
    answer: impl FnOnce(OpenAi, ActiveRequest) -> F,
) -> Response
where
    F: Future<Output = Response>,
{
    let admission = match shared.admit(&id.0, &account) {
        Ok(admission) => admission,
        Err(error) => return error.into_response(),
    };
    let active = admission.request().clone();
    notes.set_active(&active);
    let mut response = answer(admission.served().openai.clone(), active).await;
    if response.status() == StatusCode::TOO_MANY_REQUESTS {
        // Limits of keys were checked before: this is the engine's queue.
        shared.metrics().requests().rejected();
        let seconds = shared.metrics().retry_after_s();
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response.map(|body| Body::new(Held { body, _admission: admission }))
}

/// A body that holds its request's place.
struct Held {
    body: Body,
    _admission: Admission,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
