// Attention of few rows, as many as an mma has: reading keys and values is what
// takes the time. A block takes 64 keys at a time, its four warps 16 each, by
// themselves: each warp has a ring of its own in shared memory and its own
// softmax, and they meet only once all keys of the unit are done.
#include "attention.cuh"

namespace {

constexpr u32 WARPS = ATTENTION_THREADS / 32;
constexpr u32 WARP_KEYS = KEY_TILE / WARPS;
constexpr u32 ROWS = 16;
constexpr u32 STAGES = 3;
constexpr u32 STAGE_BYTES = 2 * WARP_KEYS * ROW_BYTES;
constexpr u32 RING_BYTES = STAGES * STAGE_BYTES;  // 4 of them: DECODE_SHARED_BYTES in src/attention.rs

// A warp's results lie where its ring was; rows are spread over the banks.
constexpr u32 RESULT_STRIDE = HEAD_DIM + 8;
static_assert((ROWS * RESULT_STRIDE + ROWS * 2) * sizeof(float) <= RING_BYTES, "results take the ring's place");

DEVICE float* warp_outputs(unsigned char* rings, u32 warp, u32 row) {
    return reinterpret_cast<float*>(rings + warp * RING_BYTES) + row * RESULT_STRIDE;
}

DEVICE float2* warp_sums(unsigned char* rings, u32 warp) {
    return reinterpret_cast<float2*>(warp_outputs(rings, warp, ROWS));
}

// The a operands of all rows and dimensions; rows that are not there are 0.
DEVICE void load_queries(const AttentionArgs& args, const AttentionUnit& unit, u32 (&queries)[HEAD_DIM / 16][4]) {
    const u32 lane = threadIdx.x % 32, num_rows = unit.tile.num_tokens * args.group;
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        const u32 row = lane / 4 + half * 8;
        const bool there = row < num_rows;
        const bf16* source = args.queries + unit.place(args, there ? row : 0, args.query_stride) + lane % 4 * 2;
#pragma unroll
        for (u32 i = 0; i < HEAD_DIM / 8; i++) {
            queries[i / 2][i % 2 * 2 + half] = there ? *reinterpret_cast<const u32*>(source + i * 8) : 0;
        }
    }
}

// Merges the warps' results in their order, and writes the context, or what the
// split contributes to it. Sixteen lanes have a row, each four columns of it.
DEVICE void merge_warps(const AttentionArgs& args, const AttentionUnit& unit, unsigned char* rings) {
    const u32 lane = threadIdx.x % 16, num_rows = unit.tile.num_tokens * args.group;
    for (u32 row = threadIdx.x / 16; row < num_rows; row += ATTENTION_THREADS / 16) {
        const bool is_whole = unit.tile.num_splits == 1;
        const float sink = is_whole ? unit.sink(args, row) : negative_infinity();
        float largest = sink;
#pragma unroll
        for (u32 warp = 0; warp < WARPS; warp++) {
            largest = fmaxf(largest, warp_sums(rings, warp)[row].x);
        }
        // A split in which this row sees no key.
        const float base = largest == negative_infinity() ? 0.0f : largest;
        float sum = exp2_approx(sink - base);
        float4 output = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
        for (u32 warp = 0; warp < WARPS; warp++) {
            const float2 part = warp_sums(rings, warp)[row];
            const float weight = exp2_approx(part.x - base);
            sum = fmaf(weight, part.y, sum);
            add_scaled(output, weight, *reinterpret_cast<float4*>(warp_outputs(rings, warp, row) + lane * 4));
        }
        if (is_whole) {
            bf16* target = args.context + unit.place(args, row, args.context_stride) + lane * 4;
            *reinterpret_cast<uint2*>(target) = pack_scaled(1.0f / sum, output);
        } else {
            const size_t place = unit.partial(args, unit.split, row);
            *reinterpret_cast<float4*>(args.partial_outputs + place * HEAD_DIM + lane * 4) = output;
            if (lane == 0) args.partial_sums[place] = make_float2(largest, sum);
        }
    }
}

// A warp's part of a unit: every 64th run of 16 keys.
DEVICE void attend(const AttentionArgs& args, const AttentionUnit& unit, unsigned char* rings) {
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    unsigned char* ring = rings + warp * RING_BYTES;
    const PageReader<WARP_KEYS / 4> reader(args, unit, lane);
    u32 key = unit.begin + warp * WARP_KEYS;

    u32 pages[STAGES + 1][4];
#pragma unroll
    for (u32 stage = 0; stage < STAGES + 1; stage++) {
        reader.look_up(key + stage * KEY_TILE, pages[stage]);
    }
    // What came before it in the step may have written all that follows.
    pdl_wait();
#pragma unroll
    for (u32 stage = 0; stage < STAGES; stage++) {
        if (key + stage * KEY_TILE < unit.end) {
            reader.copy(key + stage * KEY_TILE, pages[stage], ring + stage * STAGE_BYTES);
        }
        cp_async_commit();
    }
    u32 queries[HEAD_DIM / 16][4];
    load_queries(args, unit, queries);
    u32 oldest[2], newest[2];
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        const u32 token = (lane / 4 + half * 8) / args.group;
        oldest[half] = unit.oldest(args, token);
        newest[half] = unit.tile.position + token;
    }
    const u32 all_see_from = unit.oldest(args, unit.tile.num_tokens - 1);

    Softmax softmax;
    float output[HEAD_DIM / 8][4] = {};
    for (u32 stage = 0; key < unit.end; key += KEY_TILE) {
        cp_async_wait<STAGES - 1>();
        __syncwarp();
        unsigned char* keys = ring + stage * STAGE_BYTES;
        const unsigned char* values = keys + WARP_KEYS * ROW_BYTES;
        float scores[2][4];
#pragma unroll
        for (u32 step = 0; step < HEAD_DIM / 16; step++) {
            u32 fragment[4];
            load_keys(fragment, keys, 0, step);
            add_scores(scores[0], queries[step], fragment[0], fragment[1], step);
            add_scores(scores[1], queries[step], fragment[2], fragment[3], step);
        }
        if (key < all_see_from || key + WARP_KEYS > unit.tile.position + 1) mask_scores(scores, key, oldest, newest);
        float factors[2];
        softmax.take(scores, factors);
#pragma unroll
        for (u32 n = 0; n < HEAD_DIM / 8; n++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                output[n][i] *= factors[i / 2];
            }
        }
        const u32 powers[4] = {pack_bf16(scores[0][0], scores[0][1]), pack_bf16(scores[0][2], scores[0][3]),
                               pack_bf16(scores[1][0], scores[1][1]), pack_bf16(scores[1][2], scores[1][3])};
#pragma unroll
        for (u32 step = 0; step < HEAD_DIM / 16; step++) {
            u32 fragment[4];
            load_values(fragment, values, 0, step);
            mma_bf16(output[step * 2], powers, fragment[0], fragment[1]);
            mma_bf16(output[step * 2 + 1], powers, fragment[2], fragment[3]);
        }
        // All lanes are done with the stage.
        __syncwarp();
        if (key + STAGES * KEY_TILE < unit.end) reader.copy(key + STAGES * KEY_TILE, pages[STAGES], keys);
        cp_async_commit();
        reader.look_up(key + (STAGES + 1) * KEY_TILE, pages[STAGES]);
        stage = stage + 1 == STAGES ? 0 : stage + 1;
    }

#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        const u32 row = lane / 4 + half * 8;
        const float sum = softmax.row_sum(half);
        if (lane % 4 == 0) warp_sums(rings, warp)[row] = make_float2(softmax.highest[half], sum);
#pragma unroll
        for (u32 n = 0; n < HEAD_DIM / 8; n++) {
            float* target = warp_outputs(rings, warp, row) + n * 8 + lane % 4 * 2;
            *reinterpret_cast<float2*>(target) = make_float2(output[n][half * 2], output[n][half * 2 + 1]);
        }
    }
}

}  // namespace

KERNEL(attention_decode, AttentionArgs, ATTENTION_THREADS, 4) {
    DYN_SHARED(rings);
    pdl_trigger();
    const AttentionWork work = *args.work;
    const u32 num_units = work.num_decode_units * args.num_kv_heads;
    for (u32 turn = 0; turn * gridDim.x < num_units; turn++) {
        const u32 index = unit_of_turn(turn);
        if (index >= num_units) break;
        const AttentionUnit unit(args, work.tiles, args.step + work.decode_units, index);
        attend(args, unit, rings);
        __syncthreads();
        merge_warps(args, unit, rings);
        if (unit.tile.num_splits > 1 && is_last_split(args, unit)) merge_splits(args, unit);
        __syncthreads();
    }
    pdl_wait();
}
