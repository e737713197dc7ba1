// Drawing tokens from logits: what the kernels of sample.cu and sample_pick.cu
// share. Rust's side is src/sample.rs.
//
// A job is a draw, or the log-probabilities beside one. Rows of logits are cut
// into slices of fixed length, so that a job's result depends on nothing but its
// row. Probabilities are counted in fixed point: sums of integers are exact and
// the same in any order, so blocks and threads may add as they come.
#pragma once
#include "step.cuh"

constexpr u32 THREADS = 256;
constexpr u32 WARPS = THREADS / 32;
// Tokens of a slice, and of those the ones that a thread holds: CHUNKS times 4
// next to each other.
constexpr u32 SLICE = 4096;
constexpr u32 CHUNKS = SLICE / THREADS / 4;
constexpr u32 HELD = CHUNKS * 4;
constexpr u32 MAX_SLICES = THREADS;
// Logits fall into bins by their distance from the largest: 64 nats in all, and
// the last bin takes the rest.
constexpr u32 BINS = 4 * THREADS;
constexpr float BINS_PER_NAT = 16.0f;
// Tokens that a block sorts.
constexpr u32 LISTED = 2048;
constexpr u32 NONE = 0xFFFFFFFFu;
constexpr u32 ALL = 0xFFFFFFFFu;
// The mass of the most probable token; 2^21 of those, a whole row, fit u64.
constexpr double ONE = 4398046511104.0;
// A slice's mass when its logits hold what has no exponential.
constexpr u64 NO_MASS = ~0ull;

enum Kind : u32 {
    LARGEST,           // the largest logit
    BY_TOKEN,          // a draw from all tokens
    BY_TOKEN_FLOORED,  // from those that are probable enough
    BY_WEIGHT,         // from the most probable
    SCORES,            // log-probabilities of the untouched logits
};

struct SampleJob {
    double uniform;              // decides the draw
    double inverse_temperature;
    float min_p;
    float top_p;
    u32 kind;
    u32 row;
    u32 top_k;                   // 0 keeps all; of scores, how many to report
    u32 lists;                   // place among StepHeader::draw_lists, or NONE
    u32 scores;                  // the job of the row's scores, or NONE
    u32 top_at;                  // where reported tokens go
};

// What a draw brings along; offsets count words of the descriptor. Entries are
// pairs of words, those of slice s are `starts[s] .. starts[s + 1]`.
struct DrawLists {
    u32 allowed;                 // a bit for each token, or NONE
    u32 allowed_words;
    u32 bias_starts;
    u32 bias_entries;            // token and f32, sorted by token
    u32 bias_slices;
    u32 history_starts;
    u32 history_entries;         // distinct token and count
    u32 history_slices;
    float repetition;
    float presence;
    float frequency;
    u32 pad;
};

// One slice of one job.
struct SamplePart {
    u64 best;  // the greatest key
    u64 mass;  // relative to the best, or to the row's where tokens are floored
};

// How one job's tokens fall into bins.
struct SampleBins {
    u64 masses[BINS];
    u32 counts[BINS];
    u32 listed;
    u32 pad[3];
};

// What all of the sampler's kernels take.
struct SampleArgs {
    const u32* step;
    const SampleJob* jobs;
    const float* logits;  // [rows, cols]
    SamplePart* parts;    // [jobs, slices]
    SampleBins* bins;     // [jobs], if any job is sorted
    u64* listed;          // [jobs, LISTED], likewise
    u32* tokens;          // [rows]
    float* logprobs;      // [rows], then the reported tokens
    u32* reported;
    u32 cols;
    u32 stride;
    u32 slices;
    u32 pad;
};

// --- Keys --------------------------------------------------------------------
// A key orders tokens: the upper word by their logit, the lower one so that the
// lowest token is the greatest among equals.

DEVICE u32 ordered(float logit) {
    const u32 bits = __float_as_uint(logit);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

DEVICE u64 key_of(u32 order, u32 token) {
    return static_cast<u64>(order) << 32 | static_cast<u32>(~token);
}

// For draws: zeros are equal, and what is not a number loses.
DEVICE u64 draw_key(float logit, u32 token) {
    return key_of(logit == logit ? ordered(logit + 0.0f) : 0, token);
}

DEVICE u32 token_of(u64 key) {
    return ~static_cast<u32>(key);
}

DEVICE float logit_of(u64 key) {
    const u32 order = static_cast<u32>(key >> 32);
    return __uint_as_float(order & 0x80000000u ? order ^ 0x80000000u : ~order);
}

DEVICE bool is_finite(float logit) {
    return (__float_as_uint(logit) & 0x7F800000u) != 0x7F800000u;
}

// --- Weights -----------------------------------------------------------------

DEVICE double weight_of(float logit, float largest, double inverse_temperature) {
    return exp((static_cast<double>(logit) - static_cast<double>(largest)) * inverse_temperature);
}

// 0 for what is not a number, too.
DEVICE u64 mass_of(double weight) {
    return weight > 0.0 ? static_cast<u64>(fma(weight, ONE, 0.5)) : 0;
}

// What a job keeps of its row, once the row's largest logit is known.
struct Filter {
    bool scores;
    float largest;
    u32 top;  // the token that is kept whatever its weight
    double inverse_temperature;
    double floor;
    float bins_per_logit;

    DEVICE u64 key(float logit, u32 token) const {
        return scores ? key_of(ordered(logit), token) : draw_key(logit, token);
    }

    DEVICE u32 bin(float logit) const {
        const float distance = (largest - logit) * bins_per_logit;
        if (distance >= 0.0f) {
            return distance < static_cast<float>(BINS - 1) ? static_cast<u32>(distance) : BINS - 1;
        }
        // Infinities and what is not a number, ordered like keys.
        return ordered(logit) >= ordered(largest) ? 0 : BINS - 1;
    }

    // The mass of a token, and whether the job keeps it.
    DEVICE bool keeps(float logit, u32 token, u64& mass) const {
        mass = 0;
        if (scores) return true;
        const double weight = token == top ? 1.0 : weight_of(logit, largest, inverse_temperature);
        mass = mass_of(weight);
        return token == top || (weight > 0.0 && weight >= floor);
    }
};

DEVICE Filter filter_of(const SampleJob& job, u64 best) {
    Filter filter;
    filter.scores = job.kind == SCORES;
    filter.largest = logit_of(best);
    filter.top = token_of(best);
    filter.inverse_temperature = filter.scores ? 1.0 : job.inverse_temperature;
    filter.floor = static_cast<double>(job.min_p);
    filter.bins_per_logit = static_cast<float>(filter.inverse_temperature * static_cast<double>(BINS_PER_NAT));
    return filter;
}

// --- Blocks ------------------------------------------------------------------

DEVICE u64 warp_max(u64 value) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        value = max(value, __shfl_xor_sync(ALL, value, distance));
    }
    return value;
}

DEVICE u64 warp_sum(u64 value) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(ALL, value, distance);
    return value;
}

DEVICE u64 warp_scan(u64 value) {
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
        const u64 before = __shfl_up_sync(ALL, value, distance);
        if (threadIdx.x % 32 >= distance) value += before;
    }
    return value;
}

// The greatest value of the block, in every thread.
DEVICE u64 block_max(u64 value, u64 (&shared)[WARPS]) {
    value = warp_max(value);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
    __syncthreads();
    value = shared[0];
#pragma unroll
    for (u32 warp = 1; warp < WARPS; warp++) value = max(value, shared[warp]);
    __syncthreads();
    return value;
}

// The sum of the block's values, in every thread.
DEVICE u64 block_sum(u64 value, u64 (&shared)[WARPS]) {
    value = warp_sum(value);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
    __syncthreads();
    value = shared[0];
#pragma unroll
    for (u32 warp = 1; warp < WARPS; warp++) value += shared[warp];
    __syncthreads();
    return value;
}

// The sum of the values of this thread and those before it.
DEVICE u64 block_scan(u64 value, u64 (&shared)[WARPS]) {
    value = warp_scan(value);
    if (threadIdx.x % 32 == 31) shared[threadIdx.x / 32] = value;
    __syncthreads();
#pragma unroll
    for (u32 warp = 0; warp < WARPS; warp++) {
        if (warp < threadIdx.x / 32) value += shared[warp];
    }
    __syncthreads();
    return value;
}

// The greatest key of the job's row.
DEVICE u64 best_of(const SampleArgs& args, u32 job, u64 (&shared)[WARPS]) {
    u64 best = 0;
    if (threadIdx.x < args.slices) best = args.parts[static_cast<size_t>(job) * args.slices + threadIdx.x].best;
    return block_max(best, shared);
}

// --- Slices ------------------------------------------------------------------

// A row of logits, and what a draw changes in it.
struct Row {
    const float* logits;
    const u32* step;
    const DrawLists* lists;  // or null
    u32 cols;
};

DEVICE Row row_of(const SampleArgs& args, const SampleJob& job) {
    const DrawLists* lists = nullptr;
    if (job.lists != NONE) {
        lists = reinterpret_cast<const DrawLists*>(args.step + step_header(args.step).draw_lists) + job.lists;
    }
    return {args.logits + static_cast<size_t>(job.row) * args.stride, args.step, lists, args.cols};
}

// The token of value `held` of this thread.
DEVICE u32 token_at(u32 slice, u32 held) {
    return slice * SLICE + (held / 4 * THREADS + threadIdx.x) * 4 + held % 4;
}

// Adds biases, then penalties, to the staged logits of a slice.
DEVICE void adjust(const u32* step, const DrawLists& lists, u32 slice, float* staged) {
    if (slice < lists.bias_slices) {
        const u32* starts = step + lists.bias_starts;
        const uint2* entries = reinterpret_cast<const uint2*>(step + lists.bias_entries);
        const u32 begin = starts[slice], end = starts[slice + 1];
        for (u32 i = begin + threadIdx.x; i < end; i += THREADS) {
            const u32 token = entries[i].x;
            // The first entry of a token adds all of them, in order.
            if (i > begin && entries[i - 1].x == token) continue;
            float logit = staged[token % SLICE];
            for (u32 same = i; same < end && entries[same].x == token; same++) {
                logit = __fadd_rn(logit, __uint_as_float(entries[same].y));
            }
            staged[token % SLICE] = logit;
        }
    }
    __syncthreads();
    if (slice < lists.history_slices) {
        const u32* starts = step + lists.history_starts;
        const uint2* entries = reinterpret_cast<const uint2*>(step + lists.history_entries);
        for (u32 i = starts[slice] + threadIdx.x; i < starts[slice + 1]; i += THREADS) {
            const uint2 entry = entries[i];
            float logit = staged[entry.x % SLICE];
            logit = logit > 0.0f ? logit / lists.repetition : __fmul_rn(logit, lists.repetition);
            if (entry.y > 0) {
                const float repeated = __fmul_rn(lists.frequency, static_cast<float>(entry.y));
                logit = __fadd_rn(logit, -__fadd_rn(lists.presence, repeated));
            }
            staged[entry.x % SLICE] = logit;
        }
    }
    __syncthreads();
}

// Loads this thread's logits of a slice, as the draw sees them. What lies beyond
// the row is 0. All threads call it; `staged` is room that nobody uses.
DEVICE void load_slice(const Row& row, u32 slice, float (&values)[HELD], float (&staged)[SLICE]) {
#pragma unroll
    for (u32 i = 0; i < CHUNKS; i++) {
        const u32 token = token_at(slice, 4 * i);
        float4 four = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (token < row.cols) four = *reinterpret_cast<const float4*>(row.logits + token);
        values[4 * i] = four.x, values[4 * i + 1] = four.y;
        values[4 * i + 2] = four.z, values[4 * i + 3] = four.w;
    }
    if (!row.lists) return;
    const DrawLists& lists = *row.lists;
    if (lists.allowed != NONE) {
        const float impossible = __uint_as_float(0xFF800000u);
#pragma unroll
        for (u32 i = 0; i < CHUNKS; i++) {
            const u32 token = token_at(slice, 4 * i);
            u32 allowed = token / 32 < lists.allowed_words ? row.step[lists.allowed + token / 32] : 0;
            allowed >>= token % 32;
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                if (!(allowed >> j & 1)) values[4 * i + j] = impossible;
            }
        }
    }
    if (slice >= lists.bias_slices && slice >= lists.history_slices) return;
    float4* mine = reinterpret_cast<float4*>(staged) + threadIdx.x;
    __syncthreads();
#pragma unroll
    for (u32 i = 0; i < CHUNKS; i++) {
        mine[i * THREADS] = make_float4(values[4 * i], values[4 * i + 1], values[4 * i + 2], values[4 * i + 3]);
    }
    __syncthreads();
    adjust(row.step, lists, slice, staged);
#pragma unroll
    for (u32 i = 0; i < CHUNKS; i++) {
        const float4 four = mine[i * THREADS];
        values[4 * i] = four.x, values[4 * i + 1] = four.y;
        values[4 * i + 2] = four.z, values[4 * i + 3] = four.w;
    }
}
