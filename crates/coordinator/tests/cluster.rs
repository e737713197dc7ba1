//! The cluster's task over workers in this process: what the engine computes on
//! them, and what becomes of a step when one of them fails. Time is paused, so
//! every deadline passes at once.

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

use chorale_coordinator::cluster::{
    BalanceRule, Cluster, ClusterConfig, ClusterExecutor, ClusterState, Connection, ModelFacts, PageBytes,
    RoomRule, RoomRules, SplitFacts, Timeouts,
};
use chorale_coordinator::{
    Engine, Executor, FinishReason, Request, SchedulerConfig, StepError, Submission, TokenEvent,
};
use chorale_plan::{
    Assignment, DenseFormat, Epoch, ExchangeOptions, FromWorker, KvFormat, Offer, PROTOCOL, Pulse, Rank,
    Sample, SliceTokens, StepOutput, StepPlan, StepReport, ToWorker,
};
use std::cell::RefCell;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc;

fn config(tensor_parallel_size: u32, data_parallel_size: u32) -> ClusterConfig {
    let page = |bytes| PageBytes { f32: bytes, bf16: bytes, fp8: bytes };
    let split =
        |dense_bytes| SplitFacts { dense_bytes, full_page_bytes: page(2), sliding_page_bytes: page(1) };
    ClusterConfig {
        tensor_parallel_size,
        data_parallel_size,
        first_epoch: Epoch(1),
        model: ModelFacts {
            checkpoint: None,
            num_layers: 2,
            num_experts: 8,
            expert_bytes: 10,
            splits: vec![split(100), split(60)],
            experts_only_bytes: 0,
        },
        rooms: RoomRules::same(RoomRule {
            max_sequence_tokens: 32,
            block_size_tokens: 4,
            max_step_tokens: 64,
            max_step_slices: 16,
            num_sliding_blocks: 200,
            min_full_blocks: 32,
            max_full_blocks: 200,
            kv_cache_bytes: None,
            max_bytes_by_default: u64::MAX,
        }),
        dense_dtype: DenseFormat::Bf16,
        kv_dtype: None,
        exchange: ExchangeOptions::exact(2000),
        transport: "channels".to_owned(),
        timeouts: Timeouts { hang_ms: 4000, ..Timeouts::default() },
        balance: BalanceRule::default(),
        max_members: 16,
    }
}

/// How a worker behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Mode {
    Well,
    /// It ends when it gets a step.
    DiesAtStep,
    /// It takes a step and says nothing of it; its pulse goes on.
    Hangs,
    /// It says nothing at all.
    Freezes,
    /// It samples one more token than it was asked for.
    Miscounts,
    /// It samples other tokens than the first of its group.
    Disagrees,
}

const MODES: [Mode; 6] =
    [Mode::Well, Mode::DiesAtStep, Mode::Hangs, Mode::Freezes, Mode::Miscounts, Mode::Disagrees];

/// A worker in a task. Says the number after the last one.
struct Worker {
    mode: Arc<AtomicU8>,
    /// All that it was told, but pulses.
    told: Arc<Mutex<Vec<ToWorker>>>,
}

impl Worker {
    async fn start(cluster: &Cluster, session: u64) -> Self {
        let worker = Self { mode: Arc::default(), told: Arc::default() };
        let (to_cluster, from) = mpsc::channel(64);
        let (to, inbox) = mpsc::channel(64);
        let peer = format!("10.0.0.{session}:40000");
        assert!(cluster.connect(Connection { from, to, peer }).await);
        let work = work(session, Arc::clone(&worker.mode), Arc::clone(&worker.told), inbox, to_cluster);
        tokio::spawn(work);
        worker
    }

    fn turn(&self, mode: Mode) {
        self.mode.store(mode as u8, Ordering::Relaxed);
    }

    fn was_told(&self, what: impl Fn(&ToWorker) -> bool) -> bool {
        self.told.lock().unwrap().iter().any(what)
    }
}

/// `None` when the stream ends.
async fn work(
    session: u64,
    mode: Arc<AtomicU8>,
    told: Arc<Mutex<Vec<ToWorker>>>,
    mut inbox: mpsc::Receiver<ToWorker>,
    outbox: mpsc::Sender<FromWorker>,
) -> Option<()> {
    let offer = Offer {
        session,
        version: "0".to_owned(),
        protocol: PROTOCOL,
        checkpoint: "abc".to_owned(),
        address: format!("10.0.0.{session}:7000"),
        device: "test".to_owned(),
        memory_bytes: 4000,
        memory_bytes_per_s: 1,
        experts_only: false,
        nccl: None,
        kv_dtypes: vec![KvFormat::F32, KvFormat::Bf16, KvFormat::Fp8],
        host_expert_bytes: 0,
    };
    outbox.send(FromWorker::Offer(offer)).await.ok()?;
    let mut pulses = tokio::time::interval(Duration::from_millis(250));
    let mut place: Option<Assignment> = None;
    let mut stuck: Option<(u64, tokio::time::Instant)> = None;
    loop {
        let mode = || MODES[mode.load(Ordering::Relaxed) as usize];
        if mode() == Mode::Freezes {
            std::future::pending::<()>().await;
        }
        let message = tokio::select! {
            message = inbox.recv() => message?,
            _ = pulses.tick() => {
                let stalled_ms = stuck.map_or(0, |(_, since)| since.elapsed().as_millis() as u32);
                let pulse = Pulse { step: stuck.map(|(step, _)| step), stalled_ms, ..Pulse::default() };
                outbox.send(FromWorker::Pulse(pulse)).await.ok()?;
                continue;
            }
        };
        if message != ToWorker::Pulse {
            told.lock().unwrap().push(message.clone());
        }
        match message {
            ToWorker::Assigned(assignment) => {
                let epoch = assignment.epoch;
                stuck = None;
                place = Some(*assignment);
                outbox.send(FromWorker::Ready { epoch }).await.ok()?;
            }
            ToWorker::Step { epoch, plan, .. } => {
                let place = place.as_ref().unwrap();
                assert_eq!(place.epoch, epoch);
                tokio::time::sleep(Duration::from_millis(5)).await;
                if mode() == Mode::DiesAtStep {
                    return None;
                }
                if mode() == Mode::Hangs {
                    stuck = Some((plan.step, tokio::time::Instant::now()));
                    continue;
                }
                let is_home = place.shape.homes().any(|home| home == place.rank);
                let is_heard = is_home || mode() == Mode::Disagrees;
                let mut samples = if is_heard { samples(&plan, place.rank) } else { Vec::new() };
                if mode() == Mode::Miscounts {
                    samples.extend(samples.first().cloned());
                }
                if mode() == Mode::Disagrees {
                    samples.iter_mut().for_each(|sample| sample.token += 1);
                }
                let output = StepOutput { step: plan.step, samples };
                let report = StepReport::default();
                outbox.send(FromWorker::Done { epoch, output, report }).await.ok()?;
            }
            _ => {}
        }
    }
}

fn samples(plan: &StepPlan, rank: Rank) -> Vec<Sample> {
    assert!(plan.slices.iter().all(|slice| slice.home.0 <= rank.0), "a rank gets its own group's slices");
    let sampled = plan.slices.iter().filter(|slice| slice.sample.is_some()).map(|slice| {
        let SliceTokens::Known(tokens) = &slice.tokens else { unreachable!("one step in flight") };
        let token = tokens.last().unwrap() + 1;
        Sample { sequence: slice.sequence, token, logprob: None, top_logprobs: Vec::new() }
    });
    sampled.collect()
}

struct Setup {
    cluster: Cluster,
    workers: Vec<Worker>,
    engine: Engine,
}

async fn set_up(config: ClusterConfig, num_workers: u64) -> Setup {
    let (cluster, executor, _) = Cluster::start(config).unwrap();
    let mut workers = Vec::new();
    for session in 1..=num_workers {
        workers.push(Worker::start(&cluster, session).await);
    }
    Setup { cluster, workers, engine: start_engine(executor).await }
}

async fn start_engine(mut executor: ClusterExecutor) -> Engine {
    let homes = executor.homes().await.unwrap();
    let scheduler = SchedulerConfig {
        homes,
        block_size_tokens: 4,
        window_tokens: Some(8),
        max_context_tokens: 128,
        max_steps_in_flight: 1,
        max_waiting_requests: 40,
        max_waiting_tokens: 1000,
        max_waiting_ms: None,
        max_home_imbalance_sequences: 4,
        prefix_caching: true,
        prompt_token_cost: 1,
        output_token_cost: 2,
        eos_tokens: vec![1],
    };
    Engine::start(scheduler, executor).unwrap().0
}

impl Setup {
    /// Every stream gets the tokens that it would have had.
    async fn run(&self, num_streams: u32) {
        let mut streams = Vec::new();
        for index in 0..num_streams {
            let prompt = vec![10 + index * 100; 5];
            let request = Request::new(prompt, NonZeroU32::new(20).unwrap());
            streams.push(self.engine.submit(Submission { request, constraint: None }).await.unwrap());
        }
        for (index, mut stream) in (0..num_streams).zip(streams) {
            for token in 1..=20 {
                let event = stream.next().await.unwrap();
                let TokenEvent::Token(sample) = event else {
                    panic!("stream {index}: {event:?} {:#?}", self.cluster.status().faults)
                };
                assert_eq!(sample.token, 10 + index * 100 + token);
            }
            let end = stream.next().await.unwrap();
            assert!(matches!(end, TokenEvent::Finished { reason: FinishReason::Length, .. }), "{end:?}");
        }
    }

    async fn reached(&self, what: impl Fn(&ClusterState) -> bool) {
        let mut status = self.cluster.watch();
        let reached = status.wait_for(|status| what(&status.state));
        tokio::time::timeout(Duration::from_secs(60), reached).await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn groups_compute_their_own_slices_and_samples_are_joined() {
    let setup = set_up(config(2, 2), 5).await;
    setup.run(12).await;
    let has_slices =
        |message: &ToWorker| matches!(message, ToWorker::Step { plan, .. } if !plan.slices.is_empty());
    assert!(setup.workers[..4].iter().all(|worker| worker.was_told(has_slices)));
    assert!(!setup.workers[4].was_told(has_slices), "it holds experts only");
    let status = setup.cluster.status();
    assert_eq!((status.state.clone(), status.num_faults), (ClusterState::Serving, 0));
    assert_eq!(status.members.iter().filter(|member| member.home == Some(Rank(2))).count(), 2);
    assert_eq!(setup.engine.stats().num_lost_steps, 0);
}

#[tokio::test(start_paused = true)]
async fn all_ranks_are_told_which_steps_come_in_halves() {
    let mut halving = config(2, 2);
    // A prompt's, and no single token's.
    halving.exchange.overlap_min_rows = Some(5);
    let setup = set_up(halving, 4).await;
    setup.run(1).await;
    let mut told = Vec::new();
    for worker in &setup.workers {
        let steps = RefCell::new(Vec::new());
        worker.was_told(|message| {
            if let ToWorker::Step { plan, .. } = message {
                steps.borrow_mut().push((plan.step, plan.in_halves));
            }
            false
        });
        told.push(steps.into_inner());
    }
    assert_eq!(told[0].iter().filter(|(_, in_halves)| *in_halves).count(), 1, "{told:?}");
    assert!(told[0].len() > 19 && told.iter().all(|steps| *steps == told[0]), "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn whatever_a_worker_does_streams_go_on() {
    for mode in MODES.into_iter().skip(1) {
        let setup = set_up(config(2, 2), 5).await;
        setup.run(3).await;
        let index = if mode == Mode::Miscounts { 2 } else { 1 };
        setup.workers[index].turn(mode);
        setup.run(8).await;
        let status = setup.cluster.status();
        assert_eq!(status.num_faults, 1, "{mode:?}: {:?}", status.faults);
        let culprit = format!("10.0.0.{}:7000", index + 1);
        assert_eq!(status.faults[0].address.as_deref(), Some(culprit.as_str()), "{mode:?}");
        let stats = setup.engine.stats();
        assert_eq!((stats.num_lost_steps, stats.num_recoveries), (1, 1), "{mode:?}");
        let pause_ms = match mode {
            Mode::Freezes => 2000,
            Mode::Hangs => 5000,
            _ => 500,
        };
        assert!(status.last_pause_ms <= pause_ms, "{mode:?}: {}", status.last_pause_ms);
    }
}

#[tokio::test(start_paused = true)]
async fn requests_wait_for_a_replacement() {
    let mut few = config(2, 1);
    // Two hold the model, and one alone does not.
    few.rooms = RoomRules::same(RoomRule { kv_cache_bytes: Some(3830), ..few.rooms.f32 });
    let setup = set_up(few, 2).await;
    setup.workers[0].turn(Mode::DiesAtStep);
    let replaced = async {
        setup.reached(|state| matches!(state, ClusterState::Lacking { .. })).await;
        let ClusterState::Lacking { lack, .. } = setup.cluster.status().state.clone() else { panic!() };
        assert!(lack.bytes > 0, "{lack:?}");
        assert!(setup.workers[1].was_told(|message| matches!(message, ToWorker::Dismissed { .. })));
        tokio::time::sleep(Duration::from_secs(20)).await;
        Worker::start(&setup.cluster, 3).await
    };
    tokio::join!(setup.run(4), replaced);
    assert!(setup.engine.stats().total_pause >= Duration::from_secs(20).min(setup.engine.stats().last_pause));
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_joins_costs_a_pause_and_no_step() {
    let setup = set_up(config(1, 2), 2).await;
    setup.workers[1].turn(Mode::DiesAtStep);
    setup.run(4).await;
    let joins = async {
        let worker = Worker::start(&setup.cluster, 9).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        worker
    };
    let many = async {
        for _ in 0..20 {
            setup.run(2).await;
        }
    };
    let (worker, ()) = tokio::join!(joins, many);
    assert!(worker.was_told(|message| matches!(message, ToWorker::Step { .. })));
    let stats = setup.engine.stats();
    assert_eq!((stats.num_lost_steps, stats.num_recoveries), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_takes_nothing_is_lost() {
    let (cluster, mut executor, _) = Cluster::start(config(1, 1)).unwrap();
    let (said, from) = mpsc::channel(64);
    let (to, _deaf) = mpsc::channel(2);
    assert!(cluster.connect(Connection { from, to, peer: "deaf".to_owned() }).await);
    let _well = Worker::start(&cluster, 1).await;
    executor.homes().await.unwrap();
    // It was never known, and its pulse does not help it.
    said.send(FromWorker::Pulse(Pulse::default())).await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), said.closed()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn steps_for_a_world_that_is_over_are_not_begun() {
    let (cluster, mut executor, running) = Cluster::start(config(1, 1)).unwrap();
    let worker = Worker::start(&cluster, 1).await;
    let plan =
        |step| Arc::new(StepPlan { step, in_halves: false, home_rows: Vec::new(), slices: Vec::new() });
    let early = executor.step(plan(1)).await.unwrap_err();
    assert!(matches!(early, StepError::Moved { .. }), "{early}");
    assert_eq!(executor.homes().await.unwrap().len(), 1);
    executor.step(plan(2)).await.unwrap();
    worker.turn(Mode::DiesAtStep);
    let lost = executor.step(plan(3)).await.unwrap_err();
    assert!(matches!(&lost, StepError::Lost { reason } if reason.contains("10.0.0.1:7000")), "{lost}");
    // Asking for homes may be given up and begun again.
    let waited = tokio::time::timeout(Duration::from_secs(5), executor.homes()).await;
    assert!(waited.is_err(), "nobody is left");
    let _other = Worker::start(&cluster, 2).await;
    executor.homes().await.unwrap();
    executor.step(plan(4)).await.unwrap();
    drop(executor);
    tokio::time::timeout(Duration::from_secs(5), running).await.unwrap().unwrap();
    let (to, _inbox) = mpsc::channel(1);
    assert!(!cluster.connect(Connection { from: mpsc::channel(1).1, to, peer: String::new() }).await);
}
