//! A response's body with an onlooker: told what the body brings, and dropped
//! after it, when the response is complete or its client gone.

use axum::body::{Body, Bytes, HttpBody};
use http_body::{Frame, SizeHint};
use std::pin::Pin;
use std::task::{Context, Poll};

/// What a body brings when it is asked for more.
pub(crate) type Polled = Poll<Option<Result<Frame<Bytes>, axum::Error>>>;

/// Looks on while a response goes on. To hold something until its end is enough
/// of a reason.
pub(crate) trait Onlooker: Send + Unpin + 'static {
    /// The client's side asked for more, and this is what there was.
    fn asked(&mut self, _polled: &Polled) {}

    /// The body is dropped. A body whose end is known is not asked for it.
    fn dropped(&mut self, _is_at_end: bool) {}
}

/// The body, looked on.
pub(crate) fn look_on(body: Body, onlooker: impl Onlooker) -> Body {
    Body::new(LookedOn { body, onlooker })
}

struct LookedOn<O: Onlooker> {
    body: Body,
    onlooker: O,
}

impl<O: Onlooker> HttpBody for LookedOn<O> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        self.onlooker.asked(&polled);
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<O: Onlooker> Drop for LookedOn<O> {
    fn drop(&mut self) {
        self.onlooker.dropped(self.body.is_end_stream());
    }
}
