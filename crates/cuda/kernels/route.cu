// Chooses each row's experts from the router's logits: a warp for each row.
#include "gpu.cuh"

struct RouteArgs {
    const float* logits;  // [rows, num_experts]
    u32* experts;         // [rows, top_k], best first
    float* weights;       // [rows, top_k], a softmax over the chosen
    u32 num_rows;
    u32 num_experts;      // at most 256
    u32 stride;           // of logits
    u32 top_k;            // at most num_experts and 32
};

constexpr u32 THREADS = 128;
// Logits of a lane.
constexpr u32 HELD = 8;
constexpr u32 ALL = 0xFFFFFFFFu;
// Ranks below that of any number.
constexpr u32 GONE = 0, NOT_A_NUMBER = 1;

// Ranks order as numbers do; what is not a number loses.
DEVICE u32 rank_of(float logit) {
    if (logit != logit) return NOT_A_NUMBER;
    const u32 bits = __float_as_uint(logit);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

KERNEL(route_top, RouteArgs, 128) {
    pdl_wait();
    pdl_trigger();
    const u32 lane = threadIdx.x % 32;
    const u32 row = (blockIdx.x * THREADS + threadIdx.x) / 32;
    if (row >= args.num_rows) return;

    const float* logits = args.logits + static_cast<size_t>(row) * args.stride;
    u32 ranks[HELD];
#pragma unroll
    for (u32 i = 0; i < HELD; i++) {
        const u32 expert = i * 32 + lane;
        ranks[i] = expert < args.num_experts ? rank_of(logits[expert]) : GONE;
    }

    // Lane j keeps the j-th choice.
    u32 chosen = 0;
    for (u32 choice = 0; choice < args.top_k; choice++) {
        u32 best = GONE, held = 0;
#pragma unroll
        for (u32 i = 0; i < HELD; i++) {
            if (ranks[i] > best) {
                best = ranks[i];
                held = i;
            }
        }
        const u32 greatest = __reduce_max_sync(ALL, best);
        const u32 expert = __reduce_min_sync(ALL, best == greatest ? held * 32 + lane : ALL);
        if (lane == choice) chosen = expert;
#pragma unroll
        for (u32 i = 0; i < HELD; i++) {
            if (i * 32 + lane == expert) ranks[i] = GONE;
        }
    }

    const bool is_chosen = lane < args.top_k;
    const float logit = is_chosen ? logits[chosen] : 0.0f;
    const float largest = __shfl_sync(ALL, logit, 0);
    const float exponential = expf(logit - largest);
    float sum = 0;
    for (u32 choice = 0; choice < args.top_k; choice++) sum += __shfl_sync(ALL, exponential, choice);
    if (is_chosen) {
        const size_t slot = static_cast<size_t>(row) * args.top_k + lane;
        args.experts[slot] = chosen;
        args.weights[slot] = exponential / sum;
    }
}
