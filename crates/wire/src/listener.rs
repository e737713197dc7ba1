//! Connections of a port, up to a number of them at a time. What is spoken on
//! them is HTTP/2, of which nothing is known here but how it begins.

use futures_util::Stream;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::transport::server::{Connected, TcpConnectInfo};

/// After an error of the system, which has run out of something.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What HTTP/2 begins with, and any TLS handshake is longer than: pings find
/// whoever goes silent later.
const GREETING_BYTES: usize = 24;
/// A connection that has not said so much by then is closed.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);

/// A place among the connections that may be open.
pub type Place = OwnedSemaphorePermit;

/// One connection, and its place among those that may be open. Reading from it
/// fails if it has not greeted in time.
#[derive(Debug)]
pub struct Connection<S = TcpStream> {
    stream: S,
    remote_addr: Option<SocketAddr>,
    /// Until it has greeted.
    greeting: Option<Greeting>,
    _place: Place,
}

/// What a new connection owes.
#[derive(Debug)]
struct Greeting {
    num_bytes: usize,
    deadline: Pin<Box<Sleep>>,
}

/// Connections as they come; further ones than `max_connections` wait in the
/// system's backlog, and one that says nothing loses its place. Small messages
/// leave at once. Dropping the stream closes the port.
pub fn accept(
    listener: TcpListener,
    max_connections: usize,
) -> impl Stream<Item = io::Result<Connection>> + Send {
    accept_within(listener, max_connections, GREETING_TIMEOUT)
}

fn accept_within(
    listener: TcpListener,
    max_connections: usize,
    patience: Duration,
) -> impl Stream<Item = io::Result<Connection>> + Send {
    let places = Arc::new(Semaphore::new(max_connections));
    futures_util::stream::unfold((listener, places), move |(listener, places)| async move {
        let (stream, remote_addr, place) = next(&listener, &places).await?;
        let connection = Connection::new(stream, Some(remote_addr), Instant::now() + patience, place);
        Some((Ok(connection), (listener, places)))
    })
}

/// The next connection that comes while there is a place for it; `None` once
/// the places are closed.
pub async fn next(listener: &TcpListener, places: &Arc<Semaphore>) -> Option<(TcpStream, SocketAddr, Place)> {
    let place = places.clone().acquire_owned().await.ok()?;
    loop {
        match listener.accept().await {
            Ok((stream, remote_addr)) => {
                // Without it small messages are late, and right all the same.
                let _ = stream.set_nodelay(true);
                return Some((stream, remote_addr, place));
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

impl<S> Connection<S> {
    /// A connection that is to greet until `deadline`.
    pub fn new(stream: S, remote_addr: Option<SocketAddr>, deadline: Instant, place: Place) -> Self {
        let deadline = Box::pin(sleep_until(deadline));
        let greeting = Some(Greeting { num_bytes: GREETING_BYTES, deadline });
        Self { stream, remote_addr, greeting, _place: place }
    }
}

impl<S> Connected for Connection<S> {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        TcpConnectInfo { local_addr: None, remote_addr: self.remote_addr }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let num_before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        let num_read = buffer.filled().len() - num_before;
        if let Some(greeting) = &mut self.greeting {
            greeting.num_bytes = greeting.num_bytes.saturating_sub(num_read);
            if greeting.num_bytes == 0 {
                self.greeting = None;
            } else if read.is_pending() && greeting.deadline.as_mut().poll(context).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const PATIENCE: Duration = Duration::from_millis(50);

    /// Reads what one that says this says, until it is cut off; how many bytes came.
    async fn cut_off_after(said: &[u8]) -> Option<usize> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut other = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let accepted = accept_within(listener, 1, PATIENCE);
        let mut connection = Box::pin(accepted).next().await.unwrap().unwrap();
        other.write_all(said).await.unwrap();
        let mut bytes = [0; 64];
        let mut num_read = 0;
        loop {
            match tokio::time::timeout(PATIENCE * 6, connection.read(&mut bytes)).await {
                Ok(Ok(num)) => num_read += num,
                Ok(Err(error)) => {
                    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
                    return Some(num_read);
                }
                Err(_) => return None,
            }
        }
    }

    #[tokio::test]
    async fn a_connection_that_does_not_greet_loses_its_place() {
        assert_eq!(cut_off_after(b"").await, Some(0));
        assert_eq!(cut_off_after(b"PRI * HTTP").await, Some(10));
        assert_eq!(cut_off_after(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await, None, "it has greeted");
    }
}
