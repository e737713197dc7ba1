//! The response of a streaming call: one started, the events of the updates as
//! they come, one completed. Dropping it drops the generation, which cancels it.

use super::deadline::within;
use super::events;
use crate::error::ApiError;
use crate::generation::{GenerationStream, Generator, Prepared, Update};
use crate::openai::Limits;
use crate::server::{Admission, Shared};
use chorale_wire::inference::{Begun, Event};
use futures_util::Stream;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::sync::mpsc::error::SendTimeoutError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;

/// Which door the generation path is told.
const DOOR: &str = "grpc";

/// Everything a response needs.
pub(super) struct Response<T> {
    pub(super) shared: Shared,
    /// The request's place, until the response is complete.
    pub(super) admission: Admission,
    pub(super) deadline: Option<Instant>,
    /// What is said first.
    pub(super) begun: Begun,
    /// Writes the prompt; slow for long ones, and on a thread for that.
    pub(super) prepare: Prepare,
    /// What an update says at this level.
    pub(super) translate: Translate<T>,
}

/// Makes a request a prompt.
pub(super) type Prepare = Box<dyn FnOnce(&Generator, &Limits) -> Result<Prepared, ApiError> + Send>;

/// What an update says.
pub(super) type Translate<T> = Box<dyn Fn(Update) -> Vec<Event<T>> + Send>;

/// Where a response stands.
enum Phase<T> {
    New(Box<Response<T>>),
    Running(Box<Running<T>>),
    Over,
}

struct Running<T> {
    stream: GenerationStream,
    translate: Translate<T>,
    _admission: Admission,
}

struct Reading<T> {
    phase: Phase<T>,
    /// Events of one update; bounded by what a token can bring.
    queue: VecDeque<Event<T>>,
}

/// Events that wait for a slow reader before generation does.
const MAX_WAITING_EVENTS: usize = 32;

/// What ends a response from outside.
#[derive(Clone, Debug)]
pub(super) struct Ending {
    /// The server ends, and waits no longer.
    pub(super) cut: CancellationToken,
    /// How long a client may leave events unread.
    pub(super) stalled_reader_timeout: Duration,
    /// The responses that go on.
    pub(super) responses: TaskTracker,
}

impl<T: Send + 'static> Response<T> {
    /// The response as messages. It goes on by itself, some events ahead of its
    /// reader, until it is dropped or left unread for too long.
    pub(super) fn into_stream<M: From<Event<T>> + Send + 'static>(
        self,
        ending: Ending,
    ) -> impl Stream<Item = Result<M, Status>> + Send {
        let (events, receiver) = mpsc::channel(MAX_WAITING_EVENTS);
        let (fail, failure) = oneshot::channel();
        let reading = Reading { phase: Phase::New(Box::new(self)), queue: VecDeque::new() };
        ending.responses.clone().spawn(async move {
            if let Err(error) = Box::pin(reading.deliver(events, ending)).await {
                // Nobody there means that nobody wants to know.
                let _ = fail.send(error);
            }
        });
        futures_util::stream::unfold((receiver, failure), |(mut receiver, mut failure)| async move {
            let message = match receiver.recv().await {
                Some(event) => Ok(M::from(event)),
                // Sent before the events' channel was closed, if at all.
                None => Err(Status::from(failure.try_recv().ok()?)),
            };
            Some((message, (receiver, failure)))
        })
    }

    async fn start(self) -> Result<(Begun, Running<T>), ApiError> {
        let Self { shared, admission, deadline, begun, prepare, translate } = self;
        let openai = admission.served().openai.clone();
        let generator = openai.generator().clone();
        let preparing = tokio::task::spawn_blocking(move || prepare(openai.generator(), openai.limits()));
        let prepared = within(deadline, preparing)
            .await?
            .map_err(|error| ApiError::Engine { reason: format!("reading the request: {error}") })??;
        let submitted = generator.submit(prepared, admission.request().clone(), DOOR).await;
        let stream = submitted.map_err(|error| with_patience(&shared, error))?;
        Ok((begun, Running { stream, translate, _admission: admission }))
    }
}

fn shutting_down() -> ApiError {
    ApiError::Unavailable { message: "the server is shutting down".to_owned(), retry_after_s: 1 }
}

/// A full queue says when it may have emptied, as far as the engine's pace tells.
fn with_patience(shared: &Shared, error: ApiError) -> ApiError {
    let ApiError::QueueFull { waiting_requests, waiting_tokens, .. } = error else { return error };
    shared.metrics().requests().rejected();
    let retry_after_s = shared.metrics().retry_after_s();
    ApiError::QueueFull { waiting_requests, waiting_tokens, retry_after_s }
}

impl<T: Send + 'static> Reading<T> {
    /// Hands out all events. Returning drops what generates them.
    async fn deliver(mut self, events: mpsc::Sender<Event<T>>, ending: Ending) -> Result<(), ApiError> {
        loop {
            let event = tokio::select! {
                biased;
                () = events.closed() => return Ok(()),
                () = ending.cut.cancelled() => return Err(shutting_down()),
                event = self.next() => event,
            };
            let Some(event) = event else { return Ok(()) };
            let event = event?;
            tokio::select! {
                biased;
                () = ending.cut.cancelled() => return Err(shutting_down()),
                sent = events.send_timeout(event, ending.stalled_reader_timeout) => match sent {
                    Ok(()) => {}
                    Err(SendTimeoutError::Closed(_)) => return Ok(()),
                    Err(SendTimeoutError::Timeout(_)) => return Err(ApiError::Cancelled),
                },
            }
        }
    }

    /// The next event; after an error, nothing.
    async fn next(&mut self) -> Option<Result<Event<T>, ApiError>> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Some(Ok(event));
            }
            self.phase = match std::mem::replace(&mut self.phase, Phase::Over) {
                Phase::New(response) => match Box::pin(response.start()).await {
                    Ok((begun, running)) => {
                        self.queue.push_back(Event::Begun(begun));
                        Phase::Running(Box::new(running))
                    }
                    Err(error) => return Some(Err(error)),
                },
                Phase::Running(mut running) => match running.stream.next().await {
                    Some(Ok(update)) => {
                        self.queue.extend((running.translate)(update));
                        Phase::Running(running)
                    }
                    Some(Err(error)) => return Some(Err(error)),
                    None => {
                        self.queue.push_back(Event::Completed(events::usage(running.stream.usage())));
                        Phase::Over
                    }
                },
                Phase::Over => return None,
            };
        }
    }
}
