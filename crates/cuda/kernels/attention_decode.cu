// Attention of few rows, as many as an mma has: reading keys and values is what
// takes the time. The four warps of a block take keys in turns, by themselves:
// each has a ring of its own in shared memory and its own softmax, and they meet
// only once all keys of the unit are done.
#include "attention_pages.cuh"

namespace {

constexpr u32 WARPS = ATTENTION_THREADS / 32;
constexpr u32 ROWS = 16;

// How a warp takes 16 keys and values of bf16: by way of ldmatrix.
struct Bf16Keys {
    static constexpr u32 WARP_KEYS = 16;
    static constexpr bool ARE_PAST_L1 = true;
    typedef PageReader<Bf16Rows, 32, WARP_KEYS> Reader;
    static constexpr u32 STAGES = 3;
    static constexpr u32 STAGE_BYTES = Reader::BYTES;

    // The columns of a lane's i-th pair of a query's elements: two for each step.
    static DEVICE u32 query_column(u32 i) { return i * 8 + threadIdx.x % 4 * 2; }

    // Those of its pair of the n-th accumulator.
    static DEVICE u32 output_column(u32 n) { return n * 8 + threadIdx.x % 4 * 2; }

    static DEVICE void copy(const Reader& reader, u32 key, const u32 (&pages)[Reader::COUNT], unsigned char* stage) {
        reader.copy(key, pages, stage);
    }

    DEVICE Bf16Keys(const unsigned char*, u32) {}

    DEVICE void multiply_keys(float (&scores)[2][4], const u32 (&queries)[HEAD_DIM / 16][4],
                              const unsigned char* stage) const {
#pragma unroll
        for (u32 step = 0; step < HEAD_DIM / 16; step++) {
            u32 fragment[4];
            load_keys(fragment, stage, 0, step);
            add_scores(scores[0], queries[step], fragment[0], fragment[1], step);
            add_scores(scores[1], queries[step], fragment[2], fragment[3], step);
        }
    }

    DEVICE void multiply_values(float (&output)[HEAD_DIM / 8][4], const float (&powers)[2][4],
                                const unsigned char* stage) const {
        const u32 left[4] = {pack_bf16(powers[0][0], powers[0][1]), pack_bf16(powers[0][2], powers[0][3]),
                             pack_bf16(powers[1][0], powers[1][1]), pack_bf16(powers[1][2], powers[1][3])};
#pragma unroll
        for (u32 step = 0; step < HEAD_DIM / 16; step++) {
            u32 fragment[4];
            load_values(fragment, stage + WARP_KEYS * Bf16Rows::ROW_BYTES, 0, step);
            mma_bf16(output[step * 2], left, fragment[0], fragment[1]);
            mma_bf16(output[step * 2 + 1], left, fragment[2], fragment[3]);
        }
    }
};

// How it takes 32 of FP8, as many bytes: a lane makes b operands of the 16 codes of a key that it has
// copied itself, since queries may have their dimensions in any order; of values,
// ldmatrix gives it pairs of dimensions for two keys. Exponents multiply scores
// and powers.
struct Fp8Keys {
    static constexpr u32 WARP_KEYS = 32;
    // Exponents of new keys lie in the same lines as old ones', and come by way of L1.
    static constexpr bool ARE_PAST_L1 = false;
    static constexpr u32 TILES = WARP_KEYS / 8;
    typedef PageReader<Fp8Rows, 32, WARP_KEYS> Reader;
    static constexpr u32 STAGES = 3;
    static constexpr u32 STAGE_BYTES = Reader::BYTES + WARP_KEYS * sizeof(u32);

    static DEVICE u32 query_column(u32 i) { return threadIdx.x % 4 * 16 + i * 2; }
    static DEVICE u32 output_column(u32 n) { return n / 2 * 16 + threadIdx.x % 4 * 4 + n % 2 * 2; }

    static DEVICE void copy(const Reader& reader, u32 key, const u32 (&pages)[Reader::COUNT], unsigned char* stage) {
        reader.copy(key, pages, stage);
        reader.copy_exponents(key, pages, reinterpret_cast<u32*>(stage + Reader::BYTES));
    }

    u32 exponents[TILES];  // of the lane's pairs of keys

    DEVICE Fp8Keys(const unsigned char* stage, u32 key) {
        const uint2* words = reinterpret_cast<const uint2*>(stage + Reader::BYTES) + threadIdx.x % 4;
#pragma unroll
        for (u32 n = 0; n < TILES; n++) {
            exponents[n] = pair_exponents(words[n * 4], key);
        }
    }

    DEVICE void multiply_keys(float (&scores)[TILES][4], const u32 (&queries)[HEAD_DIM / 16][4],
                              const unsigned char* stage) const {
        const u32 lane = threadIdx.x % 32;
#pragma unroll
        for (u32 n = 0; n < TILES; n++) {
            const uint4 codes = *reinterpret_cast<const uint4*>(stage + Fp8Rows::place(n * 8 + lane / 4, lane % 4));
            const u32 words[HEAD_DIM / 16] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
            for (u32 step = 0; step < HEAD_DIM / 16; step++) {
                u32 b0, b1;
                decode_codes(words[step], b0, b1);
                add_scores(scores[n], queries[step], b0, b1, step);
            }
            multiply(scores[n], key_powers(exponents[n]));
        }
    }

    DEVICE void multiply_values(float (&output)[HEAD_DIM / 8][4], float (&powers)[TILES][4],
                                const unsigned char* stage) const {
#pragma unroll
        for (u32 n = 0; n < TILES; n++) {
            multiply(powers[n], value_powers(exponents[n]));
        }
        const u32 lane = threadIdx.x % 32, matrix = lane / 8;
        const unsigned char* values = stage + WARP_KEYS * Fp8Rows::ROW_BYTES;
#pragma unroll
        for (u32 n = 0; n < TILES; n += 2) {
            const u32 left[4] = {pack_bf16(powers[n][0], powers[n][1]), pack_bf16(powers[n][2], powers[n][3]),
                                 pack_bf16(powers[n + 1][0], powers[n + 1][1]),
                                 pack_bf16(powers[n + 1][2], powers[n + 1][3])};
#pragma unroll
            for (u32 chunk = 0; chunk < Fp8Rows::CHUNKS; chunk += 2) {
                u32 words[4];
                const u32 row = n * 8 + matrix % 2 * 8 + lane % 8;
                ldmatrix_x4_trans(words, values + Fp8Rows::place(row, chunk + matrix / 2));
#pragma unroll
                for (u32 i = 0; i < 2; i++) {
                    u32 first[2], second[2];
                    decode_codes(words[i * 2], first[0], second[0]);
                    decode_codes(words[i * 2 + 1], first[1], second[1]);
                    mma_bf16(output[(chunk + i) * 2], left, first[0], first[1]);
                    mma_bf16(output[(chunk + i) * 2 + 1], left, second[0], second[1]);
                }
            }
        }
    }

    static DEVICE void multiply(float (&columns)[4], float2 powers) {
        columns[0] *= powers.x, columns[2] *= powers.x;
        columns[1] *= powers.y, columns[3] *= powers.y;
    }
};

// A ring for each warp: of either kind, 4 of them are in src/attention.rs.
template <class Keys>
constexpr u32 RING_BYTES = Keys::STAGES * Keys::STAGE_BYTES;

// A warp's results lie where its ring was; rows are spread over the banks.
constexpr u32 RESULT_STRIDE = HEAD_DIM + 8;
constexpr u32 RESULT_BYTES = (ROWS * RESULT_STRIDE + ROWS * 2) * sizeof(float);

template <class Keys>
DEVICE float* warp_outputs(unsigned char* rings, u32 warp, u32 row) {
    static_assert(RESULT_BYTES <= RING_BYTES<Keys>, "results take the ring's place");
    return reinterpret_cast<float*>(rings + warp * RING_BYTES<Keys>) + row * RESULT_STRIDE;
}

template <class Keys>
DEVICE float2* warp_sums(unsigned char* rings, u32 warp) {
    return reinterpret_cast<float2*>(warp_outputs<Keys>(rings, warp, ROWS));
}

// The a operands of all rows and dimensions; rows that are not there are 0.
template <class Keys>
DEVICE void load_queries(const AttentionArgs& args, const AttentionUnit& unit, u32 (&queries)[HEAD_DIM / 16][4]) {
    const u32 lane = threadIdx.x % 32, num_rows = unit.tile.num_tokens * args.group;
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        const u32 row = lane / 4 + half * 8;
        const bool there = row < num_rows;
        const bf16* source = args.queries + unit.place(args, there ? row : 0, args.query_stride);
#pragma unroll
        for (u32 i = 0; i < HEAD_DIM / 8; i++) {
            const u32* pair = reinterpret_cast<const u32*>(source + Keys::query_column(i));
            queries[i / 2][i % 2 * 2 + half] = there ? *pair : 0;
        }
    }
}

// Merges the warps' results in their order, and writes the context, or what the
// split contributes to it. Sixteen lanes have a row, each four columns of it.
template <class Keys>
DEVICE void merge_warps(const AttentionArgs& args, const AttentionUnit& unit, unsigned char* rings) {
    const u32 lane = threadIdx.x % 16, num_rows = unit.tile.num_tokens * args.group;
    for (u32 row = threadIdx.x / 16; row < num_rows; row += ATTENTION_THREADS / 16) {
        const bool is_whole = unit.tile.num_splits == 1;
        const float sink = is_whole ? unit.sink(args, row) : negative_infinity();
        float largest = sink;
#pragma unroll
        for (u32 warp = 0; warp < WARPS; warp++) {
            largest = fmaxf(largest, warp_sums<Keys>(rings, warp)[row].x);
        }
        // A split in which this row sees no key.
        const float base = largest == negative_infinity() ? 0.0f : largest;
        float sum = exp2_approx(sink - base);
        float4 output = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
        for (u32 warp = 0; warp < WARPS; warp++) {
            const float2 part = warp_sums<Keys>(rings, warp)[row];
            const float weight = exp2_approx(part.x - base);
            sum = fmaf(weight, part.y, sum);
            add_scaled(output, weight, *reinterpret_cast<float4*>(warp_outputs<Keys>(rings, warp, row) + lane * 4));
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

// A warp's part of a unit: every fourth run of so many keys.
template <class Keys>
DEVICE void attend(const AttentionArgs& args, const AttentionUnit& unit, unsigned char* rings) {
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    constexpr u32 STAGES = Keys::STAGES, WARP_KEYS = Keys::WARP_KEYS, BLOCK_KEYS = WARPS * WARP_KEYS;
    unsigned char* ring = rings + warp * RING_BYTES<Keys>;
    const typename Keys::Reader reader(args, unit, lane);
    u32 key = unit.begin + warp * WARP_KEYS;

    u32 pages[STAGES + 1][Keys::Reader::COUNT];
#pragma unroll
    for (u32 stage = 0; stage < STAGES + 1; stage++) {
        reader.look_up(key + stage * BLOCK_KEYS, pages[stage]);
    }
    // Keys before the slice, all of which the tile has, are of earlier steps: they
    // may come at once. All else a kernel before this one may just be writing.
    const u32 older = min(unit.tile.position, unit.end);
#pragma unroll
    for (u32 stage = 0; stage < STAGES; stage++) {
        const u32 from = key + stage * BLOCK_KEYS;
        if (!Keys::ARE_PAST_L1 || from + WARP_KEYS > older) break;
        Keys::copy(reader, from, pages[stage], ring + stage * Keys::STAGE_BYTES);
        cp_async_commit();
    }
    // A split of 256 keys, which those of up to 8192 are, is one stage longer than the ring.
    if (Keys::ARE_PAST_L1 && key + STAGES * BLOCK_KEYS + WARP_KEYS <= older) {
        reader.prefetch(key + STAGES * BLOCK_KEYS, pages[STAGES]);
    }
    pdl_wait();
#pragma unroll
    for (u32 stage = 0; stage < STAGES; stage++) {
        const u32 from = key + stage * BLOCK_KEYS;
        if (Keys::ARE_PAST_L1 && from + WARP_KEYS <= older) continue;
        if (from < unit.end) Keys::copy(reader, from, pages[stage], ring + stage * Keys::STAGE_BYTES);
        cp_async_commit();
    }
    u32 queries[HEAD_DIM / 16][4];
    load_queries<Keys>(args, unit, queries);
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
    for (u32 stage = 0; key < unit.end; key += BLOCK_KEYS) {
        cp_async_wait<STAGES - 1>();
        __syncwarp();
        unsigned char* place = ring + stage * Keys::STAGE_BYTES;
        const Keys keys(place, key);
        float scores[WARP_KEYS / 8][4];
        keys.multiply_keys(scores, queries, place);
        if (key < all_see_from || key + WARP_KEYS > unit.tile.position + 1) mask_scores(scores, key, oldest, newest);
        float factors[2];
        softmax.take(scores, factors);
        // Most of the time the largest score stays what it was.
        if (__any_sync(0xFFFFFFFFu, factors[0] != 1.0f || factors[1] != 1.0f)) {
#pragma unroll
            for (u32 n = 0; n < HEAD_DIM / 8; n++) {
#pragma unroll
                for (u32 i = 0; i < 4; i++) {
                    output[n][i] *= factors[i / 2];
                }
            }
        }
        keys.multiply_values(output, scores, place);
        // All lanes are done with the stage.
        __syncwarp();
        if (key + STAGES * BLOCK_KEYS < unit.end) {
            Keys::copy(reader, key + STAGES * BLOCK_KEYS, pages[STAGES], place);
        }
        cp_async_commit();
        reader.look_up(key + (STAGES + 1) * BLOCK_KEYS, pages[STAGES]);
        stage = stage + 1 == STAGES ? 0 : stage + 1;
    }

#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        const u32 row = lane / 4 + half * 8;
        const float sum = softmax.row_sum(half);
        if (lane % 4 == 0) warp_sums<Keys>(rings, warp)[row] = make_float2(softmax.highest[half], sum);
#pragma unroll
        for (u32 n = 0; n < HEAD_DIM / 8; n++) {
            float* target = warp_outputs<Keys>(rings, warp, row) + Keys::output_column(n);
            *reinterpret_cast<float2*>(target) = make_float2(output[n][half * 2], output[n][half * 2 + 1]);
        }
    }
}

template <class Keys>
DEVICE void decode(const AttentionArgs& args, unsigned char* rings) {
    pdl_trigger();
    const AttentionWork work = load_described<AttentionWork>(reinterpret_cast<const u32*>(args.work));
    const u32 num_units = work.num_decode_units * args.num_kv_heads;
    for (u32 turn = 0; turn * gridDim.x < num_units; turn++) {
        const u32 index = unit_of_turn(turn);
        if (index >= num_units) break;
        const AttentionUnit unit(args, work.tiles, args.step + work.decode_units, index);
        attend<Keys>(args, unit, rings);
        __syncthreads();
        merge_warps<Keys>(args, unit, rings);
        if (unit.tile.num_splits > 1 && is_last_split(args, unit)) merge_splits(args, unit);
        __syncthreads();
    }
    pdl_wait();
}

}  // namespace

KERNEL(attention_decode, AttentionArgs, ATTENTION_THREADS, 4) {
    DYN_SHARED(rings);
    decode<Bf16Keys>(args, rings);
}

KERNEL(attention_decode_fp8, AttentionArgs, ATTENTION_THREADS, 4) {
    DYN_SHARED(rings);
    decode<Fp8Keys>(args, rings);
}
