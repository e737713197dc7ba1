//! The requests that are being answered: listed, counted, and cancelled by id.
//! It holds numbers and names; what was asked and answered is never here.

use crate::auth::{Account, Caller};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// All requests that are being answered, at every door. Clones are the same table.
#[derive(Clone, Debug)]
pub struct Requests(Arc<Table>);

#[derive(Debug)]
struct Table {
    max_requests: usize,
    entries: Mutex<Entries>,
    num_active: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct Entries {
    next: u64,
    by_number: BTreeMap<u64, ActiveRequest>,
}

/// There are as many requests as there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{max_requests} requests are being answered already")]
pub struct TooManyRequests {
    /// The bound.
    pub max_requests: usize,
}

/// One request while it is answered. Whoever answers reports through it and
/// ends when [`ActiveRequest::cancelled`] does; clones are the same request.
#[derive(Clone, Debug)]
pub struct ActiveRequest(Arc<Active>);

#[derive(Debug)]
struct Active {
    id: Arc<str>,
    other_id: OnceLock<Arc<str>>,
    model: Mutex<Option<Arc<str>>>,
    account: Arc<Account>,
    arrived: Instant,
    prompt_tokens: AtomicU32,
    output_tokens: AtomicU32,
    is_running: AtomicBool,
    cancelled: CancellationToken,
}

/// The place of a request in the table; dropping it gives the place back.
#[derive(Debug)]
pub struct RequestGuard {
    table: Requests,
    number: u64,
    request: ActiveRequest,
}

/// What `GET /v1/requests` says of one request.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct RequestView {
    /// As in the `x-request-id` of its response.
    pub id: Arc<str>,
    /// The model that was asked for, once the body has been read.
    pub model: Option<Arc<str>>,
    /// `cancelling`, `running` or `waiting`.
    pub state: &'static str,
    /// Since it arrived.
    pub age_ms: u64,
    /// Tokens of its prompt, once they are counted.
    pub prompt_tokens: u32,
    /// Tokens sampled so far, over all of its choices.
    pub output_tokens: u32,
    /// The name of the key that pays for it.
    pub key: Option<Arc<str>>,
}

impl Requests {
    /// An empty table of this many places.
    pub fn new(max_requests: usize) -> Self {
        let (num_active, _) = watch::channel(0);
        Self(Arc::new(Table { max_requests, entries: Mutex::default(), num_active }))
    }

    /// Takes a place. Ids are the clients' and need not differ.
    ///
    /// # Errors
    ///
    /// [`TooManyRequests`] when no place is free.
    pub fn register(&self, id: &str, account: Arc<Account>) -> Result<RequestGuard, TooManyRequests> {
        let mut entries = self.entries();
        if entries.by_number.len() >= self.0.max_requests {
            return Err(TooManyRequests { max_requests: self.0.max_requests });
        }
        let request = ActiveRequest::of(id, account);
        let number = entries.next;
        entries.next += 1;
        entries.by_number.insert(number, request.clone());
        self.0.num_active.send_replace(entries.by_number.len());
        Ok(RequestGuard { table: self.clone(), number, request })
    }

    /// The requests that `caller` may see, oldest first.
    pub fn list(&self, caller: &Caller) -> Vec<RequestView> {
        let entries = self.entries();
        entries.by_number.values().filter(|request| request.is_visible_to(caller)).map(|r| r.view()).collect()
    }

    /// Ends all requests of this id that `caller` may see, and says how many
    /// there were. The id may be that of the response's header or of its body.
    pub fn cancel(&self, id: &str, caller: &Caller) -> usize {
        let inner = id.strip_prefix("chatcmpl-").or_else(|| id.strip_prefix("cmpl-")).unwrap_or(id);
        let entries = self.entries();
        let is_named = |request: &&ActiveRequest| {
            let other = request.0.other_id.get().map_or(&*request.0.id, |other| other);
            [id, inner].iter().any(|wanted| *wanted == &*request.0.id || *wanted == other)
        };
        let named = entries.by_number.values().filter(is_named);
        let mut num_cancelled = 0;
        for request in named.filter(|request| request.is_visible_to(caller)) {
            request.0.cancelled.cancel();
            num_cancelled += 1;
        }
        num_cancelled
    }

    /// Ends every request.
    pub fn cancel_all(&self) {
        for request in self.entries().by_number.values() {
            request.0.cancelled.cancel();
        }
    }

    /// How many requests are being answered.
    pub fn num_active(&self) -> usize {
        *self.0.num_active.borrow()
    }

    /// Returns when no request is being answered.
    pub async fn idle(&self) {
        let mut num_active = self.0.num_active.subscribe();
        // The sender lives as long as `self`.
        let _ = num_active.wait_for(|&active| active == 0).await;
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ActiveRequest {
    /// A request that stands in no table, from a caller without limits.
    pub fn new(id: &str, caller: Caller) -> Self {
        Self::of(id, Arc::new(Account::unlimited(caller)))
    }

    fn of(id: &str, account: Arc<Account>) -> Self {
        Self(Arc::new(Active {
            id: id.into(),
            other_id: OnceLock::new(),
            model: Mutex::default(),
            account,
            arrived: Instant::now(),
            prompt_tokens: AtomicU32::new(0),
            output_tokens: AtomicU32::new(0),
            is_running: AtomicBool::new(false),
            cancelled: CancellationToken::new(),
        }))
    }

    /// Its id, as the client knows it.
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// Gives it a second id to be cancelled by: the one in the request's body.
    pub fn also_called(&self, id: &str) {
        self.0.other_id.get_or_init(|| id.into());
    }

    /// Who pays for it.
    pub fn caller(&self) -> &Caller {
        self.0.account.caller()
    }

    /// Says which model answers.
    pub fn set_model(&self, model: &str) {
        *self.0.model.lock().unwrap_or_else(PoisonError::into_inner) = Some(model.into());
    }

    /// Says how long the prompt is, once.
    pub fn set_prompt_tokens(&self, num_tokens: u32) {
        self.0.account.charge(num_tokens);
        self.0.prompt_tokens.store(num_tokens, Ordering::Relaxed);
    }

    /// Counts sampled tokens.
    pub fn add_output_tokens(&self, num_tokens: u32) {
        self.0.account.charge(num_tokens);
        self.0.is_running.store(true, Ordering::Relaxed);
        self.0.output_tokens.fetch_add(num_tokens, Ordering::Relaxed);
    }

    /// Tokens of the prompt, and tokens sampled so far.
    pub fn tokens(&self) -> (u32, u32) {
        (self.0.prompt_tokens.load(Ordering::Relaxed), self.0.output_tokens.load(Ordering::Relaxed))
    }

    /// When it arrived.
    pub fn arrived(&self) -> Instant {
        self.0.arrived
    }

    /// Whether somebody cancelled it by its id.
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.is_cancelled()
    }

    /// Returns when somebody cancels it by its id.
    pub async fn cancelled(&self) {
        self.0.cancelled.cancelled().await;
    }

    /// Callers see their own; administrators see everyone's.
    fn is_visible_to(&self, caller: &Caller) -> bool {
        caller.is_admin || caller.key == self.caller().key
    }

    fn view(&self) -> RequestView {
        let (prompt_tokens, output_tokens) = self.tokens();
        let state = if self.is_cancelled() {
            "cancelling"
        } else if self.0.is_running.load(Ordering::Relaxed) {
            "running"
        } else {
            "waiting"
        };
        RequestView {
            id: self.0.id.clone(),
            model: self.0.model.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            state,
            age_ms: self.0.arrived.elapsed().as_millis() as u64,
            prompt_tokens,
            output_tokens,
            key: self.caller().name.clone(),
        }
    }
}

impl RequestGuard {
    /// The handle for whoever answers.
    pub fn request(&self) -> &ActiveRequest {
        &self.request
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        let mut entries = self.table.entries();
        entries.by_number.remove(&self.number);
        self.table.0.num_active.send_replace(entries.by_number.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(key: u64, is_admin: bool) -> Caller {
        Caller { key, is_admin, ..Caller::anonymous() }
    }

    fn account(key: u64) -> Arc<Account> {
        Arc::new(Account::unlimited(caller(key, false)))
    }

    #[test]
    fn a_place_is_given_back_when_its_guard_is_dropped() {
        let requests = Requests::new(1);
        let guard = requests.register("a", account(1)).unwrap();
        assert_eq!(requests.register("b", account(1)).unwrap_err(), TooManyRequests { max_requests: 1 });
        drop(guard);
        assert_eq!(requests.num_active(), 0);
        assert!(requests.register("b", account(1)).is_ok());
    }

    #[test]
    fn callers_see_and_cancel_only_their_own() {
        let requests = Requests::new(8);
        let mine = requests.register("a", account(1)).unwrap();
        let other = requests.register("a", account(2)).unwrap();
        assert_eq!(requests.list(&caller(1, false)).len(), 1);
        assert_eq!(requests.list(&caller(9, true)).len(), 2);
        assert_eq!(requests.cancel("a", &caller(1, false)), 1);
        assert!(mine.request().is_cancelled());
        assert!(!other.request().is_cancelled());
    }

    #[test]
    fn a_response_id_names_its_request() {
        let requests = Requests::new(8);
        let guard = requests.register("a", account(1)).unwrap();
        assert_eq!(requests.cancel("chatcmpl-a", &caller(1, false)), 1);
        assert!(guard.request().is_cancelled());
        assert_eq!(requests.cancel("chatcmpl-b", &caller(1, false)), 0);
        guard.request().also_called("b");
        assert_eq!(requests.cancel("chatcmpl-b", &caller(1, false)), 1);
    }

    #[test]
    fn a_view_has_numbers_and_no_text() {
        let requests = Requests::new(8);
        let guard = requests.register("a", account(1)).unwrap();
        guard.request().set_model("m");
        guard.request().set_prompt_tokens(5);
        assert_eq!(requests.list(&caller(1, false))[0].state, "waiting");
        guard.request().add_output_tokens(2);
        let view = &requests.list(&caller(1, false))[0];
        assert_eq!((view.state, view.prompt_tokens, view.output_tokens), ("running", 5, 2));
    }
}
