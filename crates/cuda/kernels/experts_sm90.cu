// Experts for many rows each, on Hopper: a warpgroup gathers activations and
// weights into a ring in shared memory; two more decode 64 rows of weights each
// into the registers of wgmmas, which take the activations from the ring. Blocks
// stay, and go from tile to tile.
//
// Activations are gathered with cp.async, not with TMA, which copies no rows that
// lie apart: this needs no pass that brings them together first.
#include "experts.cuh"
#include "hopper.cuh"

constexpr u32 BLOCK_TILES = 8;                         // row tiles of a block
constexpr u32 CONSUMERS = 2;                           // warpgroups
constexpr u32 GROUP_TILES = BLOCK_TILES / CONSUMERS;   // row tiles of a warpgroup: one for each warp
constexpr u32 PRODUCERS = 128;                         // threads
constexpr u32 CODES = BLOCK_TILES * TILE_CODES;        // bytes of a stage
constexpr u32 SCALES = BLOCK_TILES * TILE_SCALES;

#ifdef HOPPER

// kStages: of the ring. kFlying: stages that are being copied at a time.
template <u32 kTokens_, u32 kStages_, u32 kFlying_>
struct Shape {
    static constexpr u32 kTokens = kTokens_, kStages = kStages_, kFlying = kFlying_;
    static constexpr u32 kActivations = kTokens * TILE_COLS * 2;
    // Activations of each stage, multiples of 1024; then codes and scales of each.
    static constexpr u32 kWeightsAt = kStages * kActivations;
    static constexpr u32 kStagedAt = kWeightsAt + kStages * (CODES + SCALES);
    // Pieces of 16 bytes that a producer copies of a stage's activations.
    static constexpr u32 kCopies = kTokens * 8 / PRODUCERS;
    static constexpr u32 kFew = kTokens / 8 * 5;

    // How many tokens of a tile are multiplied: five eighths, or all. Most tiles are
    // about half full, and a product takes as long as it has tokens. With one number
    // more the compiler would run out of registers. No token's sum depends on it.
    static DEVICE u32 taken(u32 count) { return count <= kFew ? kFew : kTokens; }
};

// Where in the ring: stages are used in turn, and phases change each round.
template <class S>
struct Place {
    u32 stage = 0;
    u32 parity = 0;

    DEVICE void advance() {
        stage += 1;
        if (stage == S::kStages) {
            stage = 0;
            parity ^= 1;
        }
    }
};

template <class S>
struct Barriers {
    u64 full[S::kStages];
    u64 empty[S::kStages];
};

// Copies the stages of one tile. Row tiles that do not exist are copied from the
// first; nobody reads them.
template <bool kUp, class S>
struct Gatherer {
    const unsigned char* codes[2];   // a producer's warp has two row tiles, four apart
    const unsigned char* scales;
    const bf16* columns;             // of row 0
    u32 offsets[S::kCopies];         // of rows, in elements
    u32 num_rows;
    u32 num_copies;                  // of rows that are multiplied, whether they exist or not
    u32 col;
    u32 cols;
    u32 at;                          // where this thread's first row goes
    bool has_scales;

    DEVICE Gatherer(const ExpertsArgs& args, const Tile& tile, u32 first_tile) {
        const PackedMatrix& weights = args.weights;
        const u32 thread = threadIdx.x;
        const unsigned char* expert = reinterpret_cast<const unsigned char*>(args.experts[tile.expert]);
        // A thread has one piece of every 16th token: for all, the swizzle puts
        // it at the same place.
        const u32 token = thread / 8, piece = thread % 8;
        at = keep(token * TILE_COLS * 2 + (piece ^ (token % 8)) * 16);
        col = piece * 8;
        cols = weights.cols;
        columns = keep(args.input + col);
        num_rows = keep(tile.count > token ? (tile.count - token + 15) / 16 : 0);
        num_copies = keep((S::taken(tile.count) + 15) / 16);
#pragma unroll
        for (u32 i = 0; i < S::kCopies; i++) {
            offsets[i] = 0;
            if (i < num_rows) {
                const u32 slot = args.sorted[tile.first + token + i * 16];
                offsets[i] = (kUp ? row_of_slot(args, slot) : slot) * args.input_stride;
            }
            offsets[i] = keep(offsets[i]);
        }
        const u32 last = weights.row_tiles - 1;
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            const u32 row_tile = min(first_tile + thread / 32 + i * 4, last);
            codes[i] = keep(expert + weights.codes + (size_t)row_tile * weights.chunks * TILE_CODES + thread % 32 * 16);
        }
        has_scales = thread < BLOCK_TILES * 2;
        const u32 scale_tile = min(first_tile + thread / 2, last);
        scales = keep(expert + weights.scales + (size_t)scale_tile * weights.chunks * TILE_SCALES + thread % 2 * 16);
    }

    DEVICE void copy_next(unsigned char* activations, unsigned char* packed) {
#pragma unroll
        for (u32 i = 0; i < S::kCopies; i++) {
            if (i < num_copies) {
                cp_async16(activations + at + i * 16 * TILE_COLS * 2, columns + offsets[i], i < num_rows && col < cols);
            }
        }
        packed += threadIdx.x * 16;
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            cp_async16(packed + i * 4 * TILE_CODES, codes[i], true);
            codes[i] += TILE_CODES;
        }
        if (has_scales) cp_async16(packed + CODES, scales, true);
        scales += TILE_SCALES;
        columns += TILE_COLS;
        col += TILE_COLS;
    }
};

// The copies of all tiles of this block.
template <bool kUp, class S>
DEVICE void produce(const ExpertsArgs& args, unsigned char* memory, Barriers<S>& barriers, u32 row_groups, u32 work) {
    Place<S> next, flying;
    u32 num_flying = 0;
    for (u32 index = blockIdx.x; index < work; index += gridDim.x) {
        Gatherer<kUp, S> gatherer(args, args.tiles[index / row_groups], index % row_groups * BLOCK_TILES);
        for (u32 chunk = 0; chunk < args.weights.chunks; chunk++) {
            mbarrier_wait(&barriers.empty[next.stage], next.parity ^ 1);
            gatherer.copy_next(memory + next.stage * S::kActivations,
                               memory + S::kWeightsAt + next.stage * (CODES + SCALES));
            cp_async_commit();
            next.advance();
            if (num_flying < S::kFlying) {
                num_flying += 1;
                continue;
            }
            cp_async_wait<S::kFlying>();
            fence_proxy_async();
            mbarrier_arrive(&barriers.full[flying.stage]);
            flying.advance();
        }
    }
    cp_async_wait<0>();
    fence_proxy_async();
    for (; num_flying > 0; num_flying--) {
        mbarrier_arrive(&barriers.full[flying.stage]);
        flying.advance();
    }
}

// The weights of one warp's tile as the left matrices of four wgmmas.
DEVICE void decode_tile(u32 (&fragments)[4][4], const unsigned char* packed, u32 tile, u32 lane) {
    const uint4 words = reinterpret_cast<const uint4*>(packed)[tile * 32 + lane];
    const TileScales scales = tile_scales(reinterpret_cast<const u32*>(packed + CODES)[tile * 8 + lane / 4]);
    decode_fragment(words.x, scales.first[0], scales.second[0], fragments[0]);
    decode_fragment(words.y, scales.first[0], scales.second[0], fragments[1]);
    decode_fragment(words.z, scales.first[1], scales.second[1], fragments[2]);
    decode_fragment(words.w, scales.first[1], scales.second[1], fragments[3]);
}

template <bool kUp, class S>
struct Consumer {
    const ExpertsArgs& args;
    unsigned char* memory;
    Barriers<S>& barriers;
    u32 group, warp, lane;   // of the consumers
    Place<S> place;          // the next stage
    u32 before;              // the stage whose wgmmas may still run

    // A warp's tile of one stage; the wgmmas of the stage before end meanwhile.
    template <u32 kTaken>
    DEVICE void step(float (&sums)[kTaken / 2], u32 (&fragments)[4][4], bool begins, bool release) {
        mbarrier_wait(&barriers.full[place.stage], place.parity);
        decode_tile(fragments, memory + S::kWeightsAt + place.stage * (CODES + SCALES), group * GROUP_TILES + warp, lane);
        const unsigned char* activations = memory + place.stage * S::kActivations;
        wgmma_fence();
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            wgmma<kTaken>(sums, fragments[i], desc128(activations + i * 32), !(begins && i == 0));
        }
        wgmma_commit();
        wgmma_wait<1>();
        if (release && lane == 0) mbarrier_arrive(&barriers.empty[before]);
        before = place.stage;
        place.advance();
    }

    template <u32 kCount>
    DEVICE void finish(float (&sums)[kCount]) {
        wgmma_wait<0>();
        pin(sums);
        if (lane == 0) mbarrier_arrive(&barriers.empty[before]);
    }

    // The sums of one tile, which has at most kTaken tokens, split by split.
    template <u32 kTaken>
    DEVICE void multiply(float (&total)[kTaken / 2]) {
        float sums[kTaken / 2];
        u32 fragments[2][4][4];
#pragma unroll
        for (u32 i = 0; i < kTaken / 2; i++) {
            total[i] = 0.0f;
            sums[i] = 0.0f;
        }
        for (u32 split = 0; split < 1u << args.splits_log; split++) {
            const u32 count = split_begin(args, split + 1) - split_begin(args, split);
            // A condition within the loop would make the compiler serialise the wgmmas.
            for (u32 chunk = 0; chunk + 1 < count; chunk += 2) {
                step<kTaken>(sums, fragments[0], chunk == 0, chunk > 0);
                step<kTaken>(sums, fragments[1], false, true);
            }
            if (count % 2 != 0) step<kTaken>(sums, fragments[0], count == 1, count > 1);
            finish(sums);
#pragma unroll
            for (u32 i = 0; i < kTaken / 2; i++) total[i] += sums[i];
        }
    }

    // Sums to outputs, through shared memory so that rows are written in pieces
    // of 16 bytes.
    template <u32 kCount>
    DEVICE void write(const float (&total)[kCount], const Tile& tile, u32 first_tile) {
        constexpr u32 tile_features = kUp ? 8 : TILE_ROWS;
        constexpr u32 features = GROUP_TILES * tile_features;
        constexpr u32 row = features + 8;
        bf16* staged = reinterpret_cast<bf16*>(memory + S::kStagedAt) + group * S::kTokens * row;
        const u32 row_tile = first_tile + group * GROUP_TILES + warp;
        // What was written there is read.
        named_barrier(1 + group, 128);
        if (row_tile < args.weights.row_tiles) {
            const RowEdge* edges = reinterpret_cast<const RowEdge*>(
                reinterpret_cast<const unsigned char*>(args.experts[tile.expert]) + args.weights.edges);
            const RowEdge upper = edges[row_tile * TILE_ROWS + lane / 4];
            const RowEdge lower = edges[row_tile * TILE_ROWS + lane / 4 + 8];
#pragma unroll
            for (u32 i = 0; i < kCount / 4; i++) {
#pragma unroll
                for (u32 j = 0; j < 2; j++) {
                    const float a = total[i * 4 + j] * upper.multiplier + upper.bias;
                    const float b = total[i * 4 + 2 + j] * lower.multiplier + lower.bias;
                    bf16* to = staged + (i * 8 + lane % 4 * 2 + j) * row + warp * tile_features + lane / 4;
                    if (kUp) {
                        to[0] = float_to_bf16(swiglu(a, b, args.limit));
                    } else {
                        to[0] = float_to_bf16(a);
                        to[8] = float_to_bf16(b);
                    }
                }
            }
        }
        named_barrier(1 + group, 128);
        const u32 first_feature = (first_tile + group * GROUP_TILES) * tile_features;
        const u32 num_features = args.weights.row_tiles * tile_features;
        constexpr u32 pieces = features / 8;
        for (u32 i = warp * 32 + lane; i < tile.count * pieces; i += 128) {
            const u32 token = i / pieces, feature = i % pieces * 8;
            if (first_feature + feature >= num_features) continue;
            const u32 slot = args.sorted[tile.first + token];
            bf16* to = args.output + (size_t)slot * args.output_stride + first_feature + feature;
            *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(staged + token * row + feature);
        }
    }

    template <u32 kTaken>
    DEVICE void run_some(const Tile& tile, u32 first_tile) {
        float total[kTaken / 2];
        multiply<kTaken>(total);
        write(total, tile, first_tile);
    }

    DEVICE void run(const Tile& tile, u32 first_tile) {
        if (S::taken(tile.count) == S::kFew) {
            run_some<S::kFew>(tile, first_tile);
        } else {
            run_some<S::kTokens>(tile, first_tile);
        }
    }
};

template <bool kUp, class S>
DEVICE void hopper(const ExpertsArgs& args) {
    DYN_SHARED(memory);
    SHARED(barriers, Barriers<S>);
    const u32 thread = threadIdx.x;
    if (thread == 0) {
        for (u32 i = 0; i < S::kStages; i++) {
            mbarrier_init(&barriers.full[i], PRODUCERS);
            mbarrier_init(&barriers.empty[i], CONSUMERS * 4);
        }
        fence_mbarrier_init();
    }
    __syncthreads();
    pdl_wait();
    pdl_trigger();
    const u32 row_groups = (args.weights.row_tiles + BLOCK_TILES - 1) / BLOCK_TILES;
    const u32 work = *args.num_tiles * row_groups;
    if (thread < PRODUCERS) {
        setmaxnreg_dec<56>();
        produce<kUp, S>(args, memory, barriers, row_groups, work);
        return;
    }
    setmaxnreg_inc<224>();
    const u32 consumer = thread - PRODUCERS;
    Consumer<kUp, S> self = {args, memory, barriers, consumer / 128, consumer / 32 % 4, consumer % 32, {}, 0};
    for (u32 index = blockIdx.x; index < work; index += gridDim.x) {
        const Tile tile = args.tiles[index / row_groups];
        self.run(tile, index % row_groups * BLOCK_TILES);
    }
}

// Rust's side is HOPPER.
// A multiprocessor has one block, and memory wants 16 KB of weights under way on
// each: stages that fly are 4.3 KB of them, and three more are between the two sides.
using Tokens64 = Shape<64, 12, 9>;
using Tokens128 = Shape<128, 9, 6>;

#endif

KERNEL(experts_hopper_up_64, ExpertsArgs, 384, 1) {
#ifdef HOPPER
    hopper<true, Tokens64>(args);
#endif
}

KERNEL(experts_hopper_down_64, ExpertsArgs, 384, 1) {
#ifdef HOPPER
    hopper<false, Tokens64>(args);
#endif
}

KERNEL(experts_hopper_up_128, ExpertsArgs, 384, 1) {
#ifdef HOPPER
    hopper<true, Tokens128>(args);
#endif
}

KERNEL(experts_hopper_down_128, ExpertsArgs, 384, 1) {
#ifdef HOPPER
    hopper<false, Tokens128>(args);
#endif
}
