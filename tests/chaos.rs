//! Chaos: streams run against a cluster while workers are killed, frozen, slowed,
//! cut off, parted from each other and throttled, as a seed says. Every stream
//! must end with the text that it would have had, and nothing may be left behind.

use crate::client::{Client, Question};
use crate::cluster::{ClusterSettings, TestCluster};
use crate::process::pause;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a fault may keep all streams waiting before the run is a failure.
const PAUSE_MAX: Duration = Duration::from_secs(45);
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// [`Fault::Slow`]: how long a worker stands and runs by turns, and how often.
const SLOW_TURN: Duration = Duration::from_millis(100);
const SLOW_TURNS: u32 = 20;
/// How much the coordinator's memory may grow, in KiB.
const GROWTH_KIB_MAX: u64 = 64 << 10;

/// What a run is made of.
#[derive(Clone, Debug)]
pub struct ChaosSettings {
    /// The cluster to be tried.
    pub cluster: ClusterSettings,
    /// Decides faults, targets and durations.
    pub seed: u64,
    /// How many faults.
    pub num_faults: usize,
    /// Streams that run at any time.
    pub num_streams: usize,
    /// Tokens of each.
    pub tokens_each: u32,
}

/// One kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// `kill -9`; the worker comes back by a later [`Fault::Rejoin`].
    Kill,
    /// A worker that was killed comes back.
    Rejoin,
    /// `SIGSTOP`, and `SIGCONT` after a while.
    Freeze,
    /// The worker's cable is cut for a while.
    Cut,
    /// What is sent to the worker comes late for a while.
    Throttle,
    /// The worker and another cannot reach each other for a while, and everyone else
    /// can.
    Part,
    /// The worker runs for a tenth of the time, for a while.
    Slow,
    /// `SIGTERM`: the worker hands over and ends.
    Leave,
}

/// Notes when events came, over all streams.
struct Pace {
    started: Instant,
    last_ms: AtomicU64,
    longest_ms: AtomicU64,
    num_events: AtomicU64,
}

impl Pace {
    fn new() -> Self {
        Self {
            started: Instant::now(),
            last_ms: AtomicU64::new(0),
            longest_ms: AtomicU64::new(0),
            num_events: AtomicU64::new(0),
        }
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn event(&self) {
        let now = self.now_ms();
        let last = self.last_ms.swap(now, Ordering::Relaxed);
        self.longest_ms.fetch_max(now.saturating_sub(last), Ordering::Relaxed);
        self.num_events.fetch_add(1, Ordering::Relaxed);
    }

    /// Forgets what was before.
    fn restart(&self) {
        self.longest_ms.store(0, Ordering::Relaxed);
    }

    /// The longest silence since the last restart, one that lasts included.
    fn longest_ms(&self) -> u64 {
        let silence = self.now_ms().saturating_sub(self.last_ms.load(Ordering::Relaxed));
        self.longest_ms.load(Ordering::Relaxed).max(silence)
    }
}

/// Sebastiano Vigna's SplitMix64: all that a run is decided by.
struct Draws(u64);

impl Draws {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn between_ms(&mut self, low: u64, high: u64) -> Duration {
        Duration::from_millis(low + self.next() % (high - low))
    }
}

/// The questions that streams ask again and again: greedy and seeded.
fn questions(tokens_each: u32) -> Vec<Question> {
    let prompts =
        ["Hello", "The capital of France is", "One, two, three,", "fn main() {", "Once upon a time"];
    let greedy = prompts.iter().map(|prompt| (prompt, 0.0));
    let seeded = prompts.iter().map(|prompt| (prompt, 1.0));
    let all = greedy.chain(seeded).zip(1..);
    all.map(|((prompt, temperature), seed)| Question {
        prompt: (*prompt).to_owned(),
        max_tokens: tokens_each,
        temperature,
        seed,
    })
    .collect()
}

/// What the streams have found.
#[derive(Default)]
struct Found {
    completed: usize,
    failures: Vec<String>,
}

/// Runs it, and gives a report. `on_fault` is told of each fault's outcome.
///
/// # Errors
///
/// What went wrong: a stream that failed or said something else, a pause that
/// took too long, or something that was left behind.
pub fn run(settings: &ChaosSettings, on_fault: &mut dyn FnMut(&Value)) -> Result<Value, String> {
    let mut cluster = TestCluster::start(settings.cluster.clone());
    cluster.wait_ready(START_TIMEOUT);
    let client = cluster.client();
    let questions = questions(settings.tokens_each);
    let mut expected = Vec::with_capacity(questions.len());
    for question in &questions {
        expected.push(client.ask(question, &|| ())?.text);
    }
    let before_kib = cluster.process(0).resident_kib();

    let pace = Pace::new();
    let (is_over, found) = (AtomicBool::new(false), Mutex::new(Found::default()));
    let faults = std::thread::scope(|scope| {
        for stream in 0..settings.num_streams {
            let (client, questions, expected, pace) = (client.clone(), &questions, &expected, &pace);
            let (is_over, found) = (&is_over, &found);
            scope.spawn(move || {
                let mut turn = stream;
                while !is_over.load(Ordering::Relaxed) {
                    let index = turn % questions.len();
                    turn += 1;
                    let outcome = ask(&client, &questions[index], &expected[index], pace);
                    let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                    match outcome {
                        Ok(()) => found.completed += 1,
                        Err(failure) => found.failures.push(format!("stream {stream}: {failure}")),
                    }
                }
            });
        }
        let mut inflict =
            Inflict { cluster: &mut cluster, draws: Draws(settings.seed), pace: &pace, down: Vec::new() };
        let faults = inflict.all(settings.num_faults, on_fault);
        is_over.store(true, Ordering::Relaxed);
        faults
    })?;
    let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(failure) = found.failures.first() {
        return Err(format!("{} streams failed; {failure}\n{}", found.failures.len(), cluster.logs()));
    }
    let growth_kib = cluster.process(0).resident_kib().saturating_sub(before_kib);
    at_rest(&client)?;
    if growth_kib > GROWTH_KIB_MAX {
        return Err(format!("the coordinator grew by {growth_kib} KiB"));
    }
    Ok(report(settings, &faults, &found, &pace, growth_kib))
}

fn ask(client: &Client, question: &Question, expected: &str, pace: &Pace) -> Result<(), String> {
    let answer = client.ask(question, &|| pace.event())?;
    if answer.text == expected {
        return Ok(());
    }
    let same = answer.text.chars().zip(expected.chars()).take_while(|(a, b)| a == b).count();
    Err(format!("{question:?} was answered differently from character {same} on: {:?}", answer.text))
}

/// Nothing runs, nothing waits, no page is held.
fn at_rest(client: &Client) -> Result<(), String> {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let held = ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"]
            .map(|name| client.metric(name));
        if held.iter().all(|value| *value == Ok(0.0)) {
            return Ok(());
        }
        if Instant::now() > until {
            return Err(format!("left behind (running, waiting, pages): {held:?}"));
        }
        pause(Duration::from_millis(50));
    }
}

struct Inflict<'a> {
    cluster: &'a mut TestCluster,
    draws: Draws,
    pace: &'a Pace,
    /// Workers that are not there.
    down: Vec<usize>,
}

impl Inflict<'_> {
    fn all(&mut self, num_faults: usize, on_fault: &mut dyn FnMut(&Value)) -> Result<Vec<Value>, String> {
        let mut faults = Vec::with_capacity(num_faults);
        for number in 0..num_faults {
            let between = self.draws.between_ms(200, 1200);
            pause(between);
            let (fault, worker) = self.draw();
            self.pace.restart();
            let events = self.pace.num_events.load(Ordering::Relaxed);
            let lasted = self.inflict(fault, worker);
            self.recovered(events).map_err(|why| {
                format!("fault {number}, {fault:?} of worker {worker}: {why}\n{}", self.cluster.logs())
            })?;
            let outcome = json!({
                "fault": format!("{fault:?}").to_lowercase(), "worker": worker,
                "lasted_ms": lasted.as_millis() as u64, "pause_ms": self.pace.longest_ms(),
            });
            on_fault(&outcome);
            faults.push(outcome);
        }
        for worker in std::mem::take(&mut self.down) {
            self.cluster.revive(worker);
        }
        let num_workers = self.cluster.workers().len();
        self.cluster.wait_ranks(num_workers, START_TIMEOUT);
        Ok(faults)
    }

    /// What happens next, and to whom. Two workers always stay.
    fn draw(&mut self) -> (Fault, usize) {
        let up = self.up();
        let mut choices = Vec::new();
        if !self.down.is_empty() {
            choices.extend([Fault::Rejoin; 3]);
        }
        choices.extend([Fault::Freeze, Fault::Slow]);
        if up.len() > 2 {
            choices.extend([Fault::Kill, Fault::Kill, Fault::Leave]);
        }
        if self.cluster.network.has_links() {
            choices.extend([Fault::Cut, Fault::Throttle, Fault::Part]);
        }
        let fault = choices[self.draws.below(choices.len())];
        let among = if fault == Fault::Rejoin { &self.down } else { &up };
        (fault, among[self.draws.below(among.len())])
    }

    fn up(&self) -> Vec<usize> {
        self.cluster.workers().filter(|worker| !self.down.contains(worker)).collect()
    }

    /// Does it, and undoes what passes by itself.
    fn inflict(&mut self, fault: Fault, worker: usize) -> Duration {
        let started = Instant::now();
        let place = self.cluster.place(worker).clone();
        match fault {
            Fault::Kill => {
                self.cluster.kill(worker);
                self.down.push(worker);
            }
            Fault::Leave => {
                self.cluster.process(worker).signal("TERM");
                let left = self.cluster.process(worker).wait(Duration::from_secs(30));
                assert!(left.is_some(), "a worker that is told to end ends:\n{}", self.cluster.logs());
                self.cluster.kill(worker);
                self.down.push(worker);
            }
            Fault::Rejoin => {
                self.down.retain(|down| *down != worker);
                self.cluster.revive(worker);
            }
            Fault::Freeze => {
                self.cluster.process(worker).signal("STOP");
                pause(self.draws.between_ms(100, 3000));
                self.cluster.process(worker).signal("CONT");
            }
            Fault::Cut => {
                self.cluster.network.cut(&place);
                pause(self.draws.between_ms(100, 3000));
                self.cluster.network.mend(&place);
            }
            Fault::Part => {
                let others: Vec<usize> = self.up().into_iter().filter(|other| *other != worker).collect();
                let other = self.cluster.place(others[self.draws.below(others.len())]).clone();
                self.cluster.network.part(&place, &other);
                pause(self.draws.between_ms(1000, 8000));
                self.cluster.network.join(&place, &other);
            }
            Fault::Slow => self.cluster.process(worker).limp(SLOW_TURN, SLOW_TURNS),
            Fault::Throttle => {
                self.cluster.network.throttle(&place, 400);
                pause(self.draws.between_ms(500, 2000));
                self.cluster.network.mend(&place);
            }
        }
        started.elapsed()
    }

    /// Waits until tokens come again, and a little longer, for what follows at once.
    fn recovered(&mut self, events_before: u64) -> Result<(), String> {
        let until = Instant::now() + PAUSE_MAX;
        pause(Duration::from_millis(1000));
        loop {
            let silence = self.pace.now_ms().saturating_sub(self.pace.last_ms.load(Ordering::Relaxed));
            let has_moved = self.pace.num_events.load(Ordering::Relaxed) > events_before;
            if has_moved && silence < 500 {
                return Ok(());
            }
            if Instant::now() > until {
                return Err(format!("no token came for {silence} ms"));
            }
            pause(Duration::from_millis(20));
        }
    }
}

fn report(settings: &ChaosSettings, faults: &[Value], found: &Found, pace: &Pace, growth_kib: u64) -> Value {
    let mut by_kind: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for fault in faults {
        let pause_ms = fault["pause_ms"].as_u64().unwrap_or(0);
        by_kind.entry("all").or_default().push(pause_ms);
        by_kind.entry(fault["fault"].as_str().unwrap_or("")).or_default().push(pause_ms);
    }
    let pauses = by_kind.into_iter().map(|(kind, mut pauses)| {
        pauses.sort_unstable();
        let at = |share: f64| pauses[((pauses.len() - 1) as f64 * share).round() as usize];
        let row = json!({"count": pauses.len(), "median_ms": at(0.5), "p99_ms": at(0.99), "max_ms": at(1.0)});
        (kind.to_owned(), row)
    });
    json!({
        "seed": settings.seed, "faults": faults.len(), "streams_completed": found.completed,
        "events": pace.num_events.load(Ordering::Relaxed), "seconds": pace.now_ms() as f64 / 1000.0,
        "coordinator_growth_kib": growth_kib, "pauses": pauses.collect::<serde_json::Map<_, _>>(),
    })
}
