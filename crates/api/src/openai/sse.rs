//! Server-sent events: an answer as it comes, one `data:` line for each chunk.
//! What the chunks say is their writer's business. Dropping the body drops the
//! generation's stream, and so cancels it.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use serde::Serialize;
use tokio::time::Instant;

use crate::error::ApiError;
use crate::generation::{GenerationStream, TokenCounts, Update};

/// Turns updates into chunks.
pub(super) trait Writer: Send + 'static {
    /// Writes what an update brings, perhaps nothing.
    fn update(&mut self, update: Update, usage: TokenCounts, events: &mut Events);
    /// Writes what comes after the last update.
    fn end(&mut self, usage: TokenCounts, events: &mut Events);
}

/// Events that are ready to be sent.
#[derive(Debug, Default)]
pub(super) struct Events(Vec<u8>);

impl Events {
    /// One event.
    pub(super) fn data(&mut self, data: &impl Serialize) {
        let start = self.0.len();
        self.0.extend_from_slice(b"data: ");
        if serde_json::to_writer(&mut self.0, data).is_err() {
            // No type of ours fails, for none has keys that are not strings.
            self.0.truncate(start);
            return;
        }
        self.0.extend_from_slice(b"\n\n");
    }
}

/// What `openai` clients stop at.
const DONE: &[u8] = b"data: [DONE]\n\n";
/// A comment, which clients skip and proxies count as life.
const KEEP_ALIVE: &[u8] = b": keep-alive\n\n";

struct Sending<W> {
    stream: GenerationStream,
    writer: W,
    keep_alive: Duration,
    is_over: bool,
}

/// The response that sends `stream` as it comes.
pub(super) fn respond<W: Writer>(stream: GenerationStream, writer: W, keep_alive: Duration) -> Response {
    let sending = Sending { stream, writer, keep_alive, is_over: false };
    let frames = futures_util::stream::unfold(sending, |mut sending| async move {
        let frame = sending.frame().await?;
        Some((Ok::<Bytes, Infallible>(frame), sending))
    });
    let mut response = Response::new(Body::from_stream(frames));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // nginx would collect the events otherwise.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

impl<W: Writer> Sending<W> {
    /// The next bytes to send; `None` closes the body.
    async fn frame(&mut self) -> Option<Bytes> {
        if self.is_over {
            return None;
        }
        let mut events = Events::default();
        let idle = Instant::now() + self.keep_alive;
        while events.0.is_empty() {
            match tokio::time::timeout_at(idle, self.stream.next()).await {
                Err(_) => return Some(Bytes::from_static(KEEP_ALIVE)),
                Ok(Some(Ok(update))) => self.writer.update(update, self.stream.usage(), &mut events),
                Ok(Some(Err(error))) => {
                    self.is_over = true;
                    log(&error);
                    events.data(&error.body());
                }
                Ok(None) => {
                    self.is_over = true;
                    self.writer.end(self.stream.usage(), &mut events);
                    events.0.extend_from_slice(DONE);
                }
            }
        }
        Some(events.0.into())
    }
}

/// An error that no status can carry any more.
fn log(error: &ApiError) {
    tracing::warn!(%error, "an answer breaks off");
}
