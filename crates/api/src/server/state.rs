//! What all doors share: whether there is an engine, who may ask, what is being
//! answered, and whether the end has begun. Doors ask it for admission and for
//! nothing else.

use super::drain::{Phase, Shutdown};
use super::requests::{ActiveRequest, RequestGuard, Requests};
use crate::auth::{Account, Keyring, Permit};
use crate::error::ApiError;
use crate::metrics::Metrics;
use crate::status::{EngineStatus, Served};
use chorale_coordinator::cluster::ClusterStatus;
use std::sync::Arc;
use tokio::sync::watch;

/// What a draining server says to those who may come back: another one will
/// have taken its place in its load balancer by then.
const DRAINING_RETRY_AFTER_S: u64 = 5;

/// What a loading server says to those who may come back, if nothing is known of
/// the time that is left, and at most.
const LOADING_RETRY_AFTER_S: (u64, u64) = (5, 120);

/// What all doors share. Clones are the same.
#[derive(Clone, Debug)]
pub struct Shared(Arc<Parts>);

/// What [`Shared`] is made of.
#[derive(Debug)]
pub struct SharedConfig {
    /// The names of the model, the first of them its proper one.
    pub served_model_names: Vec<String>,
    /// Prompt and output together, as far as the model goes.
    pub max_model_len: u32,
    /// Who may ask.
    pub keyring: Keyring,
    /// Generations at a time, waiting ones among them, over all doors.
    pub max_active_requests: usize,
    /// The cluster that computes, where there is one.
    pub cluster: Option<watch::Receiver<Arc<ClusterStatus>>>,
}

#[derive(Debug)]
struct Parts {
    served_model_names: Vec<String>,
    keyring: Keyring,
    requests: Requests,
    metrics: Metrics,
    shutdown: Shutdown,
    status: watch::Receiver<EngineStatus>,
    cluster: Option<watch::Receiver<Arc<ClusterStatus>>>,
}

/// A generation that was let in. It holds the caller's permit and the request's
/// place until it is dropped: when the response is complete, or its client gone.
#[derive(Debug)]
pub struct Admission {
    served: Arc<Served>,
    guard: RequestGuard,
    metrics: Metrics,
    _permit: Permit,
}

impl Shared {
    /// What there is before the engine is: everything but the engine, whose
    /// status comes through the channel.
    pub fn new(config: SharedConfig, status: watch::Receiver<EngineStatus>) -> Self {
        let SharedConfig { served_model_names, max_model_len, keyring, max_active_requests, cluster } =
            config;
        let model_name = served_model_names.first().map_or("", String::as_str);
        let metrics = Metrics::new(model_name, max_model_len, status.clone(), cluster.as_ref());
        let requests = Requests::new(max_active_requests);
        let shutdown = Shutdown::default();
        Self(Arc::new(Parts { served_model_names, keyring, requests, metrics, shutdown, status, cluster }))
    }

    /// The names of the model, the first of them its proper one.
    pub fn served_model_names(&self) -> &[String] {
        &self.0.served_model_names
    }

    /// Who may ask.
    pub fn keyring(&self) -> &Keyring {
        &self.0.keyring
    }

    /// What is being answered.
    pub fn requests(&self) -> &Requests {
        &self.0.requests
    }

    /// What is measured; the generator's observer.
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Whether the end has begun.
    pub fn shutdown(&self) -> &Shutdown {
        &self.0.shutdown
    }

    /// Where the engine stands. The borrow blocks the engine's side: keep it short.
    pub fn status(&self) -> watch::Ref<'_, EngineStatus> {
        self.0.status.borrow()
    }

    /// The cluster that computes, where there is one.
    pub fn cluster(&self) -> Option<&watch::Receiver<Arc<ClusterStatus>>> {
        self.0.cluster.as_ref()
    }

    /// Follows where the engine stands.
    pub fn watch_status(&self) -> watch::Receiver<EngineStatus> {
        self.0.status.clone()
    }

    /// The account of whoever shows this secret, or none.
    ///
    /// # Errors
    ///
    /// A key is required, and this is none.
    pub fn authenticate(&self, secret: Option<&[u8]>) -> Result<Arc<Account>, ApiError> {
        let keyring = self.keyring();
        if !keyring.is_required() {
            return Ok(keyring.anonymous().clone());
        }
        let refused = |message: &str| ApiError::Unauthenticated { message: message.to_owned() };
        let secret = secret.ok_or_else(|| {
            refused("no API key was given; send it as \"authorization: Bearer KEY\" or as \"x-api-key: KEY\"")
        })?;
        keyring.find(secret).cloned().ok_or_else(|| refused("the API key is not known here"))
    }

    /// What answers, where requests are taken.
    ///
    /// # Errors
    ///
    /// The model is not loaded yet or will never be, or the server drains.
    pub fn ready(&self) -> Result<Arc<Served>, ApiError> {
        let unavailable =
            |message: String, retry_after_s| Err(ApiError::Unavailable { message, retry_after_s });
        if self.shutdown().phase() != Phase::Serving {
            return unavailable("the server is shutting down".to_owned(), DRAINING_RETRY_AFTER_S);
        }
        match &*self.status() {
            EngineStatus::Ready(served) if served.engine.stats().is_stopped => {
                unavailable("the engine has stopped".to_owned(), DRAINING_RETRY_AFTER_S)
            }
            EngineStatus::Ready(served) => Ok(served.clone()),
            EngineStatus::Loading(load) => {
                let (unknown, max) = LOADING_RETRY_AFTER_S;
                let left = load.time_left().map_or(unknown, |left| left.as_secs() + 1);
                unavailable("the model is being loaded".to_owned(), left.min(max))
            }
            EngineStatus::Failed { reason } => {
                unavailable(format!("the model could not be loaded: {reason}"), DRAINING_RETRY_AFTER_S)
            }
        }
    }

    /// Lets a generation in: there is an engine, the caller keeps to its limits,
    /// and a place is free.
    ///
    /// # Errors
    ///
    /// One of these is not so; the error says when to come back.
    pub fn admit(&self, id: &str, account: &Arc<Account>) -> Result<Admission, ApiError> {
        let served = self.ready()?;
        let permit = account.admit().map_err(|limit| ApiError::RateLimited {
            message: limit.to_string(),
            retry_after_s: limit.retry_after_s(),
        })?;
        let guard = self.requests().register(id, account.clone()).map_err(|full| {
            self.metrics().requests().rejected();
            ApiError::RateLimited { message: full.to_string(), retry_after_s: self.metrics().retry_after_s() }
        })?;
        // The end may have begun since: whoever drains must see this place taken.
        self.ready()?;
        Ok(Admission { served, guard, metrics: self.metrics().clone(), _permit: permit })
    }
}

impl Admission {
    /// What answers.
    pub fn served(&self) -> &Arc<Served> {
        &self.served
    }

    /// The request, for whoever answers.
    pub fn request(&self) -> &ActiveRequest {
        self.guard.request()
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let request = self.guard.request();
        let (prompt_tokens, output_tokens) = request.tokens();
        self.metrics.requests().paid(request.caller(), prompt_tokens, output_tokens);
    }
}
