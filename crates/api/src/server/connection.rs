//! One connection, from its acceptance to its end: handshake, requests, and the
//! watch over clients that do nothing. It ends by itself, or when it is told to.

use super::activity::{Activity, Patience, Verdict};
use super::onlooker::look_on;
use super::tls::Tls;
use super::{ServerConfig, Shared};
use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

/// How long an idle client may take to understand that it is over.
const FAREWELL: Duration = Duration::from_millis(250);

/// The smallest buffer that hyper takes.
const MIN_BUFFER_BYTES: usize = 8 * 1024;

/// What all connections share.
#[derive(Clone)]
pub(super) struct Connections {
    config: Arc<ServerConfig>,
    shared: Shared,
    router: Router,
    tls: Option<Arc<Tls>>,
    builder: auto::Builder<TokioExecutor>,
    /// Ends them when their requests are over.
    pub(super) closing: CancellationToken,
}

impl Connections {
    pub(super) fn new(
        config: Arc<ServerConfig>,
        shared: Shared,
        router: Router,
        tls: Option<Arc<Tls>>,
    ) -> Self {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        let max_header_bytes = u32::try_from(config.max_header_bytes).unwrap_or(u32::MAX);
        // The buffer is twice the limit, so that heads that are a little too
        // large are read and told so by the router.
        let buffer_bytes = config.max_header_bytes.saturating_mul(2).max(MIN_BUFFER_BYTES);
        // `Activity` keeps the time of heads, over both protocols.
        builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(buffer_bytes);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_header_list_size(max_header_bytes.saturating_mul(2))
            .max_concurrent_streams(config.max_streams_per_connection)
            // A peer that is gone without a word is noticed by its silence.
            .keep_alive_interval(config.idle_timeout)
            .keep_alive_timeout(config.header_timeout);
        Self { config, shared, router, tls, builder, closing: CancellationToken::new() }
    }

    /// Serves one connection to its end.
    pub(super) async fn serve(self, stream: TcpStream) {
        let _counted = self.shared.metrics().http().connection();
        let opened = Instant::now();
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection was lost");
            return;
        }
        let Some(tls) = &self.tls else {
            return self.exchange(stream, opened).await;
        };
        match timeout(self.config.header_timeout, tls.acceptor().accept(stream)).await {
            Ok(Ok(stream)) => self.exchange(stream, opened).await,
            Ok(Err(error)) => tracing::debug!(%error, "a handshake failed"),
            Err(_) => tracing::debug!("a handshake took too long"),
        }
    }

    async fn exchange(&self, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, opened: Instant) {
        let ServerConfig { header_timeout, idle_timeout, stalled_reader_timeout, .. } = *self.config;
        let activity = Activity::new(Patience {
            first_head: header_timeout.saturating_sub(opened.elapsed()),
            idle: idle_timeout,
            stalled: stalled_reader_timeout,
        });
        let router = TowerToHyperService::new(self.router.clone());
        let service = service_fn(|request: hyper::Request<Incoming>| {
            let watched = activity.begin();
            let response = router.call(request.map(Body::new));
            async move { response.await.map(|response| response.map(|body| look_on(body, watched))) }
        });

        let mut connection = pin!(self.builder.serve_connection(TokioIo::new(stream), service));
        let mut is_closing = false;
        let mut cut_at = None;
        let mut look_at = Instant::now() + header_timeout.min(idle_timeout);
        loop {
            tokio::select! {
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(error, "a connection ended early");
                    }
                    return;
                }
                () = self.closing.cancelled(), if !is_closing => {
                    is_closing = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = sleep_until(look_at) => match (activity.judge(Instant::now()), cut_at) {
                    (Verdict::Wait(until), _) => {
                        look_at = until;
                        cut_at = None;
                    }
                    (Verdict::Idle, None) => {
                        is_closing = true;
                        connection.as_mut().graceful_shutdown();
                        look_at = Instant::now() + FAREWELL;
                        cut_at = Some(look_at);
                    }
                    (Verdict::Idle, Some(_)) => return,
                    (Verdict::Stalled, _) => {
                        tracing::debug!("a client does not read its response");
                        return;
                    }
                },
            }
        }
    }
}
