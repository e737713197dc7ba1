// What all kernels of the experts share: their argument, which rows a block
// works on, and the SwiGLU. Rust's side is src/experts/.
//
// Up takes rows to activations, down activations to outputs; both lie by slot.
// The sum over columns is cut into `splits` runs of chunks, fixed by the shape
// of the matrix: each run is summed from 0 in order, then the runs are added in
// order. All kernels keep to that, so a row gets the same bits from each.
#pragma once
#include "mxfp4.cuh"

constexpr u32 NOT_LOCAL = 0xFFFFFFFFu;
// Slots of a tile that is found by find_small_tile.
constexpr u32 SMALL_TILE = 8;

// Slots `sorted[first .. first + count]` go to one expert.
struct alignas(16) Tile {
    u32 expert;
    u32 first;
    u32 count;
    u32 pad;
};

struct ExpertsArgs {
    const u64* experts;      // where each local expert lies
    const bf16* input;
    bf16* output;
    const u32* choices;      // expert of the model that each slot goes to
    const u32* choice_rows;  // row of each slot, or null: slot / top_k
    const u32* local;        // local index of each expert of the model, or null: its number
    const Tile* tiles;       // or null: derived from at most 32 choices
    const u32* sorted;
    const u32* num_tiles;
    PackedMatrix weights;
    u32 num_known;           // experts that `local` tells of
    u32 num_slots;
    u32 top_k;
    u32 input_stride;        // elements
    u32 output_stride;
    u32 splits_log;          // 2^this splits
    u32 split_chunks;        // chunks of a split; the last may have fewer, not none
    float limit;             // of the SwiGLU
};

// The first chunk of a split; of one after the last the number of chunks.
DEVICE u32 split_begin(const ExpertsArgs& args, u32 split) {
    return min(split * args.split_chunks, args.weights.chunks);
}

// Asks for the tables that lead from a choice to its expert's weights: by the time
// that a layer comes again, they are in far memory. No kernel of a step writes them
// while another one reads them.
DEVICE void prefetch_tables(const ExpertsArgs& args) {
    const bool is_direct = args.local == nullptr;
    const u32 bytes = args.num_known * (is_direct ? sizeof(u64) : sizeof(u32));
    const unsigned char* table = is_direct ? reinterpret_cast<const unsigned char*>(args.experts)
                                           : reinterpret_cast<const unsigned char*>(args.local);
    for (u32 at = threadIdx.x * 128; at < bytes; at += blockDim.x * 128) prefetch_l2(table + at);
}

DEVICE u32 row_of_slot(const ExpertsArgs& args, u32 slot) {
    return args.choice_rows != nullptr ? args.choice_rows[slot] : slot / args.top_k;
}

// What a block works on.
struct Work {
    const unsigned char* expert;
    u32 count;   // of slots
};

// For at most 32 slots: the tile number `index`, counted by each tile's first
// slot. Every warp of the block calls it and finds the same; `slots` is filled.
DEVICE bool find_small_tile(const ExpertsArgs& args, u32 index, u32* slots, Work& work) {
    const u32 all = 0xFFFFFFFFu;
    const u32 lane = threadIdx.x % 32;
    u32 expert = NOT_LOCAL;
    if (lane < args.num_slots) {
        expert = load_early(args.choices + lane);
        if (expert >= args.num_known) {
            expert = NOT_LOCAL;
        } else if (args.local != nullptr) {
            expert = load_early(args.local + expert);
        }
    }
    // Asked for before it is known whose is needed.
    const u64 address = expert != NOT_LOCAL ? load_early(args.experts + expert) : 0;
    const u32 same = __match_any_sync(all, expert);
    const u32 before = (1u << lane) - 1;
    const u32 rank = __popc(same & before);
    const u32 leaders = __ballot_sync(all, expert != NOT_LOCAL && rank % SMALL_TILE == 0);
    if (index >= (u32)__popc(leaders)) return false;
    const bool leads = (leaders >> lane & 1) != 0 && (u32)__popc(leaders & before) == index;
    const u32 leader = __ffs((int)__ballot_sync(all, leads)) - 1;
    const u32 first_rank = __shfl_sync(all, rank, leader);
    const bool member = expert == __shfl_sync(all, expert, leader) && rank - first_rank < SMALL_TILE;
    work.expert = reinterpret_cast<const unsigned char*>(__shfl_sync(all, address, leader));
    work.count = __popc(__ballot_sync(all, member));
    if (member && threadIdx.x < 32) slots[rank - first_rank] = lane;
    return true;
}

// The tile number `index` and its slots; false if there is none. The block
// synchronises before it reads `slots`.
DEVICE bool find_tile(const ExpertsArgs& args, u32 index, u32* slots, Work& work) {
    if (args.tiles == nullptr) return find_small_tile(args, index, slots, work);
    const uint4 words = load_early(reinterpret_cast<const uint4*>(args.tiles + index));
    const Tile tile = {words.x, words.y, words.z, words.w};
    if (threadIdx.x < tile.count) slots[threadIdx.x] = load_early(args.sorted + tile.first + threadIdx.x);
    work.expert = reinterpret_cast<const unsigned char*>(load_early(args.experts + tile.expert));
    work.count = tile.count;
    return tile.count > 0;
}

// gpt-oss's: the gate is clamped above, the up on both sides.
DEVICE float swiglu(float gate, float up, float limit) {
    gate = fminf(gate, limit);
    up = fminf(fmaxf(up, -limit), limit);
    return divide_approx(gate, 1.0f + exp_approx(-1.702f * gate)) * (up + 1.0f);
}
