// Products with few rows of input: all that matters is that the weights stream
// from memory without a pause. They are the A operand, so the tensor cores' 16
// rows are full however few the input's are.
//
// A block takes TILES tiles of the weights at a time, and each of its eight warps
// an eighth of the columns: what a warp needs, weights and input alike, only it
// needs, and it passes through a ring of its own without barriers. How columns
// are shared out depends on nothing else, and the warps' sums are added in order:
// a row's result does not depend on the rows beside it, nor on TOKENS or TILES.
//
// The input streams, too: 64 rows of 2880 columns would not fit into shared
// memory. That costs bandwidth of the L2 cache, 32 bytes a row for 512 bytes of
// a tile: little with few rows, and halved where TILES is 2.
#pragma once
#include "linear.cuh"

template <u32 TOKENS_, u32 TILES_, u32 STEPS_, u32 STAGES_>
struct Skinny {
    static constexpr u32 WARPS = 8;
    static constexpr u32 TOKENS = TOKENS_;  // rows of the input at a time
    static constexpr u32 TILES = TILES_;
    static constexpr u32 STEPS = STEPS_;    // steps of 16 columns in a stage of the ring: 1 or 2
    static constexpr u32 STAGES = STAGES_;

    static constexpr u32 COLUMN_TILES = TOKENS / 8;
    static constexpr u32 WEIGHT_BYTES = TILES * STEPS * FRAGMENT_BYTES;
    static constexpr u32 INPUT_BYTES = TOKENS * STEPS * STEP_COLS * 2;
    static constexpr u32 STAGE_BYTES = WEIGHT_BYTES + INPUT_BYTES;
    static constexpr u32 RING_BYTES = WARPS * STAGES * STAGE_BYTES;
    static constexpr u32 SUM_BYTES = WARPS * TILES * 32 * 16;
    // 16 bytes of a row of input are a piece; one load of a warp is 32 pieces.
    static constexpr u32 PIECES = STEPS * 2;
    static constexpr u32 LOADS = TOKENS * PIECES / 32;
    static_assert(STEPS == 2 || (STEPS == 1 && TOKENS >= 16), "ldmatrix_x4 takes four matrices");
    static_assert(LOADS * 32 == TOKENS * PIECES, "whole loads");

    const Product& product;
    unsigned char* ring;       // of the warp
    u32 lane, tiles, steps, groups;
    u32 begin, end;            // the warp's stages of every tile
    u32 first_token, tokens;   // the block's rows of input
    size_t pieces[LOADS];      // where this lane's rows of input begin

    // Runs ahead over what is to be loaded: group by group, stage by stage.
    struct Cursor {
        u32 group;
        u32 stage;
    };

    DEVICE Skinny(const Product& product, unsigned char* shared) : product(product) {
        const u32 warp = threadIdx.x / 32;
        lane = threadIdx.x % 32;
        ring = shared + warp * STAGES * STAGE_BYTES;
        tiles = tiles_of(product.outputs);
        groups = (tiles + TILES - 1) / TILES;
        steps = steps_of(product.cols);
        const u32 units = (product.cols + 2 * STEP_COLS - 1) / (2 * STEP_COLS);
        begin = units * warp / WARPS * 2 / STEPS;
        end = units * (warp + 1) / WARPS * 2 / STEPS;
        first_token = blockIdx.y * TOKENS;
        tokens = min(product.rows - first_token, TOKENS);
    }

    // A warp that has no columns has nothing to load.
    DEVICE Cursor start() const { return {begin < end ? blockIdx.x : groups, begin}; }

    DEVICE void advance(Cursor& cursor) const {
        cursor.stage++;
        if (cursor.stage == end) {
            cursor.stage = begin;
            cursor.group += gridDim.x;
        }
    }

    DEVICE void load_weights(const Cursor& cursor, u32 slot) const {
        unsigned char* to = ring + slot * STAGE_BYTES + lane * 16;
#pragma unroll
        for (u32 t = 0; t < TILES; t++) {
            const u32 tile = cursor.group * TILES + t;
            const bool valid = tile < tiles;
            const uint4* from = fragment_at(product.weights, steps, valid ? tile : 0, cursor.stage * STEPS, lane);
#pragma unroll
            for (u32 s = 0; s < STEPS; s++) {
                cp_async16(to + (t * STEPS + s) * FRAGMENT_BYTES, from + s * 32, valid);
            }
        }
    }

    DEVICE void find_input() {
#pragma unroll
        for (u32 i = 0; i < LOADS; i++) {
            const u32 token = i * (32 / PIECES) + lane / PIECES;
            pieces[i] = token < tokens ? input_piece(product, first_token + token) : 0;
        }
    }

    // Input lies as [piece][token], so that eight rows of a matrix are in 128 bytes.
    DEVICE void load_input(const Cursor& cursor, u32 slot) const {
        unsigned char* to = ring + slot * STAGE_BYTES + WEIGHT_BYTES;
        const uint4* input = reinterpret_cast<const uint4*>(product.input);
        const u32 piece = lane % PIECES;
        const u32 at = cursor.stage * PIECES + piece;
#pragma unroll
        for (u32 i = 0; i < LOADS; i++) {
            const u32 token = i * (32 / PIECES) + lane / PIECES;
            const bool valid = token < tokens && at * 8 < product.cols;
            cp_async16(to + (piece * TOKENS + token) * 16, input + (valid ? pieces[i] + at : 0), valid);
        }
    }

    DEVICE void multiply(u32 slot, float (&sums)[TILES][COLUMN_TILES][4]) const {
        const unsigned char* stage = ring + slot * STAGE_BYTES;
        u32 a[TILES][STEPS][4];
#pragma unroll
        for (u32 t = 0; t < TILES; t++) {
#pragma unroll
            for (u32 s = 0; s < STEPS; s++) {
                const u32 at = (t * STEPS + s) * FRAGMENT_BYTES + lane * 16;
                const uint4 words = *reinterpret_cast<const uint4*>(stage + at);
                a[t][s][0] = words.x, a[t][s][1] = words.y, a[t][s][2] = words.z, a[t][s][3] = words.w;
            }
        }
        // Four matrices of eight rows at once: four pieces of 8 rows, or two of 16.
        const u32 matrix = lane / 8;
        const u32 piece = STEPS == 2 ? matrix : matrix % 2, upper = STEPS == 2 ? 0 : matrix / 2;
        const unsigned char* input = stage + WEIGHT_BYTES + (piece * TOKENS + upper * 8 + lane % 8) * 16;
#pragma unroll
        for (u32 n = 0; n < COLUMN_TILES; n += 3 - STEPS) {
            u32 b[4];
            ldmatrix_x4(b, input + n * 128);
#pragma unroll
            for (u32 t = 0; t < TILES; t++) {
                mma_bf16(sums[t][n], a[t][0], b[0], b[1]);
                mma_bf16(sums[t][STEPS == 2 ? n : n + 1], a[t][STEPS - 1], b[2], b[3]);
            }
        }
    }

    // Adds up what the warps have of eight rows of input, and hands it on.
    template <class Epilogue>
    DEVICE void finish(u32 group, u32 column_tile, const float4 (&mine)[TILES], float* shared_sums,
                       const uint2* places, const Epilogue& epilogue) const {
        const u32 thread = threadIdx.x;
#pragma unroll
        for (u32 t = 0; t < TILES; t++) {
            reinterpret_cast<float4*>(shared_sums)[(thread / 32 * TILES + t) * 32 + lane] = mine[t];
        }
        const u32 t = thread / 64, token = column_tile * 8 + thread / 8 % 8, tile = group * TILES + t;
        const bool takes = t < TILES && token < tokens && tile < tiles;
        const TileRows rows = tile_rows(tile, product.outputs);
        const u32 output = rows.first + thread % 8;
        float low = 0.0f, high = 0.0f;
        float2 turn = make_float2(1.0f, 0.0f);
        if (takes) {
            low = product.bias[output];
            high = product.bias[output + rows.gap];
            turn = epilogue.turn(output, first_token + token);
        }
        __syncthreads();
        if (takes) {
            const u32 at = (t * 32 + thread % 8 * 4 + token % 8 / 2) * 4 + token % 2;
            float low_sum = 0.0f, high_sum = 0.0f;
#pragma unroll
            for (u32 warp = 0; warp < WARPS; warp++) {
                low_sum += shared_sums[warp * TILES * 128 + at];
                high_sum += shared_sums[warp * TILES * 128 + at + 2];
            }
            low += low_sum;
            high += high_sum;
            epilogue.rotate(turn, low, high);
            epilogue.put(output, first_token + token, places[token], low);
            epilogue.put(output + rows.gap, first_token + token, places[token], high);
        }
        __syncthreads();
    }

    // The whole product. `shared` is RING_BYTES, SUM_BYTES, and 8 bytes a token.
    template <class Epilogue>
    DEVICE static void run(const Product& product, const Epilogue& epilogue, unsigned char* shared) {
        Skinny self(product, shared);
        float* shared_sums = reinterpret_cast<float*>(shared + RING_BYTES);
        uint2* places = reinterpret_cast<uint2*>(shared + RING_BYTES + SUM_BYTES);

        // Weights depend on no earlier kernel.
        Cursor cursor = self.start();
        for (u32 slot = 0; slot < STAGES - 1 && cursor.group < self.groups; slot++) {
            self.load_weights(cursor, slot);
            self.advance(cursor);
        }
        pdl_trigger();
        pdl_wait();
        self.find_input();
        cursor = self.start();
        for (u32 slot = 0; slot < STAGES - 1; slot++) {
            if (cursor.group < self.groups) {
                self.load_input(cursor, slot);
                self.advance(cursor);
            }
            cp_async_commit();
        }
        // What depends on loads in turn waits while the ring fills.
        epilogue.prepare(places, self.first_token, self.tokens, threadIdx.x);

        u32 slot = 0, freed = STAGES - 1;
        for (u32 group = blockIdx.x; group < self.groups; group += gridDim.x) {
            float sums[TILES][COLUMN_TILES][4];
#pragma unroll
            for (u32 t = 0; t < TILES; t++) {
#pragma unroll
                for (u32 n = 0; n < COLUMN_TILES; n++) {
                    sums[t][n][0] = sums[t][n][1] = sums[t][n][2] = sums[t][n][3] = 0.0f;
                }
            }
            for (u32 stage = self.begin; stage < self.end; stage++) {
                cp_async_wait<STAGES - 2>();
                // What other lanes copied is there, and all are done with the slot to refill.
                __syncwarp();
                if (cursor.group < self.groups) {
                    self.load_weights(cursor, freed);
                    self.load_input(cursor, freed);
                    self.advance(cursor);
                }
                cp_async_commit();
                self.multiply(slot, sums);
                freed = slot;
                slot = slot + 1 == STAGES ? 0 : slot + 1;
            }
#pragma unroll
            for (u32 n = 0; n < COLUMN_TILES; n++) {
                if (n * 8 >= self.tokens) break;
                float4 mine[TILES];
#pragma unroll
                for (u32 t = 0; t < TILES; t++) {
                    mine[t] = make_float4(sums[t][n][0], sums[t][n][1], sums[t][n][2], sums[t][n][3]);
                }
                self.finish(group, n, mine, shared_sums, places, epilogue);
            }
        }
    }
};

// Few rows want deep rings; what more of them take, the ring gives. All fit into
// the 99 KiB of the smallest GPUs. Rust's side is the table in src/linear/.
typedef Skinny<8, 1, 2, 7> Skinny8x1;
typedef Skinny<8, 2, 2, 4> Skinny8x2;
typedef Skinny<16, 2, 1, 6> Skinny16x2;
typedef Skinny<32, 2, 1, 5> Skinny32x2;
typedef Skinny<64, 2, 1, 3> Skinny64x2;
