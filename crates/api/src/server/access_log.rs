//! One line for each request, when its response is complete or its client gone.
//! Numbers and names; neither paths as clients wrote them nor any text.

use super::drain::Phase;
use super::onlooker::{Onlooker, Polled, look_on};
use super::request_id::RequestId;
use super::requests::ActiveRequest;
use super::route::Route;
use super::state::Shared;
use crate::auth::Account;
use crate::metrics::Counted;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, Method, Version, header};
use axum::middleware::Next;
use axum::response::Response;
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::Instant;

/// What clients that leave before their response are counted under.
const CLIENT_LEFT: u16 = 499;

/// Where lines and numbers go.
#[derive(Clone, Debug)]
pub(super) struct AccessLog {
    shared: Shared,
}

impl AccessLog {
    pub(super) fn new(shared: Shared) -> Self {
        Self { shared }
    }
}

/// What layers within find out of a request, for the line at its end. It stands
/// among the request's extensions.
#[derive(Clone, Debug, Default)]
pub(crate) struct Notes(Arc<Found>);

#[derive(Debug, Default)]
struct Found {
    account: OnceLock<Arc<Account>>,
    active: OnceLock<ActiveRequest>,
}

impl Notes {
    /// Who asks. What is known already stays.
    pub(crate) fn set_account(&self, account: &Arc<Account>) {
        self.0.account.get_or_init(|| account.clone());
    }

    /// The generation that was let in.
    pub(crate) fn set_active(&self, request: &ActiveRequest) {
        self.0.active.get_or_init(|| request.clone());
    }

    /// The name of the key that was shown.
    pub(crate) fn key(&self) -> Option<&str> {
        self.0.account.get().and_then(|account| account.caller().name.as_deref())
    }

    /// Tokens of the prompt and of the answer, of a generation.
    pub(crate) fn tokens(&self) -> Option<(u32, u32)> {
        self.0.active.get().map(ActiveRequest::tokens)
    }
}

/// A request and its response, until both are over.
struct Exchange {
    shared: Shared,
    arrived: Instant,
    id: Option<RequestId>,
    route: Option<Route>,
    method: &'static str,
    status: u16,
    notes: Notes,
    is_complete: bool,
    _counted: Counted,
}

pub(super) async fn log_access(State(log): State<AccessLog>, mut request: Request, next: Next) -> Response {
    let mut exchange = Exchange::begin(log.shared, &request);
    let version = request.version();
    request.extensions_mut().insert(exchange.notes.clone());
    let mut response = next.run(request).await;
    exchange.status = response.status().as_u16();
    if version <= Version::HTTP_11 && exchange.shared.shutdown().phase() != Phase::Serving {
        // Whoever keeps connections must open the next one elsewhere.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response.map(|body| look_on(body, exchange))
}

impl Exchange {
    fn begin(shared: Shared, request: &Request) -> Self {
        let path = request.extensions().get::<MatchedPath>();
        Self {
            arrived: Instant::now(),
            id: request.extensions().get().cloned(),
            route: path.and_then(|path| Route::at(path.as_str())),
            method: name_of(request.method()),
            status: CLIENT_LEFT,
            notes: Notes::default(),
            is_complete: false,
            _counted: shared.metrics().http().request(),
            shared,
        }
    }
}

impl Onlooker for Exchange {
    fn asked(&mut self, polled: &Polled) {
        self.is_complete |= matches!(polled, Poll::Ready(None));
    }

    fn dropped(&mut self, is_at_end: bool) {
        self.is_complete |= is_at_end;
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let elapsed = self.arrived.elapsed();
        let route = self.route.map_or("none", Route::path);
        let Self { method, status, is_complete, .. } = *self;
        self.shared.metrics().http().responded(route, method, status, elapsed);
        let key = self.notes.key();
        let request_id = self.id.as_ref().map(|id| &*id.0);
        let ms = elapsed.as_millis() as u64;
        let (prompt_tokens, output_tokens) = self.notes.tokens().unzip();
        if self.route.is_some_and(Route::is_probe) {
            tracing::debug!(method, route, status, ms, is_complete, request_id, key, "request");
        } else {
            tracing::info!(
                method,
                route,
                status,
                ms,
                is_complete,
                request_id,
                key,
                prompt_tokens,
                output_tokens,
                "request"
            );
        }
    }
}

/// Clients may invent methods; labels may not grow with them.
fn name_of(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "POST" => "POST",
        "HEAD" => "HEAD",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}
