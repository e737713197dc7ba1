//! What it costs to be many: steps of the demo model on one rank, on two and on
//! four, between threads and over gRPC on loopback; and where it pays to compute
//! a step in two halves, over frames that come late on purpose. Prints JSON lines.
//!
//!     cargo bench -p chorale-benches --bench ranks
//!
//! Each rank has one thread. Where there are more of them than processors, they
//! take turns, and waiting for others is mostly waiting for a processor.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark prints, and stops when it cannot run"
)]

use chorale_device::{Cpu, KvDtype};
use chorale_hub::unpack_demo;
use chorale_link::grpc::{LinkPort, Membership, PortConfig};
use chorale_link::{Fault, Frame, LocalTransport, Transport, local};
use chorale_model::checkpoint::Checkpoint;
use chorale_model::offline::{OfflineLimits, OfflineSequence};
use chorale_plan::{
    Assignment, Carrier, DenseFormat, Epoch, ExchangeOptions, KvFormat, Placement, Rank as RankId, Room,
    SamplingParams, SequenceId, SequenceSlice, Shape, StepPlan, TokenId,
};
use chorale_worker::Rank;
use std::collections::VecDeque;
use std::future::Future;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// As a worker has.
const ASYNC_THREADS: usize = 2;
const PATIENCE: Duration = Duration::from_secs(20);
/// Of each load in each world.
const MEASURED: Duration = Duration::from_millis(600);
const MIN_STEPS: usize = 7;
const PROMPT_TOKENS: usize = 64;
const LIMITS: OfflineLimits = OfflineLimits {
    num_sequences: 32,
    max_tokens: PROMPT_TOKENS + 1,
    max_slice_tokens: PROMPT_TOKENS,
    max_rows: 32 * PROMPT_TOKENS,
    block_size: 16,
};

const SHAPES: [(&str, Shape); 3] = [("T2", shape(2, 1)), ("D2", shape(1, 2)), ("T2xD2", shape(2, 2))];

const LOADS: [Load; 4] = [
    Load { name: "decode 1", num_sequences: 1, is_decode: true },
    Load { name: "decode 8", num_sequences: 8, is_decode: true },
    Load { name: "decode 32", num_sequences: 32, is_decode: true },
    Load { name: "prefill 256", num_sequences: 4, is_decode: false },
];

/// What a step computes: so many sequences' next token, or their prompts.
#[derive(Clone, Copy)]
struct Load {
    name: &'static str,
    num_sequences: usize,
    is_decode: bool,
}

const fn shape(tensor_parallel_size: u32, data_parallel_size: u32) -> Shape {
    let num_ranks = tensor_parallel_size * data_parallel_size;
    Shape { tensor_parallel_size, data_parallel_size, num_ranks }
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(ASYNC_THREADS)
        .enable_all()
        .build()
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = Arc::new(Checkpoint::open(&unpack_demo(folder.path(), &|_| ()).unwrap()).unwrap());

    let mut alone = World::start(&checkpoint, Shape::SOLO, threads(1));
    for (shape_name, shape) in SHAPES {
        for transport in ["local", "grpc"] {
            let (transports, _ports) = match transport {
                "local" => (threads(shape.num_ranks), Vec::new()),
                _ => runtime.block_on(network(shape.num_ranks)),
            };
            let mut world = World::start(&checkpoint, shape, transports);
            for load in LOADS {
                // Just before, for others may use the machine, too.
                let [one] = alone.measure(load, [false]);
                let [step] = world.measure(load, [false]);
                println!(
                    "{{\"bench\":\"ranks\",\"shape\":\"{shape_name}\",\"transport\":\"{transport}\",\"load\":\"{}\",\"step_ms\":{:.2},\"one_rank_ms\":{:.2},\"to_one_rank\":{:.2},\"waited_share\":{:.2}}}",
                    load.name,
                    step.ms,
                    one.ms,
                    step.ms / one.ms,
                    step.waited_share,
                );
                if transport == "grpc" && load.num_sequences > 1 {
                    overlap(&mut world, shape_name, "grpc", load);
                }
            }
        }
        for delay_ms in [0, 1, 5] {
            let late = late(shape.num_ranks, Duration::from_millis(delay_ms));
            let mut world = World::start(&checkpoint, shape, late);
            for load in LOADS.into_iter().filter(|load| load.num_sequences > 1) {
                overlap(&mut world, shape_name, &format!("local, {delay_ms} ms late"), load);
            }
        }
    }
}

/// Whole steps and steps in halves in turns.
fn overlap(world: &mut World, shape: &str, transport: &str, load: Load) {
    let [off, on] = world.measure(load, [false, true]);
    println!(
        "{{\"bench\":\"ranks\",\"shape\":\"{shape}\",\"transport\":\"{transport}\",\"load\":\"{}\",\"whole_ms\":{:.2},\"in_halves_ms\":{:.2},\"halves_to_whole\":{:.2},\"whole_waited_share\":{:.2},\"in_halves_waited_share\":{:.2}}}",
        load.name,
        off.ms,
        on.ms,
        on.ms / off.ms,
        off.waited_share,
        on.waited_share,
    );
}

/// A step of median length, and the mean share of the ranks' time that they waited.
struct Measured {
    ms: f64,
    waited_share: f64,
}

/// Ranks with places, which have computed all prompts.
struct World {
    shape: Shape,
    ranks: Vec<Rank>,
    step: u64,
    prompts: Vec<SequenceSlice>,
    tokens: Vec<SequenceSlice>,
}

impl World {
    fn start(checkpoint: &Arc<Checkpoint>, shape: Shape, transports: Vec<Box<dyn Transport>>) -> Self {
        let config = checkpoint.config();
        let room = LIMITS.room(config, KvDtype::F32);
        // In turn, and in even parts whatever is popular.
        let holder = |expert| vec![RankId(expert as u32 % shape.num_ranks)];
        let layer: Vec<Vec<RankId>> = (0..config.num_experts).map(holder).collect();
        let mut ranks = Vec::new();
        for (rank, transport) in shape.ranks().zip(transports) {
            let assignment = Assignment {
                epoch: Epoch(1),
                shape,
                rank,
                addresses: Vec::new(),
                placement: Placement { version: 0, layers: vec![layer.clone(); config.num_layers()] },
                room: Room {
                    max_step_tokens: room.limits.max_rows as u32,
                    max_step_slices: room.limits.max_slices as u32,
                    block_size_tokens: room.block_size as u32,
                    num_full_blocks: room.num_full_blocks as u32,
                    num_sliding_blocks: room.num_sliding_blocks as u32,
                    kv_dtype: KvFormat::F32,
                },
                exchange: ExchangeOptions {
                    overlap_min_rows: Some(2),
                    ..ExchangeOptions::exact(PATIENCE.as_millis() as u32)
                },
                carrier: Carrier::Frames,
                dense_dtype: DenseFormat::Bf16,
            };
            let handle = Rank::start(Cpu::new(NonZeroUsize::new(1)).unwrap()).unwrap();
            wait(handle.take(assignment, Arc::clone(checkpoint), transport, Box::new(|_| ()))).unwrap();
            ranks.push(handle);
        }
        let homes: Vec<RankId> = shape.homes().collect();
        let mut slices = [Vec::new(), Vec::new()];
        for number in 0..LIMITS.num_sequences {
            let token = |index: usize| ((number * 131 + index * 17 + 7) % config.vocab_size) as TokenId;
            let prompt: Vec<TokenId> = (0..=PROMPT_TOKENS).map(token).collect();
            let mut sequence = OfflineSequence::new(number / homes.len(), prompt, LIMITS, config);
            for slices in &mut slices {
                let slice = sequence.take_slice(PROMPT_TOKENS, &SamplingParams::greedy());
                let home = homes[number % homes.len()];
                slices.push(SequenceSlice { sequence: SequenceId(number as u64), home, ..slice });
            }
        }
        let [prompts, tokens] = slices;
        let mut world = Self { shape, ranks, step: 0, prompts: prompts.clone(), tokens };
        world.run(&prompts, false);
        world
    }

    /// The load's step again and again, each way in turn.
    fn measure<const N: usize>(&mut self, load: Load, in_halves: [bool; N]) -> [Measured; N] {
        let slices = if load.is_decode { &self.tokens } else { &self.prompts };
        let slices = slices[..load.num_sequences].to_vec();
        let mut times = [const { Vec::new() }; N];
        let mut waited = [0.0; N];
        for &in_halves in &in_halves {
            self.run(&slices, in_halves);
        }
        let started = Instant::now();
        while started.elapsed() < MEASURED * N as u32 || times[0].len() < MIN_STEPS {
            for (way, &in_halves) in in_halves.iter().enumerate() {
                let (took, share) = self.run(&slices, in_halves);
                times[way].push(took);
                waited[way] += share;
            }
        }
        std::array::from_fn(|way| {
            let num_steps = times[way].len();
            times[way].sort_unstable();
            Measured {
                ms: times[way][num_steps / 2].as_secs_f64() * 1e3,
                waited_share: waited[way] / num_steps as f64,
            }
        })
    }

    /// One step: how long it took, and the share of it that ranks waited.
    fn run(&mut self, slices: &[SequenceSlice], in_halves: bool) -> (Duration, f64) {
        self.step += 1;
        let plan = StepPlan { step: self.step, in_halves, home_rows: Vec::new(), slices: slices.to_vec() };
        let parts: Vec<StepPlan> = self.shape.ranks().map(|rank| plan.part_of(self.shape, rank)).collect();
        let started = Instant::now();
        let running: Vec<_> = self.ranks.iter().zip(parts).map(|(rank, part)| rank.step(0, part)).collect();
        let mut share = 0.0;
        for step in running {
            let (_, report) = wait(step).unwrap();
            share += report.waited_us as f64 / report.total_us.max(1) as f64;
        }
        (started.elapsed(), share / self.ranks.len() as f64)
    }
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: Runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    }
    RUNTIME.with(|runtime| runtime.block_on(future))
}

fn threads(num_ranks: u32) -> Vec<Box<dyn Transport>> {
    let transports = local(num_ranks, PATIENCE).into_iter();
    transports.map(|transport| Box::new(transport) as Box<dyn Transport>).collect()
}

async fn network(num_ranks: u32) -> (Vec<Box<dyn Transport>>, Vec<LinkPort>) {
    let mut ports = Vec::new();
    for _ in 0..num_ranks {
        let address = "127.0.0.1:0".parse().unwrap();
        let config = PortConfig { address, tls: None, max_frame_bytes: 1 << 30 };
        ports.push(LinkPort::bind(config).await.unwrap());
    }
    let addresses: Vec<String> = ports.iter().map(|port| port.address().to_string()).collect();
    let mut transports: Vec<Box<dyn Transport>> = Vec::new();
    let mut connecting = Vec::new();
    for (port, rank) in ports.iter().zip(0..) {
        let (transport, _, connected) = port.join(Membership {
            epoch: Epoch(1),
            rank: RankId(rank),
            addresses: addresses.clone(),
            exchange_timeout: PATIENCE,
            connect_timeout: PATIENCE,
        });
        transports.push(Box::new(transport));
        connecting.push(connected);
    }
    for connected in connecting {
        connected.wait().await.unwrap();
    }
    (transports, ports)
}

/// When the frames of one direction were sent that have not been received.
type Sent = Mutex<VecDeque<Instant>>;

/// A transport whose frames take a while longer, however many are on their way.
struct Late {
    inner: LocalTransport,
    rank: usize,
    num_ranks: usize,
    /// From each rank to each.
    sent: Arc<Vec<Sent>>,
    delay: Duration,
}

fn late(num_ranks: u32, delay: Duration) -> Vec<Box<dyn Transport>> {
    let num_ranks = num_ranks as usize;
    let sent: Arc<Vec<Sent>> = Arc::new((0..num_ranks * num_ranks).map(|_| Sent::default()).collect());
    let transports = local(num_ranks as u32, PATIENCE).into_iter().enumerate();
    let late = |(rank, inner)| Late { inner, rank, num_ranks, sent: Arc::clone(&sent), delay };
    transports.map(|transport| Box::new(late(transport)) as Box<dyn Transport>).collect()
}

impl Transport for Late {
    fn send(&mut self, to: RankId, frame: Frame) -> Result<(), Fault> {
        let lane = &self.sent[self.rank * self.num_ranks + to.0 as usize];
        lane.lock().unwrap().push_back(Instant::now());
        self.inner.send(to, frame)
    }

    #[expect(clippy::disallowed_methods, reason = "the frame is there, and comes late on purpose")]
    fn receive(&mut self, from: RankId) -> Result<Frame, Fault> {
        let frame = self.inner.receive(from)?;
        let lane = &self.sent[from.0 as usize * self.num_ranks + self.rank];
        let sent = lane.lock().unwrap().pop_front().unwrap();
        std::thread::sleep((sent + self.delay).saturating_duration_since(Instant::now()));
        Ok(frame)
    }
}
