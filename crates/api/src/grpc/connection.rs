//! Connections of the gRPC port, up to a number of them at a time. It accepts;
//! handshakes and calls are the transport's business.

use futures_util::Stream;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tonic::transport::server::Connected;

/// After an error of the system, which has run out of something.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// One connection, and its place among those that may be open.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    /// Until when the greeting must have come; `None` once it has.
    greeting: Option<Greeting>,
    _place: OwnedSemaphorePermit,
}

/// What a client says first takes at least this much, with TLS and without.
const GREETING_BYTES: usize = 24;

#[derive(Debug)]
struct Greeting {
    num_read: usize,
    late: Pin<Box<Sleep>>,
}

/// Connections as they come; further ones than `max_connections` wait in the
/// system's backlog. Dropping the stream closes the port.
pub(super) fn accept(
    listener: TcpListener,
    max_connections: usize,
    greeting_timeout: Duration,
) -> impl Stream<Item = io::Result<Connection>> + Send {
    let places = Arc::new(Semaphore::new(max_connections));
    futures_util::stream::unfold((listener, places), move |(listener, places)| async move {
        let (stream, place) = next(&listener, &places).await?;
        let late = Box::pin(tokio::time::sleep(greeting_timeout));
        let connection = Connection { stream, greeting: Some(Greeting { num_read: 0, late }), _place: place };
        Some((Ok(connection), (listener, places)))
    })
}

async fn next(listener: &TcpListener, places: &Arc<Semaphore>) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    loop {
        // Nobody closes the semaphore.
        let place = places.clone().acquire_owned().await.ok()?;
        let accepted = listener.accept().await.and_then(|(stream, _)| {
            // Tokens are small, and wait for nobody.
            stream.set_nodelay(true)?;
            Ok(stream)
        });
        match accepted {
            Ok(stream) => return Some((stream, place)),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let num_filled = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        let Some(greeting) = &mut self.greeting else { return polled };
        greeting.num_read += buffer.filled().len() - num_filled;
        if greeting.num_read >= GREETING_BYTES {
            self.greeting = None;
        } else if polled.is_pending() && greeting.late.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        polled
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
