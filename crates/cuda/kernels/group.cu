// Groups slots by local expert: a stable counting sort, so slots stay in order
// within an expert, cut into tiles of at most `tile_slots`. Slots whose expert
// is not here are left out. Each block has SLOTS slots; where there are several
// blocks, group_count runs first, and group_place adds what the others have.
#include "experts.cuh"

constexpr u32 THREADS = 512;
constexpr u32 WARPS = THREADS / 32;
constexpr u32 ROUNDS = 8;                          // slots of a lane, at most
constexpr u32 SLOTS = THREADS * ROUNDS;            // slots of a block

struct GroupArgs {
    const u32* choices;   // expert of the model that each slot goes to
    const u32* local;     // as in ExpertsArgs
    u32* counts;          // [blocks][num_experts]
    Tile* tiles;          // [max_tiles]; those that are not used get a count of 0
    u32* sorted;
    u32* num_tiles;
    u32 num_known;
    u32 num_slots;
    u32 num_experts;      // local ones, at most THREADS
    u32 tile_slots;
    u32 max_tiles;
    u32 pad;
};

// What a lane knows of its slots.
struct LaneSlots {
    u32 first;            // slot of round 0; rounds are 32 slots apart
    u32 experts[ROUNDS];  // local ones
    u32 ranks[ROUNDS];    // among the warp's slots of the same expert
};

// Counts each warp's slots by expert into `counts`, [WARPS][num_experts].
DEVICE void count_slots(const GroupArgs& args, u32* counts, LaneSlots& mine) {
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (u32 i = threadIdx.x; i < WARPS * args.num_experts; i += THREADS) counts[i] = 0;
    const u32 begin = blockIdx.x * SLOTS;
    const u32 here = min(args.num_slots - begin, SLOTS);
    const u32 rounds = (here + THREADS - 1) / THREADS;
    mine.first = begin + warp * rounds * 32 + lane;
#pragma unroll
    for (u32 round = 0; round < ROUNDS; round++) {
        const u32 slot = mine.first + round * 32;
        u32 expert = NOT_LOCAL;
        if (round < rounds && slot < begin + here) expert = args.choices[slot];
        mine.experts[round] = expert;
    }
#pragma unroll
    for (u32 round = 0; round < ROUNDS; round++) {
        u32& expert = mine.experts[round];
        if (expert >= args.num_known) {
            expert = NOT_LOCAL;
        } else if (args.local != nullptr) {
            expert = args.local[expert];
        }
    }
    __syncthreads();
    u32* own = counts + warp * args.num_experts;
#pragma unroll
    for (u32 round = 0; round < ROUNDS; round++) {
        if (round >= rounds) break;
        const u32 expert = mine.experts[round];
        const u32 same = __match_any_sync(0xFFFFFFFFu, expert);
        const u32 rank = __popc(same & ((1u << lane) - 1));
        const bool here = expert != NOT_LOCAL;
        const u32 before = here ? own[expert] : 0;
        __syncwarp();
        if (here && rank == 0) own[expert] = before + __popc(same);
        __syncwarp();
        mine.ranks[round] = before + rank;
    }
    __syncthreads();
}

KERNEL(group_count, GroupArgs, THREADS) {
    DYN_SHARED(memory);
    u32* counts = reinterpret_cast<u32*>(memory);
    pdl_wait();
    pdl_trigger();
    LaneSlots mine;
    count_slots(args, counts, mine);
    const u32 expert = threadIdx.x;
    if (expert >= args.num_experts) return;
    u32 sum = 0;
    for (u32 warp = 0; warp < WARPS; warp++) sum += counts[warp * args.num_experts + expert];
    args.counts[blockIdx.x * args.num_experts + expert] = sum;
}

// The sums of what the threads before this one have, of two values at once.
DEVICE uint2 sum_before(uint2 value, uint2* warps) {
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    uint2 sum = value;
#pragma unroll
    for (u32 distance = 1; distance < 32; distance *= 2) {
        const u32 x = __shfl_up_sync(0xFFFFFFFFu, sum.x, distance);
        const u32 y = __shfl_up_sync(0xFFFFFFFFu, sum.y, distance);
        if (lane >= distance) {
            sum.x += x;
            sum.y += y;
        }
    }
    if (lane == 31) warps[warp] = sum;
    __syncthreads();
    sum.x -= value.x;
    sum.y -= value.y;
    for (u32 i = 0; i < warp; i++) {
        sum.x += warps[i].x;
        sum.y += warps[i].y;
    }
    return sum;
}

KERNEL(group_place, GroupArgs, THREADS) {
    DYN_SHARED(memory);
    SHARED(warps, uint2[WARPS]);
    SHARED(begins, uint2[THREADS + 1]);  // of each expert: its first place, its first tile
    u32* counts = reinterpret_cast<u32*>(memory);
    pdl_wait();
    pdl_trigger();
    LaneSlots mine;
    count_slots(args, counts, mine);

    const u32 expert = threadIdx.x;
    const bool exists = expert < args.num_experts;
    u32 here = 0, before = 0, total = 0;
    if (exists) {
        for (u32 warp = 0; warp < WARPS; warp++) {
            u32& count = counts[warp * args.num_experts + expert];
            const u32 more = count;
            count = here;
            here += more;
        }
        total = here;
        if (gridDim.x > 1) {
            total = 0;
            for (u32 block = 0; block < gridDim.x; block++) {
                const u32 count = args.counts[block * args.num_experts + expert];
                if (block < blockIdx.x) before += count;
                total += count;
            }
        }
    }
    const u32 tiles = (total + args.tile_slots - 1) / args.tile_slots;
    const uint2 begin = sum_before(make_uint2(total, tiles), warps);
    begins[expert] = begin;
    if (expert == THREADS - 1) begins[THREADS] = make_uint2(begin.x + total, begin.y + tiles);
    if (exists) {
        for (u32 warp = 0; warp < WARPS; warp++) counts[warp * args.num_experts + expert] += begin.x + before;
    }
    __syncthreads();

    const u32* own = counts + threadIdx.x / 32 * args.num_experts;
#pragma unroll
    for (u32 round = 0; round < ROUNDS; round++) {
        const u32 expert = mine.experts[round];
        if (expert != NOT_LOCAL) args.sorted[own[expert] + mine.ranks[round]] = mine.first + round * 32;
    }
    if (blockIdx.x > 0) return;

    const u32 num_tiles = begins[THREADS].y;
    if (threadIdx.x == 0) *args.num_tiles = num_tiles;
    for (u32 i = threadIdx.x; i < args.max_tiles; i += THREADS) {
        Tile tile = {0, 0, 0, 0};
        if (i < num_tiles) {
            // The last expert that begins at or before this tile has it.
            u32 low = 0, high = args.num_experts;
            while (high - low > 1) {
                const u32 middle = (low + high) / 2;
                if (begins[middle].y <= i) {
                    low = middle;
                } else {
                    high = middle;
                }
            }
            tile.expert = low;
            tile.first = begins[low].x + (i - begins[low].y) * args.tile_slots;
            tile.count = min(begins[low + 1].x - tile.first, args.tile_slots);
        }
        args.tiles[i] = tile;
    }
}
