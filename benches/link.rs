//! What it costs to talk: round trips of small frames and bandwidth of large
//! ones between two ranks, over gRPC on loopback with and without TLS and
//! between threads, and how large a plan of 256 sequences is. Prints JSON lines.
//!
//!     cargo bench -p chorale-benches --bench link
//!
//! Both ranks, the network's tasks and the system's part share one machine, so
//! bandwidth here is what two ends and a checksum at each cost, not a wire's.
//! Between threads nothing is copied: what counts there is the time of a frame.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark prints, and stops when it cannot run"
)]

use bytes::Bytes;
use chorale_link::grpc::{LinkPort, Membership, PortConfig};
use chorale_link::{Frame, Transport, local};
use chorale_plan::{
    BlockId, BlockTable, Epoch, Rank, SamplingParams, SequenceId, SequenceSlice, SliceTokens, StepPlan,
    ToWorker,
};
use chorale_wire::cluster::v1::CoordinatorMessage;
use chorale_wire::tls::{Tls, make_certificates};
use prost::Message;
use std::time::{Duration, Instant};

/// As a worker has.
const ASYNC_THREADS: usize = 2;
const PATIENCE: Duration = Duration::from_secs(20);
/// A row of 64 columns: nothing but the way itself.
const SMALL_BYTES: usize = 256;
const NUM_ROUND_TRIPS: usize = 10_000;
/// 256 rows of 2880 columns in 32 bits, as a decode step dispatches at most, and
/// a prefill's.
const LARGE_BYTES: [usize; 2] = [256 * 2880 * 4, 4096 * 2880 * 4];
/// Bytes that cross for each measurement of bandwidth.
const NUM_LARGE_BYTES: usize = 2 << 30;

type Pair = (Box<dyn Transport>, Box<dyn Transport>);

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(ASYNC_THREADS)
        .enable_all()
        .build()
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    make_certificates(&folder.path().join("set"), &["rank"]).unwrap();
    let tls = Tls::load(&folder.path().join("set/rank")).unwrap();

    measure("local", threads());
    let (pair, ports) = runtime.block_on(network(None));
    measure("grpc", pair);
    drop(ports);
    let (pair, ports) = runtime.block_on(network(Some(tls)));
    measure("grpc, tls", pair);
    drop(ports);
    for (prompt_tokens, output_tokens) in [(1024, 256), (8192, 512)] {
        plan_bytes(prompt_tokens, output_tokens);
    }
}

fn threads() -> Pair {
    let mut both = local(2, PATIENCE);
    let second = both.remove(1);
    (Box::new(both.remove(0)), Box::new(second))
}

async fn network(tls: Option<Tls>) -> (Pair, Vec<LinkPort>) {
    let mut ports = Vec::new();
    for _ in 0..2 {
        let address = "127.0.0.1:0".parse().unwrap();
        let config = PortConfig { address, tls: tls.clone(), max_frame_bytes: 1 << 30 };
        ports.push(LinkPort::bind(config).await.unwrap());
    }
    let addresses: Vec<String> = ports.iter().map(|port| port.address().to_string()).collect();
    let mut transports = Vec::new();
    let mut connecting = Vec::new();
    for (port, rank) in ports.iter().zip(0..) {
        let (transport, _, connected) = port.join(Membership {
            epoch: Epoch(1),
            rank: Rank(rank),
            addresses: addresses.clone(),
            exchange_timeout: PATIENCE,
            connect_timeout: PATIENCE,
        });
        transports.push(transport);
        connecting.push(connected);
    }
    for connected in connecting {
        connected.wait().await.unwrap();
    }
    let second = transports.remove(1);
    ((Box::new(transports.remove(0)), Box::new(second)), ports)
}

fn frame(payload: &Bytes) -> Frame {
    Frame { epoch: Epoch(1), step: 1, exchange: 0, payload: payload.clone() }
}

/// Two threads, as two ranks are.
fn measure(transport: &str, (mut here, mut there): Pair) {
    let (small, round_trips) = (Bytes::from(vec![1; SMALL_BYTES]), NUM_ROUND_TRIPS + NUM_ROUND_TRIPS / 10);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            for _ in 0..round_trips {
                let frame = there.receive(Rank(0)).unwrap();
                there.send(Rank(0), frame).unwrap();
            }
        });
        let mut times: Vec<Duration> = (0..round_trips)
            .map(|_| {
                let started = Instant::now();
                here.send(Rank(1), frame(&small)).unwrap();
                here.receive(Rank(1)).unwrap();
                started.elapsed()
            })
            .skip(NUM_ROUND_TRIPS / 10)
            .collect();
        times.sort_unstable();
        let at = |share: f64| times[(share * (times.len() - 1) as f64) as usize].as_nanos() as f64 / 1e3;
        println!(
            "{{\"bench\":\"link\",\"transport\":\"{transport}\",\"round_trip_bytes\":{SMALL_BYTES},\"p50_us\":{:.1},\"p99_us\":{:.1}}}",
            at(0.5),
            at(0.99),
        );
    });
    for num_bytes in LARGE_BYTES {
        let num_frames = NUM_LARGE_BYTES / num_bytes;
        let large = Bytes::from(vec![1; num_bytes]);
        let mut took = Duration::ZERO;
        std::thread::scope(|threads| {
            threads.spawn(|| {
                // The first is there when everything is warm.
                for _ in 0..=num_frames {
                    there.receive(Rank(0)).unwrap();
                }
                there.send(Rank(0), frame(&Bytes::new())).unwrap();
            });
            here.send(Rank(1), frame(&large)).unwrap();
            let started = Instant::now();
            for _ in 0..num_frames {
                here.send(Rank(1), frame(&large)).unwrap();
            }
            here.receive(Rank(1)).unwrap();
            took = started.elapsed();
        });
        println!(
            "{{\"bench\":\"link\",\"transport\":\"{transport}\",\"frame_bytes\":{num_bytes},\"gb_per_s\":{:.2},\"ms_per_frame\":{:.3}}}",
            (num_frames * num_bytes) as f64 / took.as_secs_f64() / 1e9,
            took.as_secs_f64() * 1e3 / num_frames as f64,
        );
    }
}

/// 256 sequences that decode. A prompt's pages were taken together, those of the
/// output one by one among everybody's.
fn decode_plan(prompt_tokens: u32, output_tokens: u32) -> StepPlan {
    const NUM_SEQUENCES: u32 = 256;
    const PAGE: u32 = 16;
    let prompt_pages = prompt_tokens.div_ceil(PAGE);
    let slice = |index: u32| {
        let prompt = (0..prompt_pages).map(|page| index * prompt_pages + page);
        let output = (0..output_tokens / PAGE)
            .map(|page| NUM_SEQUENCES * (prompt_pages + page) + index * 7 % NUM_SEQUENCES);
        let full_blocks: Vec<BlockId> = prompt.chain(output).map(BlockId).collect();
        let first = full_blocks.len() as u32 - 9;
        let sliding_blocks = full_blocks[first as usize..].to_vec();
        SequenceSlice {
            sequence: SequenceId(1_000_000 + u64::from(index)),
            home: Rank(0),
            tokens: SliceTokens::SampledBefore,
            num_computed: prompt_tokens + output_tokens,
            full_blocks: BlockTable { first: 0, blocks: full_blocks },
            sliding_blocks: BlockTable { first, blocks: sliding_blocks },
            sample: Some(SamplingParams { temperature: 0.7, seed: u64::MAX / 3, ..SamplingParams::greedy() }),
        }
    };
    StepPlan {
        step: 100_000,
        in_halves: false,
        home_rows: Vec::new(),
        slices: (0..NUM_SEQUENCES).map(slice).collect(),
    }
}

fn plan_bytes(prompt_tokens: u32, output_tokens: u32) {
    const NUM_TIMES: u32 = 200;
    let plan = decode_plan(prompt_tokens, output_tokens);
    let num_sequences = plan.slices.len();
    let step = || ToWorker::Step { epoch: Epoch(5), placement: 1, plan: plan.clone() };
    let encoded = CoordinatorMessage::from(step()).encode_to_vec();
    let time = |what: &dyn Fn()| {
        let started = Instant::now();
        (0..NUM_TIMES).for_each(|_| what());
        started.elapsed().as_secs_f64() * 1e6 / f64::from(NUM_TIMES)
    };
    let write_us = time(&|| drop(CoordinatorMessage::from(step()).encode_to_vec()));
    let read_us = time(&|| {
        let message = CoordinatorMessage::decode(encoded.as_slice()).unwrap();
        drop(ToWorker::try_from(message).unwrap());
    });
    println!(
        "{{\"bench\":\"link\",\"plan_sequences\":{num_sequences},\"context_tokens\":{},\"bytes\":{},\"write_us\":{write_us:.0},\"read_us\":{read_us:.0}}}",
        prompt_tokens + output_tokens,
        encoded.len(),
    );
}
