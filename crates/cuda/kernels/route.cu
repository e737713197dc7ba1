// The router: each row's experts, chosen from its logits by a warp. Where rows are
// few, the block that ends last of those that compute their logits chooses, too.
#include "last_block.cuh"
#include "linear_skinny.cuh"

struct RouteArgs {
    const float* logits;  // [rows, num_experts]
    u32* experts;         // [rows, top_k], best first
    float* weights;       // [rows, top_k], a softmax over the chosen
    u32 num_rows;
    u32 num_experts;      // at most 256
    u32 stride;           // of logits
    u32 top_k;            // at most num_experts and 32
};

struct RouteProductArgs {
    RouteArgs route;
    Product product;      // gives the logits
    u32* counters;        // one for every 8 rows; 0 between launches
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

DEVICE float logit_of(u32 rank) {
    return __uint_as_float(rank & 0x80000000u ? rank ^ 0x80000000u : ~rank);
}

// A warp's work.
DEVICE void choose(const RouteArgs& args, u32 row) {
    const u32 lane = threadIdx.x % 32;
    const float* logits = args.logits + static_cast<size_t>(row) * args.stride;
    u32 ranks[HELD];
#pragma unroll
    for (u32 i = 0; i < HELD; i++) {
        const u32 expert = i * 32 + lane;
        ranks[i] = expert < args.num_experts ? rank_of(logits[expert]) : GONE;
    }

    // Lane j keeps the j-th choice.
    u32 chosen = 0, chosen_rank = 0;
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
        if (lane == choice) chosen = expert, chosen_rank = greatest;
#pragma unroll
        for (u32 i = 0; i < HELD; i++) {
            if (i * 32 + lane == expert) ranks[i] = GONE;
        }
    }

    const bool is_chosen = lane < args.top_k;
    const float logit = is_chosen ? logit_of(chosen_rank) : 0.0f;
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

KERNEL(route_top, RouteArgs, 128) {
    pdl_wait();
    pdl_trigger();
    const u32 row = (blockIdx.x * THREADS + threadIdx.x) / 32;
    if (row < args.num_rows) choose(args, row);
}

KERNEL(route_few, RouteProductArgs, 256, 2) {
    DYN_SHARED(shared);
    // So few blocks have a long way through their weights: what the ring has no
    // room for is on its way to the L2 cache while the kernel before ends.
    if (blockIdx.y == 0) {
        const u32 tile_bytes = steps_of(args.product.cols) * LOAD_BYTES;
        const unsigned char* tile = reinterpret_cast<const unsigned char*>(args.product.weights) + blockIdx.x * tile_bytes;
        for (u32 at = threadIdx.x * 128; at < tile_bytes; at += 256 * 128) prefetch_l2(tile + at);
    }
    const Plain<float> logits = {const_cast<float*>(args.route.logits), args.product.outputs, args.route.stride};
    Skinny8x1::run(args.product, logits, shared);
    if (is_last_block(args.counters + blockIdx.y, gridDim.x)) {
        const u32 row = blockIdx.y * Skinny8x1::TOKENS + threadIdx.x / 32;
        if (row < args.route.num_rows) choose(args.route, row);
    }
}
