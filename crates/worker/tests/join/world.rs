//! Workers of a small model, and what they are given to do.

use chorale_device::Cpu;
use chorale_link::{Joining, Meshes};
use chorale_model::checkpoint::Checkpoint;
use chorale_plan::{
    Assignment, BlockId, BlockTable, Carrier, DenseFormat, Epoch, ExchangeOptions, FromWorker, KvFormat,
    Placement, Rank, Room, SamplingParams, SequenceId, SequenceSlice, Shape, SliceTokens, StepPlan, TokenId,
};
use chorale_worker::join::{Left, MemoryRate, Patience, Worker, WorkerConfig, WorkerError};
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const BLOCK_SIZE: u32 = 4;

pub(crate) fn checkpoint() -> Arc<Checkpoint> {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models/a-small");
    Arc::new(Checkpoint::open(&model).unwrap())
}

pub(crate) fn config(coordinator: String) -> WorkerConfig {
    WorkerConfig {
        coordinator,
        listen: "127.0.0.1:0".parse().unwrap(),
        advertise: None,
        tls: None,
        device: "cpu".to_owned(),
        memory_bytes: 1 << 30,
        memory_rate: MemoryRate::Known(1 << 33),
        experts_only: false,
        nccl: None,
        kv_dtypes: vec![KvFormat::F32, KvFormat::Bf16, KvFormat::Fp8],
        host_expert_bytes: 0,
        residency: None,
        max_frame_bytes: 1 << 24,
        patience: Patience {
            silence: Duration::from_millis(1500),
            first_pause: Duration::from_millis(5),
            loads: Duration::from_millis(20),
            ..Patience::default()
        },
    }
}

/// A worker that runs.
pub(crate) struct Started {
    pub(crate) leaving: CancellationToken,
    running: JoinHandle<Result<Left, WorkerError>>,
}

pub(crate) async fn start(config: WorkerConfig) -> Started {
    start_with(config, Box::new(Meshes)).await
}

/// With another way to join worlds.
pub(crate) async fn start_with(config: WorkerConfig, joining: Box<dyn Joining<Cpu>>) -> Started {
    let cpu = Cpu::new(NonZeroUsize::new(1)).unwrap();
    let rank = chorale_worker::Rank::start_with(cpu, joining).unwrap();
    let worker = Worker::bind(config, rank, checkpoint()).await.unwrap();
    let leaving = CancellationToken::new();
    let told = leaving.clone();
    Started { leaving, running: tokio::spawn(async move { worker.run(told).await }) }
}

impl Started {
    pub(crate) async fn ended(self) -> Result<Left, WorkerError> {
        tokio::time::timeout(Duration::from_secs(20), self.running).await.unwrap().unwrap()
    }

    /// As the end of its process does.
    pub(crate) fn kill(self) {
        self.running.abort();
    }
}

/// A place where experts go round the ranks.
pub(crate) fn assignment(epoch: u64, shape: Shape, rank: u32, addresses: &[String]) -> Assignment {
    let checkpoint = checkpoint();
    let model = checkpoint.config();
    let holders = (0..model.num_experts as u32).map(|expert| vec![Rank(expert % shape.num_ranks)]);
    let layers = vec![holders.collect(); model.num_layers()];
    Assignment {
        epoch: Epoch(epoch),
        shape,
        rank: Rank(rank),
        addresses: addresses.to_vec(),
        placement: Placement { version: 0, layers },
        room: Room {
            max_step_tokens: 16,
            max_step_slices: 2,
            block_size_tokens: BLOCK_SIZE,
            num_full_blocks: 8,
            num_sliding_blocks: 8,
            kv_dtype: KvFormat::F32,
        },
        exchange: ExchangeOptions::exact(10_000),
        carrier: Carrier::Frames,
        dense_dtype: DenseFormat::Bf16,
    }
}

/// The same prompt, whichever step it is.
pub(crate) fn plan(step: u64) -> StepPlan {
    let tokens: Vec<TokenId> = vec![3, 14, 15, 9, 2, 6];
    let blocks = (0..(tokens.len() as u32).div_ceil(BLOCK_SIZE)).map(BlockId).collect();
    let table = BlockTable { first: 0, blocks };
    let slice = SequenceSlice {
        sequence: SequenceId(1),
        home: Rank(0),
        tokens: SliceTokens::Known(tokens),
        num_computed: 0,
        full_blocks: table.clone(),
        sliding_blocks: table,
        sample: Some(SamplingParams { num_logprobs: Some(1), ..SamplingParams::greedy() }),
    };
    StepPlan { step, in_halves: false, home_rows: Vec::new(), slices: vec![slice] }
}

/// What was sampled in a step, with its log-probability's bits.
pub(crate) fn sampled(done: &FromWorker) -> (TokenId, u32) {
    let FromWorker::Done { output, .. } = done else { panic!("{done:?}") };
    let sample = &output.samples[0];
    (sample.token, sample.logprob.unwrap().to_bits())
}
