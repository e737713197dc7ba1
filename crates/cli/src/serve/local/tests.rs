//! Worlds of one process: what carries their rows, on emulated GPUs and over a
//! stand-in for NCCL.

use super::*;
use chorale_cuda::{Cuda, Gpu};
use chorale_device::Cpu;
use chorale_emulator::{Emulator, Options};
use chorale_plan::{
    BlockId, BlockTable, KvFormat, SamplingParams, SequenceId, SequenceSlice, SliceTokens, StepOutput,
};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

#[test]
fn experts_are_dealt_out_evenly() {
    let experts: Vec<u32> = (0..4).map(|rank| split(10, 4, rank).len() as u32).collect();
    assert_eq!(experts, [3, 3, 2, 2]);
}

/// The stand-in of `crates/nccl`, compiled with these words.
fn library(words: &[&str]) -> Arc<Library> {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("libnccl.so.2");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../nccl/tests/fake_nccl/fake_nccl.c");
    let built = Command::new("cc")
        .args(["-O1", "-shared", "-fPIC", "-o"])
        .arg(&path)
        .args(words)
        .arg(source)
        .status()
        .unwrap();
    assert!(built.success());
    Arc::new(Library::open(Some(&path)).unwrap())
}

/// Emulated GPUs, and the ranks' hold on them.
struct Gpus(Vec<Arc<Emulator>>);

impl Gpus {
    fn new(count: u64) -> Self {
        let gpu = |seed| {
            let options = Options { seed, memory_bytes: 512 << 20, ..Options::default() };
            Emulator::new(options).unwrap()
        };
        Self((0..count).map(gpu).collect())
    }

    fn devices(&self) -> Devices {
        Devices::Cuda(self.0.iter().map(|gpu| Cuda::new(Arc::clone(gpu) as Arc<dyn Gpu>)).collect())
    }

    /// The test ends after the ranks' threads, which have the GPUs' memory.
    fn wait(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.0.iter().any(|gpu| Arc::strong_count(gpu) > 1) && Instant::now() < deadline {
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }
}

fn alike() -> Alike {
    Alike {
        room: Room {
            max_step_tokens: 16,
            max_step_slices: 2,
            block_size_tokens: 16,
            num_full_blocks: 8,
            num_sliding_blocks: 8,
            kv_dtype: KvFormat::Bf16,
        },
        exchange: ExchangeOptions::exact(20_000),
        dense_dtype: DenseFormat::Bf16,
        peer_exchange: PeerExchange::Auto,
    }
}

fn plan() -> Arc<StepPlan> {
    let table = BlockTable { first: 0, blocks: vec![BlockId(0)] };
    let slice = SequenceSlice {
        sequence: SequenceId(1),
        home: RankId(0),
        tokens: SliceTokens::Known(vec![3, 14, 15, 9, 2, 6]),
        num_computed: 0,
        full_blocks: table.clone(),
        sliding_blocks: table,
        sample: Some(SamplingParams { num_logprobs: Some(1), ..SamplingParams::greedy() }),
    };
    Arc::new(StepPlan { step: 1, in_halves: false, home_rows: Vec::new(), slices: vec![slice] })
}

/// What a world of so many GPUs samples.
fn sampled(num_gpus: usize, library: Option<Arc<Library>>) -> StepOutput {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models/a-small");
    let checkpoint = Arc::new(Checkpoint::open(&folder).unwrap());
    let gpus = Gpus::new(num_gpus as u64);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let output = runtime.block_on(async {
        let shape = shape(num_gpus, 1);
        let world = (gpus.devices(), library);
        let on_load: OnLoad = Arc::new(Mutex::new(|_, _| ()));
        let mut ranks = LocalRanks::start(shape, world, checkpoint, alike(), on_load).await.unwrap();
        ranks.step(plan()).await.unwrap()
    });
    gpus.wait();
    output
}

#[test]
fn gpus_sample_the_same_with_nccl_without_it_and_where_it_fails() {
    let alone = sampled(1, None);
    assert_eq!(alone.samples.len(), 1);
    assert_eq!(sampled(2, None), alone, "through the host");
    assert_eq!(sampled(2, Some(library(&[]))), alone, "by NCCL");
    // As where two ranks have one GPU: the ranks go on without it, on the same threads.
    assert_eq!(sampled(2, Some(library(&["-DREFUSING"]))), alone, "NCCL connects nobody");
}

#[test]
fn nccl_carries_between_gpus_alone_and_what_it_can() {
    let library = library(&[]);
    let gpus = Gpus::new(0);
    let cpus = Devices::Cpu(vec![Cpu::new(NonZeroUsize::new(1)).unwrap()]);
    let chosen =
        |ranks, alike: &Alike, devices: &Devices| carrier(shape(ranks, 1), alike, devices, Some(&library));
    let (even, devices) = (alike(), gpus.devices());
    assert_eq!(chosen(2, &even, &devices), Carrier::Nccl);
    assert_eq!(chosen(1, &even, &devices), Carrier::Frames, "nothing crosses");
    assert_eq!(chosen(3, &even, &devices), Carrier::Frames, "16 rows over 3 ranks");
    assert_eq!(chosen(2, &even, &cpus), Carrier::Frames);
    let exchange = ExchangeOptions { dispatch: RowFormat::Int8, ..even.exchange };
    assert_eq!(chosen(2, &Alike { exchange, ..even }, &devices), Carrier::Frames);
    assert_eq!(carrier(shape(2, 1), &even, &devices, None), Carrier::Frames);
}
