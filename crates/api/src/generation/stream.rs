//! The updates of one request as they come, from all of its choices. Dropping
//! the stream cancels what is left; it neither formats nor renders.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use chorale_coordinator::{Engine, FinishReason, TokenEvent, TokenStream, Usage};
use chorale_plan::Sample;

use super::choice::Choice;
use super::{Finish, Finished, FinishedChoice, Observer, Outcome, Part, TokenCounts, Update};
use crate::ActiveRequest;
use crate::error::ApiError;

/// How long a choice that is over waits for the engine to say what it took. The
/// engine answers after the step that runs.
const CANCEL_PATIENCE: Duration = Duration::from_secs(2);

/// What comes of one request.
pub struct GenerationStream {
    pub(super) engine: Engine,
    pub(super) request: ActiveRequest,
    pub(super) observer: Arc<dyn Observer>,
    pub(super) choices: Vec<Running>,
    /// How many choices each prompt has.
    pub(super) n: u32,
    /// The choice whose turn it is to be asked first.
    pub(super) turn: usize,
    pub(super) deadline: Option<tokio::time::Instant>,
    pub(super) accepted: Instant,
    /// How it ended, once it has.
    pub(super) over: Option<Over>,
}

/// One choice and where its tokens come from.
pub(super) struct Running {
    pub(super) choice: Choice,
    /// Gone when the choice is over.
    pub(super) tokens: Option<TokenStream>,
    pub(super) prompt_tokens: u32,
    pub(super) cached_tokens: u32,
    pub(super) first_token: Option<Instant>,
    pub(super) last_token: Option<Instant>,
    /// Until when the engine may answer that it cancelled the sequence.
    pub(super) cancelling: Option<Cancelling>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Cancelling {
    until: tokio::time::Instant,
    is_told: bool,
}

/// How a request ended.
#[derive(Clone, Debug)]
pub(super) enum Over {
    Finished(Finish),
    Failed(&'static str),
}

/// What there was to wait for.
enum Happened {
    Event(usize, Option<TokenEvent>),
    CancelledById,
    Late(tokio::time::Instant),
}

impl GenerationStream {
    /// The next update; `None` after the last, and after an error.
    ///
    /// Nothing is lost when the future is dropped before it is done.
    ///
    /// # Errors
    ///
    /// The request was cancelled, its deadline passed, or the engine failed.
    pub async fn next(&mut self) -> Option<Result<Update, ApiError>> {
        loop {
            if self.over.is_some() {
                return None;
            }
            self.tell_cancelled().await;
            let update = match self.wait().await {
                Happened::Event(index, event) => self.event(index, event),
                Happened::CancelledById => Err(ApiError::Cancelled),
                Happened::Late(now) => self.late(now),
            };
            match update {
                Ok(None) => {}
                Ok(Some(update)) => return Some(Ok(update)),
                Err(error) => {
                    self.fail(&error);
                    return Some(Err(error));
                }
            }
        }
    }

    /// The request's id.
    pub fn request(&self) -> &ActiveRequest {
        &self.request
    }

    /// How many choices there are, over all prompts.
    pub fn num_choices(&self) -> u32 {
        self.choices.len() as u32
    }

    /// What all choices took so far.
    pub fn usage(&self) -> TokenCounts {
        let mut sum = TokenCounts::default();
        for (index, running) in self.choices.iter().enumerate() {
            let counts = running.counts();
            // A prompt that is continued several times counts once.
            if (index as u32).is_multiple_of(self.n) {
                sum.prompt_tokens += counts.prompt_tokens;
                sum.cached_tokens += counts.cached_tokens;
            }
            sum.completion_tokens += counts.completion_tokens;
            sum.reasoning_tokens += counts.reasoning_tokens;
        }
        sum
    }

    async fn wait(&mut self) -> Happened {
        let late = self.choices.iter().filter_map(|running| running.cancelling.map(|it| it.until));
        let late = late.chain(self.deadline).min();
        let request = self.request.clone();
        let Self { choices, turn, .. } = self;
        let lateness = async {
            match late {
                Some(late) => {
                    tokio::time::sleep_until(late).await;
                    late
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = request.cancelled() => Happened::CancelledById,
            (index, event) = std::future::poll_fn(|cx| poll_choices(choices, turn, cx)) => {
                Happened::Event(index, event)
            }
            late = lateness => Happened::Late(late),
        }
    }

    /// Tells the engine of sequences that are not wanted any more.
    async fn tell_cancelled(&mut self) {
        for running in &mut self.choices {
            let (Some(cancelling), Some(tokens)) = (&mut running.cancelling, &running.tokens) else {
                continue;
            };
            if cancelling.is_told {
                continue;
            }
            let told = self.engine.cancel(tokens.sequence());
            // If the engine is too busy to be told, dropping the stream will tell it.
            let _ = tokio::time::timeout_at(cancelling.until, told).await;
            cancelling.is_told = true;
        }
    }

    fn event(&mut self, index: usize, event: Option<TokenEvent>) -> Result<Option<Update>, ApiError> {
        match event {
            Some(TokenEvent::Token(sample)) => Ok(self.token(index, sample)),
            Some(TokenEvent::Finished { reason, usage }) => self.finish(index, reason, usage).map(Some),
            Some(TokenEvent::Failed { reason }) => Err(ApiError::Engine { reason }),
            None => Err(ApiError::Engine { reason: "it stopped without an answer".to_owned() }),
        }
    }

    fn token(&mut self, index: usize, sample: Sample) -> Option<Update> {
        let now = Instant::now();
        let running = &mut self.choices[index];
        if running.choice.is_ended() {
            return None;
        }
        match running.last_token {
            None => self.observer.first_token(now - self.accepted),
            Some(last) => self.observer.next_token(now - last),
        }
        running.first_token.get_or_insert(now);
        running.last_token = Some(now);
        self.request.add_output_tokens(1);
        let parts = running.choice.push(&sample);
        if running.choice.is_ended() {
            let until = tokio::time::Instant::now() + CANCEL_PATIENCE;
            running.cancelling = Some(Cancelling { until, is_told: false });
        }
        Some(Update { choice: index as u32, samples: vec![sample], parts })
    }

    fn finish(&mut self, index: usize, reason: FinishReason, usage: Usage) -> Result<Update, ApiError> {
        let running = &mut self.choices[index];
        if !running.choice.is_ended() {
            check(reason)?;
        }
        let (mut parts, finish) = running.choice.finish(reason);
        running.tokens = None;
        running.cancelling = None;
        running.cached_tokens = usage.cached_tokens;
        let outcome = Outcome::Finished(&finish);
        self.observer.choice_finished(&running.summary(outcome, usage, self.accepted));
        parts.push(Part::Finished { finish: finish.clone(), usage: running.counts() });
        if self.choices.iter().all(|running| running.tokens.is_none()) {
            self.end(Over::Finished(finish));
        }
        Ok(Update { choice: index as u32, samples: Vec::new(), parts })
    }

    /// A deadline passed: the client's, or that of the engine's answer to a cancel.
    fn late(&mut self, now: tokio::time::Instant) -> Result<Option<Update>, ApiError> {
        let is_late = |running: &Running| running.cancelling.is_some_and(|it| it.until <= now);
        match self.choices.iter().position(is_late) {
            Some(index) => {
                let usage = self.choices[index].usage();
                self.finish(index, FinishReason::Cancelled, usage).map(Some)
            }
            None => Err(ApiError::DeadlineExceeded),
        }
    }

    fn fail(&mut self, error: &ApiError) {
        let code = error.body().error.code.unwrap_or("invalid");
        for running in &mut self.choices {
            if running.tokens.take().is_some() {
                let usage = running.usage();
                let outcome = Outcome::Failed(code);
                self.observer.choice_finished(&running.summary(outcome, usage, self.accepted));
            }
        }
        self.end(Over::Failed(code));
    }

    fn end(&mut self, over: Over) {
        let outcome = match &over {
            Over::Finished(finish) => Outcome::Finished(finish),
            Over::Failed(code) => Outcome::Failed(code),
        };
        let (id, latency) = (self.request.id(), self.accepted.elapsed());
        self.observer.finished(&Finished { id, outcome, latency });
        self.over = Some(over);
    }
}

impl Drop for GenerationStream {
    fn drop(&mut self) {
        if self.over.is_some() {
            return;
        }
        for running in self.choices.iter().filter(|running| running.tokens.is_some()) {
            let summary = running.summary(Outcome::Abandoned, running.usage(), self.accepted);
            self.observer.choice_finished(&summary);
        }
        let (id, latency) = (self.request.id(), self.accepted.elapsed());
        self.observer.finished(&Finished { id, outcome: Outcome::Abandoned, latency });
    }
}

impl Running {
    fn counts(&self) -> TokenCounts {
        let (completion_tokens, reasoning_tokens) = self.choice.num_tokens();
        TokenCounts {
            prompt_tokens: self.prompt_tokens,
            cached_tokens: self.cached_tokens,
            completion_tokens,
            reasoning_tokens,
        }
    }

    /// What is known of it without the engine.
    fn usage(&self) -> Usage {
        let (output_tokens, _) = self.choice.num_tokens();
        Usage { prompt_tokens: self.prompt_tokens, output_tokens, ..Usage::default() }
    }

    fn summary<'r>(&self, outcome: Outcome<'r>, usage: Usage, accepted: Instant) -> FinishedChoice<'r> {
        let decode = self.first_token.zip(self.last_token).map(|(first, last)| last - first);
        FinishedChoice { outcome, usage, latency: accepted.elapsed(), decode, repairs: self.choice.repairs() }
    }
}

/// Asks each choice in turn, so that none starves the others.
fn poll_choices(
    choices: &mut [Running],
    turn: &mut usize,
    cx: &mut Context<'_>,
) -> Poll<(usize, Option<TokenEvent>)> {
    for offset in 0..choices.len() {
        let index = (*turn + offset) % choices.len();
        let Some(tokens) = &mut choices[index].tokens else { continue };
        if let Poll::Ready(event) = tokens.poll_next(cx) {
            *turn = index + 1;
            return Poll::Ready((index, event));
        }
    }
    Poll::Pending
}

/// Ends that are no answer.
fn check(reason: FinishReason) -> Result<(), ApiError> {
    let unavailable = |message: &str| ApiError::Unavailable { message: message.to_owned(), retry_after_s: 1 };
    match reason {
        FinishReason::StopToken(_) | FinishReason::Length => Ok(()),
        FinishReason::Cancelled => Err(ApiError::Cancelled),
        FinishReason::Deadline => Err(ApiError::DeadlineExceeded),
        FinishReason::WaitedTooLong => Err(unavailable("the request waited too long in the queue")),
        FinishReason::NoRoom => Err(unavailable("no rank has room for the request any more")),
    }
}
