//! The name of a request, in its response's header, in logs and in lists. A
//! client may choose it; what is not fit for a log is replaced, not refused.

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

/// Where a request's id stands, in requests and responses.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longer ones are replaced.
const MAX_LEN: usize = 128;

/// The id of a request, among its extensions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(pub Arc<str>);

impl RequestId {
    /// The client's, if it is fit; else a new one.
    pub fn of(headers: &HeaderMap) -> Self {
        let wanted = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
        wanted.filter(|id| is_fit(id)).map_or_else(Self::generate, |id| Self(id.into()))
    }

    /// One that no other process is likely to have given.
    pub fn generate() -> Self {
        // Keyed by the system's randomness, once for each process.
        static KEYS: LazyLock<[RandomState; 2]> = LazyLock::new(Default::default);
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let [high, low] = KEYS.each_ref().map(|key| key.hash_one(number));
        Self(format!("{high:016x}{low:016x}").into())
    }
}

fn is_fit(id: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
    (1..=MAX_LEN).contains(&id.len()) && id.bytes().all(is_plain)
}

/// Gives each request its id, and each response its request's.
pub(crate) async fn identify(mut request: Request, next: Next) -> Response {
    let id = RequestId::of(request.headers());
    request.extensions_mut().insert(id.clone());
    let mut response = next.run(request).await;
    if let Ok(value) = HeaderValue::from_str(&id.0) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_fit_for_a_log_is_kept() {
        for fit in ["a", "3f2c-9_x.y:z", &"x".repeat(128)] {
            assert!(is_fit(fit), "{fit}");
        }
        for unfit in ["", "a b", "a/b", "é", "a\"b", &"x".repeat(129)] {
            assert!(!is_fit(unfit), "{unfit}");
        }
    }

    #[test]
    fn ids_differ() {
        assert_ne!(RequestId::generate(), RequestId::generate());
        assert_eq!(RequestId::generate().0.len(), 32);
    }
}
