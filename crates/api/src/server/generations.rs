//! The generation endpoints as the server sees them: a request is let in, handed
//! to whoever answers, and holds its place until its response is complete.

use super::access_log::Notes;
use super::onlooker::{Onlooker, look_on};
use super::request_id::RequestId;
use super::requests::ActiveRequest;
use super::state::{Admission, Shared};
use crate::auth::Account;
use crate::openai::OpenAi;
use axum::Extension;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use std::sync::Arc;

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
    response.map(|body| look_on(body, admission))
}

/// A request holds its place until its response is complete.
impl Onlooker for Admission {}
