// Experts for few rows each, where reading the weights is all that takes time:
// a warp streams 16 rows of weights through a ring of its own and multiplies
// them with up to 8 activations that wait in shared memory. No barrier stands
// in the loop. With very few slots the splits of a row tile go to several
// warps, and blocks find their tile from the choices, without a sort.
#include "experts.cuh"

constexpr u32 WARPS = 8;
constexpr u32 TOKENS = 8;
// Tiles of a warp's ring; all but one are in flight. 45 chunks are 5 rounds.
constexpr u32 RING = 9;

// What a block has in shared memory, in bytes. Rust's side is few_shared_bytes.
struct FewShared {
    u32 scales;       // of each warp
    u32 edges;
    u32 activations;
    u32 row;          // of an activation
};

template <bool kSpread>
DEVICE FewShared few_shared(const ExpertsArgs& args) {
    const u32 chunks = args.weights.chunks;
    const u32 longest = kSpread ? args.split_chunks : chunks;
    FewShared shared;
    shared.scales = WARPS * RING * TILE_CODES;
    shared.edges = shared.scales + WARPS * longest * TILE_SCALES;
    shared.activations = shared.edges + WARPS * TILE_ROWS * (u32)sizeof(RowEdge);
    // 16 bytes more than the columns take: rows begin in different banks.
    shared.row = chunks * TILE_COLS * 2 + 16;
    return shared;
}

// A tile of weights times the activations of 64 columns.
DEVICE void multiply_tile(float (&sums)[4], const uint4& codes, u32 packed_scales, const bf16* columns) {
    const TileScales scales = tile_scales(packed_scales);
    u32 low[4], high[4], weights[4];
    ldmatrix_x4(low, columns);
    ldmatrix_x4(high, columns + 32);
    decode_fragment(codes.x, scales.first[0], scales.second[0], weights);
    mma_bf16(sums, weights, low[0], low[1]);
    decode_fragment(codes.y, scales.first[0], scales.second[0], weights);
    mma_bf16(sums, weights, low[2], low[3]);
    decode_fragment(codes.z, scales.first[1], scales.second[1], weights);
    mma_bf16(sums, weights, high[0], high[1]);
    decode_fragment(codes.w, scales.first[1], scales.second[1], weights);
    mma_bf16(sums, weights, high[2], high[3]);
}

DEVICE void fold(float (&total)[4], float (&sums)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        total[i] += sums[i];
        sums[i] = 0.0f;
    }
}

// Begins to copy the rows that up takes.
DEVICE void copy_activations(const ExpertsArgs& args, const Work& work, const u32* slots, bf16* to, u32 stride) {
    for (u32 i = 0; i < work.count; i++) {
        const bf16* from = args.input + (size_t)row_of_slot(args, slots[i]) * args.input_stride;
        for (u32 col = threadIdx.x * 8; col < args.weights.chunks * TILE_COLS; col += WARPS * 32 * 8) {
            cp_async16(to + i * stride + col, from + col, col < args.weights.cols);
        }
    }
}

// Copies the rows that down takes. They would be the last of the copies, and
// the first tile of the ring would have to wait for all: so not with cp.async.
DEVICE void load_activations(const ExpertsArgs& args, const Work& work, const u32* slots, bf16* to, u32 stride) {
    constexpr u32 rows = 4;   // whose loads are in flight at a time
    for (u32 first = 0; first < work.count; first += rows) {
        for (u32 col = threadIdx.x * 8; col < args.weights.chunks * TILE_COLS; col += WARPS * 32 * 8) {
            uint4 pieces[rows];
#pragma unroll
            for (u32 i = 0; i < rows; i++) {
                pieces[i] = make_uint4(0, 0, 0, 0);
                if (first + i < work.count && col < args.weights.cols) {
                    const bf16* from = args.input + (size_t)slots[first + i] * args.input_stride;
                    pieces[i] = *reinterpret_cast<const uint4*>(from + col);
                }
            }
#pragma unroll
            for (u32 i = 0; i < rows; i++) {
                if (first + i < work.count) *reinterpret_cast<uint4*>(to + (first + i) * stride + col) = pieces[i];
            }
        }
    }
}

// kUp: gate and up, else down. kSpread: a warp has one split, else all of them.
template <bool kUp, bool kSpread>
DEVICE void few(const ExpertsArgs& args) {
    DYN_SHARED(memory);
    SHARED(slots, u32[TOKENS]);
    const u32 thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    const u32 sharing_log = kSpread ? args.splits_log : 0;
    const u32 split = warp & ((1u << sharing_log) - 1);
    const u32 row_tile = blockIdx.x * (WARPS >> sharing_log) + (warp >> sharing_log);
    const bool live = row_tile < args.weights.row_tiles;
    const u32 begin = kSpread ? split_begin(args, split) : 0;
    const u32 count = (kSpread ? split_begin(args, split + 1) : args.weights.chunks) - begin;

    // Down may look for its tile, and ask for weights, before it waits: what says
    // which was written before up, and up lets down start only after it has
    // waited for that.
    if (kUp) {
        if (blockIdx.x == 0) prefetch_tables(args);
        pdl_wait();
    }
    Work work;
    if (!find_tile(args, blockIdx.y, slots, work)) {
        pdl_wait();
        return;
    }
    __syncthreads();
    const FewShared shared = few_shared<kSpread>(args);
    const size_t first_tile = (size_t)(live ? row_tile : 0) * args.weights.chunks + begin;
    const unsigned char* tile_codes = work.expert + args.weights.codes + first_tile * TILE_CODES;
    const uint4* codes = reinterpret_cast<const uint4*>(tile_codes) + lane;
    uint4* ring = reinterpret_cast<uint4*>(memory + keep((warp * RING * 32 + lane) * 16));
    unsigned char* scales = memory + shared.scales + (shared.edges - shared.scales) / WARPS * warp;
    RowEdge* edges = reinterpret_cast<RowEdge*>(memory + shared.edges) + warp * TILE_ROWS;
    bf16* activations = reinterpret_cast<bf16*>(memory + shared.activations);
    if (live) {
        const unsigned char* from = work.expert + args.weights.scales + first_tile * TILE_SCALES;
        for (u32 i = lane; i < count * 2; i += 32) cp_async16(scales + i * 16, from + i * 16, true);
        const unsigned char* row_edges = work.expert + args.weights.edges + row_tile * TILE_ROWS * sizeof(RowEdge);
        if (lane < 8) cp_async16(edges + lane * 2, row_edges + lane * 16, true);
    }
    if (kUp) copy_activations(args, work, slots, activations, shared.row / 2);
    cp_async_commit();
#pragma unroll
    for (u32 stage = 0; stage < RING - 1; stage++) {
        if (live && stage < count) cp_async16(ring + stage * 32, codes + stage * 32, true);
        cp_async_commit();
    }
    pdl_trigger();
    if (!kUp) {
        pdl_wait();
        load_activations(args, work, slots, activations, shared.row / 2);
    }
    // All but the ring's tiles are there.
    cp_async_wait<RING - 1>();
    __syncthreads();

    float total[4] = {0.0f, 0.0f, 0.0f, 0.0f}, sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    if (live) {
        // Columns of the product that no row has repeat the last one's.
        const u32 token = min(lane % 8, work.count - 1);
        const bf16* columns = activations + token * (shared.row / 2) + begin * TILE_COLS + lane / 8 * 8;
        const uint4* next_codes = codes + (RING - 1) * 32;
        const u32* packed_scales = reinterpret_cast<const u32*>(scales) + lane / 4;
        u32 next_fold = args.split_chunks;
        for (u32 base = 0; base < count; base += RING) {
#pragma unroll
            for (u32 step = 0; step < RING; step++) {
                const u32 chunk = base + step;
                if (chunk >= count) break;
                if (chunk + RING - 1 < count) {
                    cp_async16(ring + (step + RING - 1) % RING * 32, next_codes + step * 32, true);
                }
                cp_async_commit();
                cp_async_wait<RING - 1>();
                // Once, but a loop is sure to become a branch: of an if, all
                // instructions would be issued for each tile.
#pragma unroll 1
                while (!kSpread && chunk == next_fold) {
                    fold(total, sums);
                    next_fold += args.split_chunks;
                }
                multiply_tile(sums, ring[step * 32], packed_scales[step * 8], columns + step * TILE_COLS);
            }
            next_codes += RING * 32;
            packed_scales += RING * 8;
            columns += RING * TILE_COLS;
        }
        fold(total, sums);
    }

    if (kSpread && args.splits_log > 0) {
        // The ring is done with: what the splits sum to goes over it.
        float4* sums_of_warp = reinterpret_cast<float4*>(memory + warp * RING * TILE_CODES) + lane;
        *sums_of_warp = make_float4(total[0], total[1], total[2], total[3]);
        __syncthreads();
        if (split > 0) return;
        for (u32 other = 1; other < 1u << args.splits_log; other++) {
            const float4 more = sums_of_warp[other * RING * 32];
            total[0] += more.x;
            total[1] += more.y;
            total[2] += more.z;
            total[3] += more.w;
        }
    }
    if (!live) return;
    const RowEdge upper = edges[lane / 4], lower = edges[lane / 4 + 8];
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        const u32 token = lane % 4 * 2 + i;
        if (token >= work.count) break;
        const float a = total[i] * upper.multiplier + upper.bias;
        const float b = total[2 + i] * lower.multiplier + lower.bias;
        bf16* to = args.output + (size_t)slots[token] * args.output_stride;
        if (kUp) {
            to[row_tile * 8 + lane / 4] = float_to_bf16(swiglu(a, b, args.limit));
        } else {
            to[row_tile * TILE_ROWS + lane / 4] = float_to_bf16(a);
            to[row_tile * TILE_ROWS + lane / 4 + 8] = float_to_bf16(b);
        }
    }
}

KERNEL(experts_few_up_spread, ExpertsArgs, 256) {
    few<true, true>(args);
}

KERNEL(experts_few_down_spread, ExpertsArgs, 256) {
    few<false, true>(args);
}

KERNEL(experts_few_up, ExpertsArgs, 256) {
    few<true, false>(args);
}

KERNEL(experts_few_down, ExpertsArgs, 256) {
    few<false, false>(args);
}
