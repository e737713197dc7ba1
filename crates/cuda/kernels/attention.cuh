// What the attention kernels share: how work is described and handed out, how
// keys and values get from their pages into shared memory, and how a softmax
// over parts of the keys is kept and merged.
//
// All of them take rows that share a key and value head together, so that these
// are read once: row r of a tile is query token r / group, and head r % group of
// the `group` query heads that use the same key and value head. Scores are kept
// times log2(e) / sqrt(64), so that a softmax is made of powers of 2.
#pragma once
#include "last_block.cuh"
#include "step.cuh"

constexpr u32 HEAD_DIM = 64;
constexpr u32 KEY_TILE = 64;       // keys that a block takes at once
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
    u32 begin;              // the first key that is taken; of those before `first` nothing is read
    u32 end;                // one past the last that any token sees
    u32 split_keys;         // keys of a split, a multiple of KEY_TILE
    u32 num_splits;
    u32 table;              // offset of page numbers
    u32 table_first;        // the page of the first of them, counted from position 0
    u32 partial;            // the first row of its partial results
    u32 counter;            // the first of its counters, one for each key and value head
    u32 first;              // the first key that any token sees
};

struct AttentionArgs {
    const u32* step;            // the descriptor
    const AttentionWork* work;
    const bf16* queries;
    const unsigned char* pages; // the layer's cache
    const unsigned char* exponents;  // of its rows, where they are FP8: see fp8.cuh
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
    u32 page_bytes;             // of all heads, without exponents
    u32 window;                 // keys that a query sees, or 0 for all
    u32 pad;
};

// Loads a struct of the descriptor's words, before pdl_wait() or after.
template <class Struct>
DEVICE Struct load_described(const u32* words) {
    constexpr u32 COUNT = sizeof(Struct) / sizeof(u32);
    union {
        u32 loaded[COUNT];
        Struct result;
    };
#pragma unroll
    for (u32 i = 0; i < COUNT; i++) loaded[i] = load_early(words + i);
    return result;
}

DEVICE float negative_infinity() {
    return __uint_as_float(0xFF800000u);
}

// The first key that a token sees whose own, the last, is `newest`. No window,
// 0, wraps round to all keys.
DEVICE u32 oldest_seen(u32 newest, u32 window) {
    return newest - min(newest, window - 1);
}

// --- Work --------------------------------------------------------------------

// One block's share at a time: a tile, one key and value head, one split of the keys.
struct AttentionUnit {
    AttentionTile tile;
    u32 head;
    u32 begin, end;  // keys of the split
    u32 split;

    AttentionUnit() = default;

    DEVICE AttentionUnit(const AttentionArgs& args, u32 tiles, const u32* units, u32 index) {
        const u32 unit = load_early(units + index / args.num_kv_heads);
        head = index % args.num_kv_heads;
        split = unit & 0xFF;
        tile = load_described<AttentionTile>(args.step + tiles + (unit >> 8) * (sizeof(AttentionTile) / sizeof(u32)));
        begin = tile.begin + split * tile.split_keys;
        end = min(tile.end, begin + tile.split_keys);
    }

    // The first key that a token sees.
    DEVICE u32 oldest(const AttentionArgs& args, u32 token) const {
        return oldest_seen(tile.position + token, args.window);
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
    return is_last_block(args.counters + unit.tile.counter + unit.head, unit.tile.num_splits);
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
