//! Connections of the gRPC port, up to a number of them at a time. It accepts and
//! does the handshakes of TLS; calls are the transport's business.

use crate::server::Tls;
use futures_util::Stream;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;
use tonic::transport::server::Connected;

/// After an error of the system, which has run out of something.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// One connection, and its place among those that may be open.
#[derive(Debug)]
pub(super) struct Connection {
    stream: Either<TcpStream, Box<TlsStream<TcpStream>>>,
    /// Until when the greeting must have come; `None` once it has.
    greeting: Option<Greeting>,
    _place: OwnedSemaphorePermit,
}

/// What a client of HTTP/2 says first takes this much.
const GREETING_BYTES: usize = 24;

#[derive(Debug)]
struct Greeting {
    num_read: usize,
    late: Pin<Box<Sleep>>,
}

/// Who comes in.
struct Arrivals {
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    places: Arc<Semaphore>,
    handshake_timeout: Duration,
    /// As many as there are places; a slow one holds up no other.
    handshakes: JoinSet<Option<Connection>>,
}

/// Connections as they come; further ones than `max_connections` wait in the
/// system's backlog. Dropping the stream closes the port.
pub(super) fn accept(
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    max_connections: usize,
    handshake_timeout: Duration,
) -> impl Stream<Item = io::Result<Connection>> + Send {
    let places = Arc::new(Semaphore::new(max_connections));
    let arrivals = Arrivals { listener, tls, places, handshake_timeout, handshakes: JoinSet::new() };
    futures_util::stream::unfold(arrivals, |mut arrivals| async move {
        let connection = arrivals.next().await?;
        Some((Ok(connection), arrivals))
    })
}

impl Arrivals {
    async fn next(&mut self) -> Option<Connection> {
        loop {
            tokio::select! {
                accepted = next(&self.listener, &self.places) => {
                    let (stream, place) = accepted?;
                    let deadline = Instant::now() + self.handshake_timeout;
                    // Asked for each connection: certificates are replaced.
                    let tls = self.tls.as_ref().map(|tls| tls.acceptor());
                    self.handshakes.spawn(open(stream, tls, deadline, place));
                }
                Some(opened) = self.handshakes.join_next() => {
                    // Panics have been reported.
                    if let Ok(Some(connection)) = opened {
                        return Some(connection);
                    }
                }
            }
        }
    }
}

/// The connection once its handshake is done; `None` if that fails.
async fn open(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    deadline: Instant,
    place: OwnedSemaphorePermit,
) -> Option<Connection> {
    let stream = match tls {
        None => Either::Left(stream),
        Some(acceptor) => match timeout_at(deadline, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => Either::Right(Box::new(stream)),
            Ok(Err(error)) => {
                tracing::debug!(%error, "a handshake failed");
                return None;
            }
            Err(_) => {
                tracing::debug!("a handshake took too long");
                return None;
            }
        },
    };
    let late = Box::pin(sleep_until(deadline));
    Some(Connection { stream, greeting: Some(Greeting { num_read: 0, late }), _place: place })
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
