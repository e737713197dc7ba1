//! What the generation path tells those who measure it. It counts nothing
//! itself; the server turns these calls into metrics and its list of requests.

use std::sync::Arc;
use std::time::Duration;

use chorale_coordinator::Usage;
use chorale_harmony::Repairs;

use super::Finish;

/// Looks on. Called from the requests' own tasks, so it must be quick and never
/// wait; each accepted request is followed by exactly one `finished`.
pub trait Observer: Send + Sync + 'static {
    /// A request is in the engine's queue.
    fn accepted(&self, _request: &Accepted<'_>) {}
    /// The first token of one choice, and how long it took since the request was accepted.
    fn first_token(&self, _latency: Duration) {}
    /// A later token of one choice, and how long it took since the one before.
    fn next_token(&self, _latency: Duration) {}
    /// One choice is over.
    fn choice_finished(&self, _choice: &FinishedChoice<'_>) {}
    /// The request is over, or its client is gone.
    fn finished(&self, _request: &Finished<'_>) {}
}

/// Nobody looks on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unobserved;

impl Observer for Unobserved {}

/// A request that was let in.
#[derive(Clone, Debug)]
pub struct Accepted<'r> {
    /// Its id, as the client knows it.
    pub id: &'r str,
    /// Through which door it came: `chat`, `completions`, `grpc`.
    pub door: &'static str,
    /// The name of the key that pays, where keys are asked for.
    pub key: Option<&'r Arc<str>>,
    /// Of all prompts together; a prompt that is continued several times counts once.
    pub prompt_tokens: u32,
    /// What each choice may have.
    pub max_tokens: u32,
    /// How many answers are wanted to each prompt.
    pub n: u32,
    /// The engine's queue, lower first.
    pub priority: i32,
}

/// A choice that is over.
#[derive(Clone, Debug)]
pub struct FinishedChoice<'r> {
    /// Why it ended.
    pub outcome: Outcome<'r>,
    /// What it took. Where the client left first, it is not known how much came
    /// from the cache and how long it waited.
    pub usage: Usage,
    /// From acceptance to the end.
    pub latency: Duration,
    /// From the first token to the last, if there were any.
    pub decode: Option<Duration>,
    /// What of harmony had to be put right.
    pub repairs: Repairs,
}

/// A request that is over.
#[derive(Clone, Debug)]
pub struct Finished<'r> {
    /// Its id.
    pub id: &'r str,
    /// How it ended: its last choice's way, or the first that failed.
    pub outcome: Outcome<'r>,
    /// From acceptance to the end.
    pub latency: Duration,
}

/// How something ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome<'r> {
    /// As it should.
    Finished(&'r Finish),
    /// The client dropped it.
    Abandoned,
    /// Somebody cancelled it, it was too late, or the engine failed: the code
    /// of the error.
    Failed(&'static str),
}

impl Outcome<'_> {
    /// What metrics call it: `stop`, `length`, `tool_calls`, `abort` or `error`.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Finished(finish) => finish.as_str(),
            Self::Abandoned | Self::Failed("cancelled") => "abort",
            Self::Failed(_) => "error",
        }
    }
}
