//! Hands generations to the engine. It renders and sizes prompts and derives
//! seeds; what comes back is the business of the stream.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Instant;

use chorale_coordinator::{Engine, Rejected, Request, Submission};
use chorale_harmony::{TokenId, render_for_completion, special};
use chorale_plan::SamplingParams;

use super::choice::Choice;
use super::constrain::Armed;
use super::stream::Running;
use super::{Accepted, Generation, GenerationStream, Input, Observer, Output};
use crate::ActiveRequest;
use crate::error::ApiError;

/// Turns generations into streams. Clones share the same engine.
#[derive(Clone)]
pub struct Generator {
    engine: Engine,
    /// Prompt and output of a choice together.
    max_context_tokens: u32,
    observer: Arc<dyn Observer>,
}

/// A generation whose prompts are tokens that fit the context.
#[derive(Clone, Debug)]
pub struct Prepared {
    generation: Generation,
    /// Each with what each of its choices may have.
    prompts: Vec<(Vec<TokenId>, NonZeroU32)>,
}

impl Prepared {
    /// The prompts, as the model will read them.
    pub fn prompts(&self) -> impl Iterator<Item = &[TokenId]> {
        self.prompts.iter().map(|(prompt, _)| prompt.as_slice())
    }

    /// Of all prompts together.
    pub fn num_prompt_tokens(&self) -> usize {
        self.prompts().map(<[TokenId]>::len).sum()
    }
}

impl Generator {
    /// A generator for this engine, whose sequences hold `max_context_tokens` at most.
    pub fn new(engine: Engine, max_context_tokens: u32, observer: Arc<dyn Observer>) -> Self {
        Self { engine, max_context_tokens, observer }
    }

    /// The engine.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Prompt and output of a choice together.
    pub fn max_context_tokens(&self) -> u32 {
        self.max_context_tokens
    }

    /// Writes the prompts, which takes a while for long ones: 100 ms a megabyte.
    ///
    /// # Errors
    ///
    /// A prompt leaves no room for an answer.
    pub fn prepare(&self, mut generation: Generation) -> Result<Prepared, ApiError> {
        let prompts = match &mut generation.input {
            Input::Conversation { conversation, options } => {
                let prompt = render_for_completion(conversation, options)
                    .map_err(|error| ApiError::invalid("messages", error))?;
                vec![prompt]
            }
            Input::Prompts(prompts) => std::mem::take(prompts),
        };
        let prompts = prompts
            .into_iter()
            .map(|prompt| self.room(&prompt, generation.max_tokens).map(|room| (prompt, room)))
            .collect::<Result<_, _>>()?;
        Ok(Prepared { generation, prompts })
    }

    fn room(&self, prompt: &[TokenId], max_tokens: Option<NonZeroU32>) -> Result<NonZeroU32, ApiError> {
        let room = u64::from(self.max_context_tokens).saturating_sub(prompt.len() as u64);
        let room = u32::try_from(room).ok().and_then(NonZeroU32::new).ok_or(Rejected::ContextExceeded {
            prompt_tokens: prompt.len() as u64,
            max_context_tokens: self.max_context_tokens,
        })?;
        Ok(max_tokens.map_or(room, |wanted| wanted.min(room)))
    }

    /// [`Self::prepare`] and [`Self::submit`].
    ///
    /// # Errors
    ///
    /// As theirs.
    pub async fn start(
        &self,
        generation: Generation,
        request: ActiveRequest,
        door: &'static str,
    ) -> Result<GenerationStream, ApiError> {
        self.submit(self.prepare(generation)?, request, door).await
    }

    /// Hands all choices to the engine; if one is refused, none goes on.
    ///
    /// # Errors
    ///
    /// The queue is full, or the engine ends.
    pub async fn submit(
        &self,
        prepared: Prepared,
        request: ActiveRequest,
        door: &'static str,
    ) -> Result<GenerationStream, ApiError> {
        let accepted = Instant::now();
        let Prepared { generation, prompts } = prepared;
        let priority = generation.priority.saturating_add(request.caller().priority);
        let prompt_tokens = prompts.iter().map(|(prompt, _)| prompt.len() as u32).sum();
        let max_tokens = prompts.iter().map(|(_, room)| room.get()).max().unwrap_or(0);
        let share = request.caller().share();
        let sequences = prompts.iter().flat_map(|(prompt, room)| {
            (0..generation.n.get()).map(|k| {
                let sequence = generation.sequence(k);
                Request { prompt: prompt.clone(), max_tokens: *room, share, priority, ..sequence }
            })
        });
        // All at once: the engine answers between steps, and there is no need to
        // wait for a step for each choice.
        let submitted = futures_util::future::try_join_all(sequences.map(|sequence| {
            self.engine.submit(Submission { request: sequence, constraint: generation.arm() })
        }));
        let tokens = tokio::select! {
            biased;
            () = request.cancelled() => return Err(ApiError::Cancelled),
            tokens = within(generation.deadline, submitted) => tokens??,
        };
        let prompt_tokens_of = |index: usize| prompts[index / generation.n.get() as usize].0.len() as u32;
        let choices = tokens.into_iter().enumerate().map(|(index, tokens)| Running {
            choice: Choice::new(&generation),
            tokens: Some(tokens),
            prompt_tokens: prompt_tokens_of(index),
            cached_tokens: 0,
            first_token: None,
            last_token: None,
            cancelling: None,
        });
        let choices = choices.collect();
        request.set_prompt_tokens(prompt_tokens);
        self.observer.accepted(&Accepted {
            id: request.id(),
            door,
            key: request.caller().name.as_ref(),
            prompt_tokens,
            max_tokens,
            n: generation.n.get(),
            priority,
        });
        Ok(GenerationStream {
            engine: self.engine.clone(),
            request,
            observer: Arc::clone(&self.observer),
            choices,
            n: generation.n.get(),
            turn: 0,
            deadline: generation.deadline,
            accepted,
            over: None,
        })
    }
}

/// The future's outcome, unless the deadline comes first.
async fn within<T>(
    deadline: Option<tokio::time::Instant>,
    future: impl Future<Output = T>,
) -> Result<T, ApiError> {
    match deadline {
        Some(deadline) => {
            tokio::time::timeout_at(deadline, future).await.map_err(|_| ApiError::DeadlineExceeded)
        }
        None => Ok(future.await),
    }
}

impl Generation {
    /// The `k`-th continuation of a prompt, as the scheduler wants it.
    fn sequence(&self, k: u32) -> Request {
        let goes_past_calls = self.goes_past_calls();
        let sampling =
            SamplingParams { seed: seed_of_choice(self.sampling.seed, k), ..self.sampling.clone() };
        let mut stop_tokens = self.stop_token_ids.clone();
        if goes_past_calls && !self.ignore_eos {
            stop_tokens.push(special::RETURN);
        }
        Request {
            min_tokens: self.min_tokens,
            sampling,
            stop_tokens,
            ignore_eos: self.ignore_eos || goes_past_calls,
            cache_salt: self.cache_salt.clone(),
            ..Request::new(Vec::new(), NonZeroU32::MIN)
        }
    }

    fn arm(&self) -> Option<Box<dyn chorale_coordinator::Constraint>> {
        self.constraint.clone().map(|constraint| Box::new(Armed(constraint)) as _)
    }

    fn goes_past_calls(&self) -> bool {
        matches!(self.output, Output::Harmony { past_calls: true, .. })
    }

    /// Every token after which the engine ends a sequence.
    pub(super) fn all_stop_tokens(&self) -> Vec<TokenId> {
        let own: &[TokenId] = match (self.ignore_eos, self.goes_past_calls()) {
            (true, _) => &[],
            (false, true) => &[special::RETURN],
            (false, false) => &special::STOP,
        };
        self.stop_token_ids.iter().chain(own).copied().collect()
    }
}

/// The first choice has the request's seed, so asking for more choices does not
/// change it; the others' are spread from it (SplitMix64's finaliser).
fn seed_of_choice(seed: u64, k: u32) -> u64 {
    if k == 0 {
        return seed;
    }
    let mut z = seed.wrapping_add(u64::from(k).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use super::seed_of_choice;

    #[test]
    fn choices_have_seeds_of_their_own_and_the_first_the_requests() {
        let seeds: Vec<u64> = (0..100).map(|k| seed_of_choice(7, k)).collect();
        assert_eq!(seeds[0], 7);
        let distinct: std::collections::HashSet<u64> = seeds.iter().copied().collect();
        assert_eq!(distinct.len(), seeds.len());
        assert_eq!(seeds[3], seed_of_choice(7, 3));
    }
}
