//! Plans against what is really allocated, and for GPUs that nobody has here.

use super::*;
use chorale_device::RopeParams;
use chorale_emulator::{Emulator, Options};
use chorale_link::Solo;
use chorale_model::GptOss;
use chorale_model::offline::{OfflineLimits, OfflineSequence};
use chorale_plan::{SamplingParams, StepPlan};
use std::path::PathBuf;

const MEMORY_BYTES: usize = 2 << 30;

fn fixture(name: &str) -> Checkpoint {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models").join(name);
    Checkpoint::open(&folder).unwrap()
}

fn wished(limits: OfflineLimits, config: &ModelConfig) -> (Wished, Room) {
    let room = limits.room(config, KvDtype::Bf16);
    let wished = Wished {
        shape: Shape::SOLO,
        limits: room.limits,
        block_size: room.block_size,
        max_model_len: limits.max_tokens,
        dense_dtype: DenseDtype::Bf16,
        kv_dtype: KvDtype::Bf16,
        fast_combine: false,
        overlap_min_rows: None,
    };
    (wished, room)
}

/// What the same rank has really allocated once it has computed the largest steps.
fn allocated(checkpoint: &Checkpoint, limits: OfflineLimits, room: &Room, hopper: bool) -> u64 {
    let config = checkpoint.config();
    let capability = if hopper { (9, 0) } else { (8, 0) };
    let options = Options { memory_bytes: MEMORY_BYTES, capability, ..Options::default() };
    let gpu = Emulator::new(options).unwrap();
    let mut device = Cuda::new(Arc::clone(&gpu) as Arc<dyn Gpu>);
    let link = Solo::new(&mut device, config.num_experts as u32).unwrap();
    let spec = ShardSpec::whole(config);
    let mut engine = GptOss::load(device, link, checkpoint, &spec, room, &mut |_| ()).unwrap();
    let mut sequences: Vec<OfflineSequence> = (0..limits.num_sequences)
        .map(|index| {
            let prompt = (0..limits.max_slice_tokens as u32).map(|at| at % 300).collect();
            OfflineSequence::new(index, prompt, limits, config)
        })
        .collect();
    let sampling = SamplingParams { num_logprobs: Some(3), ..SamplingParams::greedy() };
    for step in 1..4 {
        let slices: Vec<_> = sequences.iter_mut().map(|one| one.take_slice(usize::MAX, &sampling)).collect();
        let plan = StepPlan { step, in_halves: false, home_rows: Vec::new(), slices };
        let output = engine.step(&plan).unwrap();
        for (sequence, sample) in sequences.iter_mut().zip(output.samples) {
            sequence.push(sample.token);
        }
    }
    (MEMORY_BYTES - gpu.free_bytes().unwrap()) as u64
}

/// The pages that a room really has.
fn pages(config: &ModelConfig, room: &Room) -> u64 {
    let kv = KvShape {
        windows: config.windows.clone(),
        num_query_heads: config.num_attention_heads,
        num_kv_heads: config.num_key_value_heads,
        head_dim: config.head_dim,
        dtype: room.kv_dtype,
        block_size: room.block_size,
        num_full_blocks: room.num_full_blocks,
        num_sliding_blocks: room.num_sliding_blocks,
    };
    pages_bytes(&kv, Paper::asked_bytes).unwrap()
}

#[test]
fn what_is_planned_is_what_is_allocated() {
    for (name, num_sequences, slice, hopper) in [
        ("a-small", 3, 40, false),
        ("a-small", 1, 300, true),
        ("b-awkward", 5, 17, false),
        ("c-ratio", 2, 64, true),
    ] {
        let checkpoint = fixture(name);
        let config = checkpoint.config();
        let limits = OfflineLimits {
            num_sequences,
            max_tokens: slice + 8,
            max_slice_tokens: slice,
            max_rows: num_sequences * slice,
            block_size: 16,
        };
        let (wished, room) = wished(limits, config);
        let real = allocated(&checkpoint, limits, &room, hopper);
        let spec = ShardSpec::whole(config);
        let footprint = Rehearsal::new(config).count(&wished, (Rank(0), &spec), Paper::asked_bytes).unwrap();
        let planned = footprint.total() + pages(config, &room);
        assert!(planned >= real, "{name}: {planned} planned, {real} taken, {footprint:?}");
        assert!(planned - real <= real / 50, "{name}: {planned} planned, {real} taken, {footprint:?}");
    }
}

/// The published geometry.
fn gpt_oss_120b() -> ModelConfig {
    ModelConfig {
        hidden_size: 2880,
        intermediate_size: 2880,
        num_attention_heads: 64,
        num_key_value_heads: 8,
        head_dim: 64,
        num_experts: 128,
        experts_per_token: 4,
        vocab_size: 201_088,
        windows: (0..36).map(|layer| (layer % 2 == 0).then_some(128)).collect(),
        rope: RopeParams { head_dim: 64, theta: 150_000.0, yarn: None },
        swiglu_limit: 7.0,
        rms_norm_eps: 1e-5,
        attention_bias: true,
        tie_word_embeddings: false,
        max_position_embeddings: 131_072,
        eos_token_ids: vec![200_002],
    }
}

#[test]
fn gpt_oss_120b_fits_an_80_gb_gpu_with_its_cache() {
    let config = gpt_oss_120b();
    let settings = crate::config::Config::default();
    let max_num_seqs = settings.max_num_seqs(crate::device::DeviceKind::Gpu);
    let max_rows = settings.max_batch_tokens(crate::device::DeviceKind::Gpu);
    let wished = |size: u32, groups: u32| Wished {
        shape: Shape { tensor_parallel_size: size, data_parallel_size: groups, num_ranks: size * groups },
        limits: BatchLimits { max_rows, max_slices: max_num_seqs, max_logit_rows: max_num_seqs },
        block_size: settings.kv_block_size,
        max_model_len: config.max_position_embeddings,
        dense_dtype: DenseDtype::Bf16,
        kv_dtype: KvDtype::Bf16,
        fast_combine: false,
        overlap_min_rows: None,
    };
    let rehearsal = Rehearsal::new(&config);
    let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
    let [rank] = rehearsal.ranks(&wished(1, 1)).unwrap()[..] else { panic!() };
    let weights = gib(rank.dense_bytes + rank.expert_bytes);
    assert!((60.7..61.5).contains(&weights), "{weights:.2} GiB of weights: {rank:?}");
    let steps = gib(rank.step_bytes);
    assert!((0.9..1.3).contains(&steps), "{steps:.2} GiB for steps: {rank:?}");
    // An H100 has 79.1 GiB, of which the driver has 0.5 before anybody comes.
    let free = (78.6 * (1u64 << 30) as f64) as u64 - (768 << 20);
    let left = free.checked_sub(rank.total()).unwrap();
    assert!(gib(left) > 15.0, "{:.2} GiB are left", gib(left));
    // Beside all windows there is room for a sequence of the model's full length and a half.
    let page_bytes = (2 * 8 * 64 * 64 * 2) as u64;
    let sliding = 18 * page_bytes * (2 * (max_num_seqs * 4 + max_rows / 64)) as u64;
    let longest = 18 * page_bytes * (config.max_position_embeddings / 64) as u64;
    assert!(left > sliding + 3 * longest / 2, "{:.2} GiB are left", gib(left));

    // Two GPUs have half of the experts each, and room for what they exchange.
    for rank in rehearsal.ranks(&wished(2, 1)).unwrap() {
        assert!((28.0..32.0).contains(&gib(rank.dense_bytes + rank.expert_bytes)), "{rank:?}");
        assert!((0.2..0.6).contains(&gib(rank.exchange_bytes)), "{rank:?}");
    }
}

#[test]
fn what_only_cpus_compute_is_told_with_its_remedy() {
    let config = gpt_oss_120b();
    assert_eq!(refusal(&config, 64), None);
    assert!(refusal(&config, 48).is_some_and(|reason| reason.contains("--kv-block-size is 48")));
    let odd = ModelConfig { head_dim: 80, ..config };
    assert!(refusal(&odd, 64).is_some_and(|reason| reason.contains("--device cpu")));
}
