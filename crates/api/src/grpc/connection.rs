//! Connections of the gRPC port, up to a number of them at a time. It accepts and
//! does the handshakes of TLS; calls are the transport's business.

use crate::server::Tls;
use chorale_wire::listener::{self, Place};
use futures_util::Stream;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

/// A connection, perhaps with TLS.
pub(super) type Connection = listener::Connection<Either<TcpStream, Box<TlsStream<TcpStream>>>>;

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
                accepted = listener::next(&self.listener, &self.places) => {
                    let (stream, _, place) = accepted?;
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
    place: Place,
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
    Some(Connection::new(stream, None, deadline, place))
}
