// Experts for several to many rows each, on any GPU: a block multiplies 128 rows
// of weights with 16 to 128 rows of activations, 64 columns at a time from a ring
// in shared memory. A warp decodes weights once for all the tokens that it has.
#include "experts.cuh"

constexpr u32 THREADS = 256;
constexpr u32 BLOCK_TILES = 8;                         // tiles of 16 rows in a block
constexpr u32 CODES = BLOCK_TILES * TILE_CODES;        // bytes of a stage
constexpr u32 SCALES = BLOCK_TILES * TILE_SCALES;
constexpr u32 TOKEN_BYTES = TILE_COLS * 2;

// kTokens: of a block. kStages: of the ring. kColumns: warps side by side, which
// share a row of tiles and divide the tokens; then a warp has kColumns tiles.
template <u32 kTokens_, u32 kStages_, u32 kColumns_>
struct Shape {
    static constexpr u32 kTokens = kTokens_, kStages = kStages_, kColumns = kColumns_;
    static constexpr u32 kWarpTokens = kTokens / kColumns;
    static constexpr u32 kActivations = kTokens * TOKEN_BYTES;
    static constexpr u32 kStageBytes = kActivations + CODES + SCALES;
    // Pieces of 16 bytes of a stage's activations, and how many a thread copies.
    static constexpr u32 kPieces = kTokens * 8;
    static constexpr u32 kCopies = (kPieces + THREADS - 1) / THREADS;
};

// Where a piece of 16 bytes of a token's 64 columns lies: as a 128-byte swizzle
// has it, so that eight rows of one piece are in different banks.
DEVICE u32 piece_offset(u32 token, u32 piece) {
    return token * TOKEN_BYTES + (piece ^ (token & 7)) * 16;
}

template <class S>
struct Sums {
    float values[S::kColumns][S::kWarpTokens / 8][4];

    DEVICE void clear() {
#pragma unroll
        for (u32 i = 0; i < S::kColumns; i++) {
#pragma unroll
            for (u32 j = 0; j < S::kWarpTokens / 8; j++) {
#pragma unroll
                for (u32 k = 0; k < 4; k++) values[i][j][k] = 0.0f;
            }
        }
    }

    // Adds a split's sums, which begin anew.
    DEVICE void fold(Sums& split) {
#pragma unroll
        for (u32 i = 0; i < S::kColumns; i++) {
#pragma unroll
            for (u32 j = 0; j < S::kWarpTokens / 8; j++) {
#pragma unroll
                for (u32 k = 0; k < 4; k++) values[i][j][k] += split.values[i][j][k];
            }
        }
        split.clear();
    }
};

// Copies stage after stage: the codes, scales and activations of 64 columns.
// Row tiles that do not exist are copied from the first; nobody reads them.
template <bool kUp, class S>
struct Loader {
    const unsigned char* codes;
    const unsigned char* scales;
    const bf16* rows[S::kCopies];
    u32 num_rows;                   // of `rows`, those that exist
    u32 col;
    u32 cols;
    u32 codes_at;                   // where this thread's pieces go in a stage
    u32 activations_at;
    bool has_scales;
    bool has_pieces;

    DEVICE Loader(const ExpertsArgs& args, const Work& work, const u32* slots, u32 first_tile) {
        const PackedMatrix& weights = args.weights;
        const u32 thread = threadIdx.x;
        const u32 row_tile = min(first_tile + thread / 32, weights.row_tiles - 1);
        codes = keep(work.expert + weights.codes + (size_t)row_tile * weights.chunks * TILE_CODES + thread % 32 * 16);
        codes_at = keep(S::kActivations + thread * 16);
        has_scales = keep(thread < BLOCK_TILES * 2) != 0;
        has_pieces = S::kPieces % THREADS == 0 || keep(thread < S::kPieces) != 0;
        const u32 scale_tile = min(first_tile + thread / 2, weights.row_tiles - 1);
        scales = keep(work.expert + weights.scales + (size_t)scale_tile * weights.chunks * TILE_SCALES + thread % 2 * 16);
        // A thread has one piece of every 32nd token.
        const u32 token = thread / 8;
        activations_at = keep(piece_offset(token, thread % 8));
        col = thread % 8 * 8;
        cols = weights.cols;
        num_rows = keep(work.count > token ? (work.count - token + THREADS / 8 - 1) / (THREADS / 8) : 0);
#pragma unroll
        for (u32 i = 0; i < S::kCopies; i++) {
            rows[i] = args.input + col;
            if (i < num_rows) {
                const u32 slot = slots[token + i * (THREADS / 8)];
                rows[i] += (size_t)(kUp ? row_of_slot(args, slot) : slot) * args.input_stride;
            }
            rows[i] = keep(rows[i]);
        }
    }

    // Copies the chunk that is `ahead` of where this stands.
    DEVICE void copy(unsigned char* stage, u32 ahead) const {
        cp_async16(stage + codes_at, codes + ahead * TILE_CODES, true);
        if (has_scales) cp_async16(stage + codes_at + CODES, scales + ahead * TILE_SCALES, true);
        const bool in_row = col + ahead * TILE_COLS < cols;
#pragma unroll
        for (u32 i = 0; i < S::kCopies; i++) {
            if (!has_pieces) break;
            cp_async16(stage + activations_at + i * (THREADS / 8) * TOKEN_BYTES, rows[i] + ahead * TILE_COLS,
                       i < num_rows && in_row);
        }
    }

    DEVICE void advance(u32 chunks) {
        codes += chunks * TILE_CODES;
        scales += chunks * TILE_SCALES;
        col += chunks * TILE_COLS;
#pragma unroll
        for (u32 i = 0; i < S::kCopies; i++) rows[i] += chunks * TILE_COLS;
    }
};

// Where in a stage a lane reads.
template <class S>
struct Reader {
    u32 codes_at;
    u32 scales_at;
    u32 token_at;
    u32 piece_at;

    DEVICE Reader(u32 warp, u32 lane) {
        const u32 first_tile = warp / S::kColumns * S::kColumns;
        const u32 first_token = warp % S::kColumns * S::kWarpTokens;
        codes_at = keep(S::kActivations + first_tile * TILE_CODES + lane * 16);
        scales_at = keep(S::kActivations + CODES + first_tile * TILE_SCALES + lane / 4 * 4);
        // Matrices of an ldmatrix: eight tokens at the lower and the upper eight
        // columns, then the next eight tokens.
        token_at = keep((first_token + lane % 8 + lane / 16 * 8) * TOKEN_BYTES);
        piece_at = keep(((lane / 8 % 2) ^ (lane % 8)) * 16);
    }
};

// One stage: a warp's tiles of weights times its tokens.
template <class S>
DEVICE void multiply_stage(Sums<S>& sums, const Reader<S>& reader, const unsigned char* stage) {
    uint4 words[S::kColumns];
    TileScales scales[S::kColumns];
#pragma unroll
    for (u32 i = 0; i < S::kColumns; i++) {
        words[i] = *reinterpret_cast<const uint4*>(stage + reader.codes_at + i * TILE_CODES);
        scales[i] = tile_scales(*reinterpret_cast<const u32*>(stage + reader.scales_at + i * TILE_SCALES));
    }
    const unsigned char* tokens = stage + reader.token_at;
#pragma unroll
    for (u32 step = 0; step < 4; step++) {
        u32 weights[S::kColumns][4];
#pragma unroll
        for (u32 i = 0; i < S::kColumns; i++) {
            const u32 word = step == 0 ? words[i].x : step == 1 ? words[i].y : step == 2 ? words[i].z : words[i].w;
            decode_fragment(word, scales[i].first[step / 2], scales[i].second[step / 2], weights[i]);
        }
        const unsigned char* columns = tokens + (reader.piece_at ^ (step * 32));
#pragma unroll
        for (u32 pair = 0; pair < S::kWarpTokens / 16; pair++) {
            u32 fragment[4];
            ldmatrix_x4(fragment, columns + pair * 16 * TOKEN_BYTES);
#pragma unroll
            for (u32 i = 0; i < S::kColumns; i++) {
                mma_bf16(sums.values[i][pair * 2], weights[i], fragment[0], fragment[1]);
                mma_bf16(sums.values[i][pair * 2 + 1], weights[i], fragment[2], fragment[3]);
            }
        }
    }
}

// Sums to outputs, through shared memory so that rows are written in one piece.
template <bool kUp, class S>
DEVICE void write_outputs(const ExpertsArgs& args, const Sums<S>& sums, const Work& work, const u32* slots,
                          u32 first_tile, unsigned char* memory) {
    constexpr u32 tile_features = kUp ? 8 : TILE_ROWS;
    constexpr u32 features = BLOCK_TILES * tile_features;
    constexpr u32 row = features + 8;
    bf16* staged = reinterpret_cast<bf16*>(memory);
    const u32 thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    const RowEdge* edges = reinterpret_cast<const RowEdge*>(work.expert + args.weights.edges);
#pragma unroll
    for (u32 i = 0; i < S::kColumns; i++) {
        const u32 tile_here = warp / S::kColumns * S::kColumns + i;
        if (first_tile + tile_here >= args.weights.row_tiles) break;
        const RowEdge* own = edges + (first_tile + tile_here) * TILE_ROWS + lane / 4;
        const RowEdge upper = own[0], lower = own[8];
#pragma unroll
        for (u32 j = 0; j < S::kWarpTokens / 8; j++) {
#pragma unroll
            for (u32 k = 0; k < 2; k++) {
                const u32 token = warp % S::kColumns * S::kWarpTokens + j * 8 + lane % 4 * 2 + k;
                const float a = sums.values[i][j][k] * upper.multiplier + upper.bias;
                const float b = sums.values[i][j][2 + k] * lower.multiplier + lower.bias;
                bf16* to = staged + token * row + tile_here * tile_features + lane / 4;
                if (kUp) {
                    to[0] = float_to_bf16(swiglu(a, b, args.limit));
                } else {
                    to[0] = float_to_bf16(a);
                    to[8] = float_to_bf16(b);
                }
            }
        }
    }
    __syncthreads();
    const u32 first_feature = first_tile * tile_features;
    const u32 num_features = args.weights.row_tiles * tile_features;
    constexpr u32 pieces = features / 8;
    for (u32 i = thread; i < work.count * pieces; i += THREADS) {
        const u32 token = i / pieces, feature = i % pieces * 8;
        if (first_feature + feature >= num_features) continue;
        bf16* to = args.output + (size_t)slots[token] * args.output_stride + first_feature + feature;
        *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(staged + token * row + feature);
    }
}

template <bool kUp, class S>
DEVICE void tiled(const ExpertsArgs& args) {
    DYN_SHARED(memory);
    SHARED(slots, u32[S::kTokens]);
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const u32 first_tile = blockIdx.x * BLOCK_TILES;
    pdl_wait();
    pdl_trigger();
    Work work;
    if (!find_tile(args, blockIdx.y, slots, work)) return;
    __syncthreads();
    Loader<kUp, S> loader(args, work, slots, first_tile);
    const u32 chunks = args.weights.chunks;
#pragma unroll
    for (u32 stage = 0; stage < S::kStages - 1; stage++) {
        if (stage < chunks) loader.copy(memory + stage * S::kStageBytes, stage);
        cp_async_commit();
    }
    loader.advance(S::kStages - 1);

    const Reader<S> reader(warp, lane);
    Sums<S> total, sums;
    total.clear();
    sums.clear();
    u32 next_fold = args.split_chunks;
    for (u32 base = 0; base < chunks; base += S::kStages) {
#pragma unroll
        for (u32 step = 0; step < S::kStages; step++) {
            const u32 chunk = base + step;
            if (chunk >= chunks) break;
            cp_async_wait<S::kStages - 2>();
            // The stage is there for all, and all are done with the one before.
            __syncthreads();
            if (chunk + S::kStages - 1 < chunks) {
                loader.copy(memory + (step + S::kStages - 1) % S::kStages * S::kStageBytes, step);
            }
            cp_async_commit();
            // Once; a loop is sure to become a branch.
#pragma unroll 1
            while (chunk == next_fold) {
                total.fold(sums);
                next_fold += args.split_chunks;
            }
            multiply_stage<S>(sums, reader, memory + step * S::kStageBytes);
        }
        loader.advance(S::kStages);
    }
    total.fold(sums);
    cp_async_wait<0>();
    __syncthreads();
    write_outputs<kUp, S>(args, total, work, slots, first_tile, memory);
}

// Rust's side is TILED.
using Tokens16 = Shape<16, 6, 1>;
using Tokens32 = Shape<32, 6, 1>;
using Tokens64 = Shape<64, 5, 2>;
using Tokens128 = Shape<128, 4, 2>;

KERNEL(experts_tiled_up_16, ExpertsArgs, THREADS) {
    tiled<true, Tokens16>(args);
}

KERNEL(experts_tiled_down_16, ExpertsArgs, THREADS) {
    tiled<false, Tokens16>(args);
}

KERNEL(experts_tiled_up_32, ExpertsArgs, THREADS) {
    tiled<true, Tokens32>(args);
}

KERNEL(experts_tiled_down_32, ExpertsArgs, THREADS) {
    tiled<false, Tokens32>(args);
}

KERNEL(experts_tiled_up_64, ExpertsArgs, THREADS) {
    tiled<true, Tokens64>(args);
}

KERNEL(experts_tiled_down_64, ExpertsArgs, THREADS) {
    tiled<false, Tokens64>(args);
}

KERNEL(experts_tiled_up_128, ExpertsArgs, THREADS) {
    tiled<true, Tokens128>(args);
}

KERNEL(experts_tiled_down_128, ExpertsArgs, THREADS) {
    tiled<false, Tokens128>(args);
}
