//! Plays a script against a scheduler. The one place that knows the API.

use std::collections::VecDeque;
use std::fmt::Write;
use std::num::NonZeroU32;

use chorale_plan::{Rank, Sample, SequenceId, SliceTokens, StepOutput, StepPlan};
use chorale_scheduler::{
    Config, FinishReason, HomeConfig, Progress, Rejected, Request, Scheduler, Stats, Usage,
};
use expect_test::Expect;

pub(crate) const EOS: u32 = 1;

/// Homes of 64 pages in each pool and the given budgets; pages of 4 tokens, a
/// window of 8.
pub(crate) fn config(budgets: &[u32]) -> Config {
    let home = |(rank, &budget): (usize, &u32)| HomeConfig {
        rank: Rank(rank as u32),
        num_full_blocks: if budget == 0 { 0 } else { 64 },
        num_sliding_blocks: if budget == 0 { 0 } else { 64 },
        max_step_tokens: budget,
        max_step_slices: budget.min(8),
    };
    Config {
        homes: budgets.iter().enumerate().map(home).collect(),
        block_size_tokens: 4,
        window_tokens: Some(8),
        max_context_tokens: 256,
        max_steps_in_flight: 1,
        max_waiting_requests: 100,
        max_waiting_tokens: 1000,
        max_waiting_ms: None,
        max_home_imbalance_sequences: 2,
        prefix_caching: true,
        prompt_token_cost: 1,
        output_token_cost: 2,
        eos_tokens: vec![EOS],
    }
}

/// One home of so many pages in each pool.
pub(crate) fn pages(num_full_blocks: u32, num_sliding_blocks: u32) -> Config {
    let mut config = config(&[32]);
    config.homes[0].num_full_blocks = num_full_blocks;
    config.homes[0].num_sliding_blocks = num_sliding_blocks;
    config
}

/// Compares the trace of a script.
pub(crate) fn check(config: Config, script: &str, expect: Expect) {
    let mut play = Play::new(config);
    play.run(script);
    expect.assert_eq(&play.trace);
}

/// Compares how the sequences of a script end.
pub(crate) fn check_ends(config: Config, script: &str, expect: Expect) {
    let mut play = Play::new(config);
    play.run(script);
    expect.assert_eq(&play.ends);
}

pub(crate) struct Play {
    pub(crate) scheduler: Scheduler,
    pub(crate) trace: String,
    pub(crate) ends: String,
    /// Write the pages of each slice, too.
    pub(crate) with_pages: bool,
    max_in_flight: usize,
    in_flight: VecDeque<StepPlan>,
    /// Of each sequence, at which of its outputs the end is sampled.
    ends_at: Vec<Option<u32>>,
    num_output: Vec<u32>,
    now_ms: u64,
}

impl Play {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            max_in_flight: config.max_steps_in_flight as usize,
            scheduler: Scheduler::new(config).unwrap(),
            trace: String::new(),
            ends: String::new(),
            with_pages: false,
            in_flight: VecDeque::new(),
            ends_at: Vec::new(),
            num_output: Vec::new(),
            now_ms: 0,
        }
    }

    pub(crate) fn run(&mut self, script: &str) {
        self.play(script);
        for _ in 0..1000 {
            if self.scheduler.is_idle() {
                return;
            }
            self.step();
        }
        panic!("the script does not end:\n{}", self.trace);
    }

    /// Plays the words and no further.
    pub(crate) fn play(&mut self, script: &str) {
        for word in script.split_whitespace() {
            match word {
                ";" => self.step(),
                "!" => {
                    self.scheduler.uncompute_all();
                    self.in_flight.clear();
                }
                _ => match word.strip_prefix('x') {
                    Some(number) => {
                        let ended = self.scheduler.cancel(SequenceId(number.parse().unwrap()));
                        self.note(ended);
                    }
                    None => drop(self.submit(word).unwrap()),
                },
            }
            self.scheduler.check_invariants();
        }
    }

    pub(crate) fn submit(&mut self, word: &str) -> Result<SequenceId, Rejected> {
        let (request, ends_at) = request(word, self.ends_at.len());
        let id = self.scheduler.submit(request, self.now_ms)?;
        self.ends_at.push(ends_at);
        self.num_output.push(0);
        Ok(id)
    }

    /// Submits what no word stands for.
    pub(crate) fn submit_request(&mut self, request: Request) {
        self.scheduler.submit(request, self.now_ms).unwrap();
        self.ends_at.push(None);
        self.num_output.push(0);
    }

    pub(crate) fn stats(&self) -> Stats {
        self.scheduler.stats()
    }

    /// Plans as far ahead as may be, then commits the oldest step.
    pub(crate) fn step(&mut self) {
        let ended = self.scheduler.expire(self.now_ms);
        self.note(ended);
        while self.in_flight.len() < self.max_in_flight
            && let Some(plan) = self.scheduler.schedule(self.now_ms)
        {
            self.scheduler.check_invariants();
            self.draw(&plan);
            self.in_flight.push_back(plan);
        }
        if let Some(plan) = self.in_flight.pop_front() {
            let output = self.output(&plan);
            let progress = self.scheduler.commit(&plan, &output);
            self.note(progress);
            self.scheduler.check_invariants();
        }
        self.now_ms += 10;
    }

    fn output(&mut self, plan: &StepPlan) -> StepOutput {
        let mut samples = Vec::new();
        for slice in plan.slices.iter().filter(|slice| slice.sample.is_some()) {
            let index = slice.sequence.0 as usize;
            self.num_output[index] += 1;
            // Counted as planned: what follows an end is dropped anyway.
            let is_end = self.ends_at[index] == Some(self.num_output[index]);
            let token = if is_end { EOS } else { 100_000 + self.num_output[index] };
            samples.push(Sample { sequence: slice.sequence, token, logprob: None, top_logprobs: Vec::new() });
        }
        StepOutput { step: plan.step, samples }
    }

    fn draw(&mut self, plan: &StepPlan) {
        write!(self.trace, "{}:", plan.step).unwrap();
        for slice in &plan.slices {
            let (id, home, start) = (slice.sequence.0, slice.home.0, slice.num_computed);
            let fed = if slice.tokens == SliceTokens::SampledBefore { "~" } else { "" };
            let sampled = if slice.sample.is_some() { "*" } else { "" };
            write!(self.trace, " s{id}@{home}[{start}+{}{fed}]{sampled}", slice.tokens.len()).unwrap();
            if self.with_pages {
                let ids = |table: &chorale_plan::BlockTable| {
                    let ids: Vec<_> = table.blocks.iter().map(|id| id.0.to_string()).collect();
                    format!("{}:{}", table.first, ids.join(","))
                };
                write!(
                    self.trace,
                    " full {} sliding {}",
                    ids(&slice.full_blocks),
                    ids(&slice.sliding_blocks)
                )
                .unwrap();
            }
        }
        self.trace.push('\n');
    }

    fn note(&mut self, progress: impl IntoIterator<Item = Progress>) {
        for progress in progress {
            let Progress::Finished { sequence, reason, usage } = progress else { continue };
            let reason = match reason {
                FinishReason::StopToken(token) => format!("stop {token}"),
                FinishReason::WaitedTooLong => "waited too long".to_owned(),
                other => format!("{other:?}").to_lowercase(),
            };
            let Usage { prompt_tokens, cached_tokens, output_tokens, queue_ms, num_preemptions } = usage;
            let queued = queue_ms.map_or("never".to_owned(), |ms| format!("after {ms} ms"));
            let lost = if num_preemptions > 0 { format!(", lost {num_preemptions}x") } else { String::new() };
            writeln!(
                self.ends,
                "s{}: {reason}, {prompt_tokens}({cached_tokens})+{output_tokens}, began {queued}{lost}",
                sequence.0
            )
            .unwrap();
        }
    }
}

/// The request that a word stands for, and at which output it ends.
fn request(word: &str, index: usize) -> (Request, Option<u32>) {
    let mut parts = word.split('/');
    let (prompt, output) = parts.next().unwrap().split_once('+').expect("prompt+output");
    let own = 1000 * (index as u32 + 1);
    let prompt: Vec<u32> = (0..prompt.parse().unwrap()).map(|position| own + position).collect();
    let mut request = Request::new(prompt, NonZeroU32::new(output.parse().unwrap()).unwrap());
    let mut ends_at = None;
    for part in parts {
        if part == "off" {
            request.prefix_caching = false;
            continue;
        }
        let number = &part[1..];
        match &part[..1] {
            "p" => request.priority = number.parse().unwrap(),
            "k" => request.share.key = number.parse().unwrap(),
            "w" => request.share.weight = number.parse().unwrap(),
            "s" => request.cache_salt = number.as_bytes().to_vec(),
            "e" => ends_at = Some(number.parse().unwrap()),
            "d" => request.deadline_ms = Some(number.parse().unwrap()),
            "c" => {
                let common: usize = number.parse().unwrap();
                (0..common).for_each(|position| request.prompt[position] = 500 + position as u32);
            }
            _ => panic!("{part} in {word}"),
        }
    }
    (request, ends_at)
}
