// What the attention kernels share: how work is described and handed out, how
// keys and values get from their pages into shared memory, and how a softmax
// over parts of the keys is kept and merged.
//
// All of them take rows that share a key and value head together, so that these
// are read once: row r of a tile is query token r / group, and head r % group of
// the `group` query heads that use the same key and value head. Scores are kept
// times log2(e) / sqrt(64), so that a softmax is made of powers of 2.
#pragma once
#include "step.cuh"

constexpr u32 HEAD_DIM = 64;
constexpr u32 KEY_TILE = 64;       // keys that a block takes at once
constexpr u32 ROW_BYTES = HEAD_DIM * sizeof(bf16);
constexpr u32 MAX_SPLITS = 32;     // src/attention/plan.rs knows it, too
constexpr u32 ATTENTION_THREADS = 128;
constexpr float LOG2_E = 1.4426950408889634f;
// log2(e) / sqrt(64)
constexpr float SCORE_SCALE = LOG2_E / 8.0f;

// Where a step's work on one kind of layer is: offsets into its descriptor.
struct AttentionWork {
    u32 tiles;              // AttentionTile, of both kernels
    u32 decode_units;       // u32: tile << 8 | split
    u32 num_decode_units;
    u32 prefill_units;
    u32 num_prefill_units;
    u32 pad[3];
};

// Consecutive tokens of a sequence, and the keys that they see.
struct AttentionTile {
    u32 row;                // the step's row of the first token
    u32 num_tokens;
    u32 position;           // of the first token
    u32 begin;              // the first key that any token sees
    u32 end;                // one past the last
    u32 split_keys;         // keys of a split, a multiple of KEY_TILE
    u32 num_splits;
    u32 table;              // offset of page numbers
    u32 table_first;        // the page of the first of them, counted from position 0
    u32 partial;            // the first row of its partial results
    u32 counter;            // the first of its counters, one for each key and value head
    u32 pad;
};

struct AttentionArgs {
    const u32* step;            // the descriptor
    const AttentionWork* work;
    const bf16* queries;
    const bf16* pages;          // the layer's cache
    const float* sinks;         // one for each query head
    bf16* context;
    float* partial_outputs;     // [partial row, 64], not divided yet
    float2* partial_sums;       // [partial row]: the largest score, and the sum of powers relative to it
    u32* counters;              // splits of a tile and head that are done; 0 between launches
    u32 query_stride;
    u32 context_stride;
    u32 num_kv_heads;
    u32 group;                  // query heads that share a key and value head
    u32 block_shift;            // log2 of a page's positions
    u32 page_bytes;             // of all heads
    u32 window;                 // keys that a query sees, or 0 for all
    u32 pad;
};

DEVICE float negative_infinity() {
    return __uint_as_float(0xFF800000u);
}

// Where 16 bytes of a row of 128 bytes lie, so that eight rows at the same
// column lie in different banks.
DEVICE u32 swizzled(u32 row, u32 chunk) {
    return row * ROW_BYTES + ((chunk ^ (row & 7)) * 16);
}

// --- Work --------------------------------------------------------------------

// One block's share at a time: a tile, one key and value head, one split of the keys.
struct AttentionUnit {
    AttentionTile tile;
    u32 head;
    u32 begin, end;  // keys of the split
    u32 split;

    DEVICE AttentionUnit(const AttentionArgs& args, u32 tiles, const u32* units, u32 index) {
        const u32 unit = units[index / args.num_kv_heads];
        head = index % args.num_kv_heads;
        split = unit & 0xFF;
        tile = reinterpret_cast<const AttentionTile*>(args.step + tiles)[unit >> 8];
        begin = tile.begin + split * tile.split_keys;
        end = min(tile.end, begin + tile.split_keys);
    }

    // The first key that a token sees.
    DEVICE u32 oldest(const AttentionArgs& args, u32 token) const {
        const u32 end = tile.position + token + 1;
        return args.window != 0 && end > args.window ? end - args.window : 0;
    }

    // Where a row's queries begin in a matrix of the given stride, and its context.
    DEVICE size_t place(const AttentionArgs& args, u32 row, u32 stride) const {
        const u32 token = row / args.group, member = row % args.group;
        return static_cast<size_t>(tile.row + token) * stride + (head * args.group + member) * HEAD_DIM;
    }

    // A row's sink, scaled like the scores.
    DEVICE float sink(const AttentionArgs& args, u32 row) const {
        return args.sinks[head * args.group + row % args.group] * LOG2_E;
    }

    // The row of the partial results that a split's row has.
    DEVICE size_t partial(const AttentionArgs& args, u32 split, u32 row) const {
        return tile.partial + static_cast<size_t>(split * args.num_kv_heads + head) * (tile.num_tokens * args.group) +
               row;
    }
};

// Which unit a block takes in its n-th turn. Units are sorted, the longest
// first: turning round after each row of them evens out what the blocks get.
DEVICE u32 unit_of_turn(u32 turn) {
    return turn * gridDim.x + (turn % 2 == 0 ? blockIdx.x : gridDim.x - 1 - blockIdx.x);
}

// --- Keys and values ---------------------------------------------------------

// A thread's part in copying keys and values: 16 bytes at the same column of
// four of each, STEP positions apart.
template <u32 STEP>
struct PageReader {
    const unsigned char* head_pages;  // the thread's column in the head's part of page 0
    u32 page_bytes, block_shift;
    u32 values;                       // from keys to values
    const u32* table;
    u32 table_first, end;
    u32 row, chunk;

    // Eight threads for each row; `thread` counts those that copy together.
    DEVICE PageReader(const AttentionArgs& args, const AttentionUnit& unit, u32 thread) {
        row = thread / 8;
        chunk = thread % 8;
        const size_t head_offset = page_offset(0, unit.head, args.num_kv_heads, 1u << args.block_shift);
        head_pages = reinterpret_cast<const unsigned char*>(args.pages + head_offset) + chunk * 16;
        page_bytes = args.page_bytes;
        block_shift = args.block_shift;
        values = ROW_BYTES << args.block_shift;
        table = args.step + unit.tile.table;
        table_first = unit.tile.table_first;
        end = unit.end;
    }

    // Reads the numbers of the pages that the keys from `key` on lie in. It is
    // called well before `copy`, as that has to wait for them.
    DEVICE void look_up(u32 key, u32 (&pages)[4]) const {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const u32 position = key + row + i * STEP;
            pages[i] = position < end ? table[(position >> block_shift) - table_first] : 0;
        }
    }

    // Begins to copy 4 * STEP keys from `key` on, and behind them as many
    // values. Rows past the end become zeros: what lies there was never
    // written, and 0 times what is not a number would spoil the sum.
    DEVICE void copy(u32 key, const u32 (&pages)[4], unsigned char* shared) const {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const u32 position = key + row + i * STEP;
            const u32 slot = position & ((1u << block_shift) - 1);
            const unsigned char* source = head_pages + static_cast<u64>(pages[i]) * page_bytes + slot * ROW_BYTES;
            unsigned char* target = shared + swizzled(row + i * STEP, chunk);
            cp_async16(target, source, position < end);
            cp_async16(target + 4 * STEP * ROW_BYTES, source + values, position < end);
        }
    }
};

// The b operands of 16 keys, for a step of 16 dimensions of q k^T: the first two
// are of the first 8 keys.
DEVICE void load_keys(u32 (&fragment)[4], const unsigned char* keys, u32 first, u32 step) {
    const u32 lane = threadIdx.x % 32, matrix = lane / 8;
    ldmatrix_x4(fragment, keys + swizzled(first + matrix / 2 * 8 + lane % 8, step * 2 + matrix % 2));
}

// Adds a step's 16 dimensions to scores, which begin with the first.
DEVICE void add_scores(float (&scores)[4], const u32 (&queries)[4], u32 b0, u32 b1, u32 step) {
    if (step == 0) {
        mma_bf16_from_zero(scores, queries, b0, b1);
    } else {
        mma_bf16(scores, queries, b0, b1);
    }
}

// The b operands of 16 values, for 16 dimensions of p v: the first two are of
// the first 8 dimensions.
DEVICE void load_values(u32 (&fragment)[4], const unsigned char* values, u32 first, u32 step) {
    const u32 lane = threadIdx.x % 32, matrix = lane / 8;
    ldmatrix_x4_trans(fragment, values + swizzled(first + matrix % 2 * 8 + lane % 8, step * 2 + matrix / 2));
}

// --- Softmax -----------------------------------------------------------------

// Hides the scores of keys that a row does not see. Scores are those of a lane:
// 8 keys in each of COUNT accumulators, the first of them `key`; rows g and g + 8.
template <u32 COUNT>
DEVICE void mask_scores(float (&scores)[COUNT][4], u32 key, const u32 (&oldest)[2], const u32 (&newest)[2]) {
#pragma unroll
    for (u32 n = 0; n < COUNT; n++) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const u32 position = key + n * 8 + threadIdx.x % 4 * 2 + i % 2;
            if (position < oldest[i / 2] || position > newest[i / 2]) scores[n][i] = negative_infinity();
        }
    }
}

// What a lane knows of the softmax of rows g and g + 8.
struct Softmax {
    float highest[2];  // the largest score of the row so far, scaled
    float sum[2];      // of this lane's columns

    DEVICE Softmax() : highest{negative_infinity(), negative_infinity()}, sum{0.0f, 0.0f} {}

    // Takes scores in, and turns them into powers relative to the largest one so
    // far. `factors` is what earlier powers have to be multiplied with.
    template <u32 COUNT>
    DEVICE void take(float (&scores)[COUNT][4], float (&factors)[2]) {
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            float largest = fmaxf(scores[0][half * 2], scores[0][half * 2 + 1]);
#pragma unroll
            for (u32 n = 1; n < COUNT; n++) {
                largest = fmaxf(largest, fmaxf(scores[n][half * 2], scores[n][half * 2 + 1]));
            }
            largest = fmaxf(largest, __shfl_xor_sync(0xFFFFFFFFu, largest, 1));
            largest = fmaxf(largest, __shfl_xor_sync(0xFFFFFFFFu, largest, 2));
            const float before = highest[half];
            highest[half] = fmaxf(before, largest * SCORE_SCALE);
            // A row that has seen no key yet has nothing to relate to.
            const float base = highest[half] == negative_infinity() ? 0.0f : highest[half];
            factors[half] = exp2_approx(before - base);
            float added = 0.0f;
#pragma unroll
            for (u32 n = 0; n < COUNT; n++) {
#pragma unroll
                for (u32 i = half * 2; i < half * 2 + 2; i++) {
                    scores[n][i] = exp2_approx(fmaf(scores[n][i], SCORE_SCALE, -base));
                    added += scores[n][i];
                }
            }
            sum[half] = sum[half] * factors[half] + added;
        }
    }

    // The sum of all four lanes of a row.
    DEVICE float row_sum(u32 half) const {
        const float pair = sum[half] + __shfl_xor_sync(0xFFFFFFFFu, sum[half], 1);
        return pair + __shfl_xor_sync(0xFFFFFFFFu, pair, 2);
    }
};

DEVICE void add_scaled(float4& sum, float factor, const float4& values) {
    sum.x = fmaf(factor, values.x, sum.x);
    sum.y = fmaf(factor, values.y, sum.y);
    sum.z = fmaf(factor, values.z, sum.z);
    sum.w = fmaf(factor, values.w, sum.w);
}

DEVICE uint2 pack_scaled(float factor, const float4& values) {
    return make_uint2(pack_bf16(values.x * factor, values.y * factor), pack_bf16(values.z * factor, values.w * factor));
}

// --- Splits ------------------------------------------------------------------

// True in the block that is the last to have written its split's partial results;
// that block then sees those of all. Called by all threads.
DEVICE bool is_last_split(const AttentionArgs& args, const AttentionUnit& unit) {
    SHARED(is_last, bool);
    // The first fence is for what every thread wrote before the barrier, the
    // second for what every thread reads after it.
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        u32* counter = args.counters + unit.tile.counter + unit.head;
        is_last = atomicAdd(counter, 1u) + 1 == unit.tile.num_splits;
        if (is_last) *counter = 0;
        __threadfence();
    }
    __syncthreads();
    return is_last;
}

// Merges the splits of a tile and head in their order, and writes its context.
// Sixteen lanes have a row; each has four columns of it, and two splits' sums.
DEVICE void merge_splits(const AttentionArgs& args, const AttentionUnit& unit) {
    constexpr u32 UNROLLED = 8;
    const u32 lane = threadIdx.x % 16, num_splits = unit.tile.num_splits;
    const u32 num_rows = unit.tile.num_tokens * args.group;
    // Both halves of a warp stay until the last row, since they shuffle together.
    for (u32 pair = threadIdx.x / 32 * 2; pair < num_rows; pair += ATTENTION_THREADS / 16) {
        const u32 own = pair + threadIdx.x / 16 % 2, row = min(own, num_rows - 1);
        float2 sums[2];
        float largest = unit.sink(args, row);
        const float sink = largest;
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            const u32 split = lane + i * 16;
            sums[i] = make_float2(negative_infinity(), 0.0f);
            if (split < num_splits) sums[i] = args.partial_sums[unit.partial(args, split, row)];
            largest = fmaxf(largest, sums[i].x);
        }
#pragma unroll
        for (u32 distance = 8; distance > 0; distance /= 2) {
            largest = fmaxf(largest, __shfl_xor_sync(0xFFFFFFFFu, largest, distance));
        }
        const float weights[2] = {exp2_approx(sums[0].x - largest), exp2_approx(sums[1].x - largest)};
        float sum = sums[0].y * weights[0] + sums[1].y * weights[1];
#pragma unroll
        for (u32 distance = 8; distance > 0; distance /= 2) {
            sum += __shfl_xor_sync(0xFFFFFFFFu, sum, distance);
        }
        float4 output = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        for (u32 first = 0; first < num_splits; first += UNROLLED) {
            float4 parts[UNROLLED];
#pragma unroll
            for (u32 i = 0; i < UNROLLED; i++) {
                // A split that is not there weighs 0; any other stands in for it.
                const size_t place = unit.partial(args, min(first + i, num_splits - 1), row) * HEAD_DIM + lane * 4;
                parts[i] = *reinterpret_cast<const float4*>(args.partial_outputs + place);
            }
#pragma unroll
            for (u32 i = 0; i < UNROLLED; i++) {
                const float weight = __shfl_sync(0xFFFFFFFFu, first < 16 ? weights[0] : weights[1], (first + i) % 16, 16);
                add_scaled(output, weight, parts[i]);
            }
        }
        if (own < num_rows) {
            const float inverse = 1.0f / (sum + exp2_approx(sink - largest));
            bf16* target = args.context + unit.place(args, row, args.context_stride) + lane * 4;
            *reinterpret_cast<uint2*>(target) = pack_scaled(inverse, output);
        }
    }
}
