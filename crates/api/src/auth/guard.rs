//! The key of an HTTP request. It stands in one of two headers; whatever else a
//! request carries says nothing of who asks.

use crate::server::{Notes, Route, Shared};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

/// What the guard looks at.
#[derive(Clone, Debug)]
pub(crate) struct Guard {
    /// The keys.
    pub(crate) shared: Shared,
    /// Whether `/metrics` needs one.
    pub(crate) metrics_need_key: bool,
}

/// Lets in who may come in, and tells everyone behind who it is.
pub(crate) async fn require_key(State(guard): State<Guard>, mut request: Request, next: Next) -> Response {
    let account = if guard.is_open(&request) {
        guard.shared.keyring().anonymous().clone()
    } else {
        match guard.shared.authenticate(secret(request.headers())) {
            Ok(account) => account,
            Err(error) => return error.into_response(),
        }
    };
    if let Some(notes) = request.extensions().get::<Notes>() {
        notes.set_account(&account);
    }
    request.extensions_mut().insert(account);
    next.run(request).await
}

impl Guard {
    /// Probes and scrapers have no keys.
    fn is_open(&self, request: &Request) -> bool {
        let Some(path) = request.extensions().get::<MatchedPath>() else { return false };
        match Route::at(path.as_str()) {
            Some(Route::Health | Route::Ready) => true,
            Some(Route::Metrics) => !self.metrics_need_key,
            _ => false,
        }
    }
}

/// The key that a request shows, over either door.
pub(crate) fn secret(headers: &HeaderMap) -> Option<&[u8]> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| {
        let (scheme, secret) = value.as_bytes().split_at_checked("Bearer ".len())?;
        scheme.eq_ignore_ascii_case(b"Bearer ").then_some(secret.trim_ascii())
    });
    bearer.or_else(|| headers.get("x-api-key").map(|value| value.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn a_key_stands_in_one_of_two_headers() {
        for (name, value, expected) in [
            ("authorization", "Bearer k", Some("k")),
            ("authorization", "bearer  k ", Some("k")),
            ("authorization", "Basic k", None),
            ("authorization", "Bearer", None),
            ("x-api-key", "k", Some("k")),
            ("api-key", "k", None),
        ] {
            let headers = HeaderMap::from_iter([(name.parse().unwrap(), HeaderValue::from_static(value))]);
            assert_eq!(secret(&headers), expected.map(str::as_bytes), "{name}: {value}");
        }
    }
}
