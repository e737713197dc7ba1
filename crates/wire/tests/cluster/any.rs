//! Anything that may be said.

use chorale_plan::*;
use chorale_wire::cluster::MAX_RANKS;
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;

fn rank() -> impl Strategy<Value = Rank> {
    (0..MAX_RANKS).prop_map(Rank)
}

fn epoch() -> impl Strategy<Value = Epoch> {
    any::<u64>().prop_map(Epoch)
}

fn text() -> impl Strategy<Value = String> {
    vec(any::<char>(), 0..20).prop_map(|chars| chars.into_iter().collect())
}

fn address() -> impl Strategy<Value = String> {
    (prop_oneof![Just("10.1.2.3"), Just("[::1]"), Just("worker-3.pool")], 1..=u16::MAX)
        .prop_map(|(host, port)| format!("{host}:{port}"))
}

fn logprob() -> impl Strategy<Value = f32> {
    prop_oneof![Just(f32::NEG_INFINITY), -100.0..=0.0f32]
}

pub(crate) fn from_worker() -> impl Strategy<Value = FromWorker> {
    let offer =
        (any::<u64>(), text(), any::<u32>(), text(), address(), text(), any::<[u64; 2]>(), any::<bool>());
    let kv_dtypes = prop::sample::subsequence(KvFormat::ALL.to_vec(), 0..=3).prop_shuffle();
    let offer = (offer, any::<Option<u32>>(), kv_dtypes, any::<u64>());
    let offer = offer.prop_map(
        |(
            (session, version, protocol, checkpoint, address, device, memory, experts_only),
            nccl,
            kv_dtypes,
            host_expert_bytes,
        )| {
            let [memory_bytes, memory_bytes_per_s] = memory;
            FromWorker::Offer(Offer {
                session,
                version,
                protocol,
                checkpoint,
                address,
                device,
                memory_bytes,
                memory_bytes_per_s,
                experts_only,
                nccl,
                kv_dtypes,
                host_expert_bytes,
            })
        },
    );
    let pulse = (of(any::<u64>()), of(rank()), any::<[u32; 2]>(), of(any::<u64>())).prop_map(
        |(step, waiting_for, [stalled_ms, exchanges], memory_bytes_per_s)| {
            FromWorker::Pulse(Pulse { step, waiting_for, stalled_ms, exchanges, memory_bytes_per_s })
        },
    );
    let loading = (epoch(), any::<[u64; 2]>(), any::<[u32; 2]>()).prop_map(|(epoch, bytes, tensors)| {
        let ([bytes, total_bytes], [tensors, total_tensors]) = (bytes, tensors);
        FromWorker::Loading { epoch, bytes, total_bytes, tensors, total_tensors }
    });
    let unable = (epoch(), of(rank()), text()).prop_map(|(epoch, blamed, reason)| FromWorker::Unable {
        epoch,
        blamed,
        reason,
    });
    let done = (epoch(), output(), any::<[u64; 2]>()).prop_map(|(epoch, output, [total_us, waited_us])| {
        FromWorker::Done { epoch, output, report: StepReport { total_us, waited_us } }
    });
    let refused = (epoch(), any::<u64>(), text()).prop_map(|(epoch, step, reason)| FromWorker::Refused {
        epoch,
        step,
        reason,
    });
    let lost = (epoch(), any::<u64>(), of(rank()), text())
        .prop_map(|(epoch, step, blamed, reason)| FromWorker::Lost { epoch, step, blamed, reason });
    let carrier_failed = (epoch(), of(any::<u64>()), text())
        .prop_map(|(epoch, step, reason)| FromWorker::CarrierFailed { epoch, step, reason });
    let loads =
        (epoch(), 0..4usize, 0..6usize, standing()).prop_flat_map(|(epoch, layers, experts, standing)| {
            vec(vec(any::<u64>(), experts), layers).prop_map(move |rows| FromWorker::Loads {
                epoch,
                rows,
                standing,
            })
        });
    prop_oneof![
        offer,
        pulse,
        loading,
        epoch().prop_map(|epoch| FromWorker::Ready { epoch }),
        unable,
        (epoch(), any::<u32>()).prop_map(|(epoch, version)| FromWorker::Prepared { epoch, version }),
        (epoch(), any::<u32>(), text()).prop_map(|(epoch, version, reason)| FromWorker::Unprepared {
            epoch,
            version,
            reason
        }),
        done,
        refused,
        lost,
        carrier_failed,
        loads,
        Just(FromWorker::Leaving),
    ]
}

fn standing() -> impl Strategy<Value = Standing> {
    let experts = any::<[u64; 6]>().prop_map(|[gpu_experts, host_experts, hits, misses, streamed, moves]| {
        ExpertResidency { gpu_experts, host_experts, hits, misses, streamed, moves }
    });
    (of(experts), any::<[bool; 2]>())
        .prop_map(|(experts, [world, group])| Standing { experts, one_shot: OneShot { world, group } })
}

fn output() -> impl Strategy<Value = StepOutput> {
    let top = (any::<u32>(), logprob()).prop_map(|(token, logprob)| TokenLogprob { token, logprob });
    let sample = (any::<u64>(), any::<u32>(), of(logprob()), vec(top, 0..4));
    let sample = sample.prop_map(|(sequence, token, logprob, top_logprobs)| Sample {
        sequence: SequenceId(sequence),
        token,
        logprob,
        top_logprobs,
    });
    (any::<u64>(), vec(sample, 0..4)).prop_map(|(step, samples)| StepOutput { step, samples })
}

pub(crate) fn to_worker() -> impl Strategy<Value = ToWorker> {
    let turned =
        (text(), any::<bool>()).prop_map(|(reason, may_retry)| ToWorker::Turned { reason, may_retry });
    let prepare =
        (epoch(), placement(MAX_RANKS)).prop_map(|(epoch, placement)| ToWorker::Prepare { epoch, placement });
    let step = (epoch(), any::<u32>(), plan()).prop_map(|(epoch, placement, plan)| ToWorker::Step {
        epoch,
        placement,
        plan,
    });
    prop_oneof![
        turned,
        (1..=60_000u32).prop_map(|pulse_ms| ToWorker::Welcome { pulse_ms }),
        assignment().prop_map(|assignment| ToWorker::Assigned(Box::new(assignment))),
        epoch().prop_map(|epoch| ToWorker::Dismissed { epoch }),
        prepare,
        step,
        Just(ToWorker::Farewell),
        Just(ToWorker::Pulse),
    ]
}

fn placement(num_ranks: u32) -> impl Strategy<Value = Placement> {
    let holders = prop_oneof![
        4 => vec(0..num_ranks, 1),
        1 => prop::collection::btree_set(0..num_ranks, 1..4).prop_map(|set| set.into_iter().collect()),
    ];
    let holders = holders.prop_map(|ranks: Vec<u32>| ranks.into_iter().map(Rank).collect::<Vec<_>>());
    (any::<u32>(), vec(vec(holders, 0..6), 0..4)).prop_map(|(version, layers)| Placement { version, layers })
}

fn assignment() -> impl Strategy<Value = Assignment> {
    let shape = (1..4u32, 1..4u32, 0..3u32).prop_map(|(tensor, data, more)| Shape {
        tensor_parallel_size: tensor,
        data_parallel_size: data,
        num_ranks: tensor * data + more,
    });
    let kv_dtype = prop::sample::select(KvFormat::ALL.to_vec());
    let room = ([1..=1u32 << 20, 1..=1u32 << 20], 1..=64u32, any::<[u32; 2]>(), kv_dtype).prop_map(
        |(
            [max_step_tokens, max_step_slices],
            block_size_tokens,
            [num_full_blocks, num_sliding_blocks],
            kv_dtype,
        )| Room {
            max_step_tokens,
            max_step_slices,
            block_size_tokens,
            num_full_blocks,
            num_sliding_blocks,
            kv_dtype,
        },
    );
    let exchange = (1..=3_600_000u32, any::<[bool; 2]>(), any::<Option<u32>>()).prop_map(
        |(timeout_ms, is, overlap_min_rows)| {
            let [is_int8, fast_combine] = is;
            let dispatch = if is_int8 { RowFormat::Int8 } else { RowFormat::F32 };
            ExchangeOptions { timeout_ms, dispatch, fast_combine, overlap_min_rows }
        },
    );
    let whole = shape.prop_flat_map(|shape| {
        let ranks = shape.num_ranks;
        (Just(shape), 0..ranks, vec(address(), ranks as usize), placement(ranks))
    });
    let carrier = any::<bool>().prop_map(|is_nccl| if is_nccl { Carrier::Nccl } else { Carrier::Frames });
    let dense_dtype = prop::sample::select(vec![DenseFormat::Bf16, DenseFormat::Int8]);
    (epoch(), whole, room, exchange, carrier, dense_dtype).prop_map(
        |(epoch, (shape, rank, addresses, placement), room, exchange, carrier, dense_dtype)| Assignment {
            epoch,
            shape,
            rank: Rank(rank),
            addresses,
            placement,
            room,
            exchange,
            carrier,
            dense_dtype,
        },
    )
}

pub(crate) fn plan() -> impl Strategy<Value = StepPlan> {
    let plan = (any::<u64>(), any::<bool>(), vec(any::<u32>(), 0..4), vec(slice(), 0..4));
    plan.prop_map(|(step, in_halves, home_rows, slices)| StepPlan { step, in_halves, home_rows, slices })
}

fn slice() -> impl Strategy<Value = SequenceSlice> {
    let tokens =
        prop_oneof![vec(any::<u32>(), 1..9).prop_map(SliceTokens::Known), Just(SliceTokens::SampledBefore),];
    let table = || {
        (0..u32::MAX / 2, vec(any::<u32>().prop_map(BlockId), 0..9))
            .prop_map(|(first, blocks)| BlockTable { first, blocks })
    };
    (any::<u64>(), rank(), tokens, 0..u32::MAX / 2, table(), table(), of(sampling())).prop_map(
        |(sequence, home, tokens, num_computed, full_blocks, sliding_blocks, sample)| SequenceSlice {
            sequence: SequenceId(sequence),
            home,
            tokens,
            num_computed,
            full_blocks,
            sliding_blocks,
            sample,
        },
    )
}

fn sampling() -> impl Strategy<Value = SamplingParams> {
    let count = any::<[u32; 2]>().prop_map(|[token, num_in_output]| TokenCount { token, num_in_output });
    let penalties = (0.01..100.0f32, -2.0..2.0f32, -2.0..2.0f32, vec(count, 0..5)).prop_map(
        |(repetition, presence, frequency, history)| Penalties { repetition, presence, frequency, history },
    );
    let bias = prop_oneof![Just(f32::NEG_INFINITY), -100.0..100.0f32];
    let choice = (0.0..2.0f32, of(1..=u32::MAX), 0.01..=1.0f32, 0.0..=1.0f32);
    let allowed = vec(any::<u32>(), 0..9).prop_map(|words| TokenMask(words.into()));
    let rest = (vec((any::<u32>(), bias), 0..4), any::<u64>(), of(allowed), of(0..=1024u32));
    (choice, of(penalties), rest).prop_map(
        |((temperature, top_k, top_p, min_p), penalties, (logit_bias, seed, allowed, num_logprobs))| {
            SamplingParams {
                temperature,
                top_k,
                top_p,
                min_p,
                penalties,
                logit_bias,
                seed,
                allowed,
                num_logprobs,
            }
        },
    )
}
