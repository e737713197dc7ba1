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
// memory. That costs bandwidth of the L2 cache, 32 bytes a row for each step of a
// tile, 512 bytes or of integers 256: little with few rows, and halved where TILES
// is 2.
#pragma once
#include "linear.cuh"

template <class Weights, u32 TOKENS_, u32 TILES_, u32 STEPS_, u32 STAGES_>
struct Skinny {
    static constexpr u32 WARPS = 8;
    static constexpr u32 TOKENS = TOKENS_;  // rows of the input at a time
    static constexpr u32 TILES = TILES_;
    static constexpr u32 STEPS = STEPS_;    // steps of 16 columns in a stage of the ring: 1, 2 or 4
    static constexpr u32 STAGES = STAGES_;

    static constexpr u32 COLUMN_TILES = TOKENS / 8;
    static constexpr u32 TILE_LOADS = STEPS / Weights::LOAD_STEPS;
    static constexpr u32 WEIGHT_BYTES = TILES * TILE_LOADS * LOAD_BYTES;
    static constexpr u32 INPUT_BYTES = TOKENS * STEPS * STEP_COLS * 2;
    static constexpr u32 STAGE_BYTES = WEIGHT_BYTES + INPUT_BYTES;
    static constexpr u32 RING_BYTES = WARPS * STAGES * STAGE_BYTES;
    static constexpr u32 SUM_BYTES = WARPS * TILES * 32 * 16;
    // Where results are handed on by heads: groups of one, and the distance between
    // rows of the input in shared memory, which spreads them over the banks.
    static constexpr u32 HEAD_GROUPS = 64 / TILE_ROWS / TILES;
    static constexpr u32 HEAD_STRIDE = 64 + 8;
    // 16 bytes of a row of input are a piece; one load of a warp is 32 pieces.
    static constexpr u32 PIECES = STEPS * 2;
    static constexpr u32 LOADS = TOKENS * PIECES / 32;
    static constexpr u32 LOAD_TOKENS = 32 / PIECES;
    // Rows of the input of which a lane holds where they begin: those that it copies,
    // or where that would take too many registers every 32nd.
    static constexpr u32 HELD = LOADS <= 4 ? LOADS : TOKENS / 32;
    // Steps whose fragments are in registers together.
    static constexpr u32 MMA_STEPS = STEPS == 1 || TOKENS > 32 ? 1 : 2;
    static_assert(STEPS % MMA_STEPS == 0 && (MMA_STEPS == 2 || TOKENS >= 16), "ldmatrix_x4 takes four matrices");
    static_assert(LOADS * 32 == TOKENS * PIECES, "whole loads");
    static_assert(STEPS % Weights::LOAD_STEPS == 0 && Weights::SHARE_STEPS % STEPS == 0, "whole loads");

    const Product& product;
    unsigned char* ring;       // of the warp
    u32 lane, tiles, steps, groups;
    u32 head_groups;           // the first ones, of which whole heads are handed on
    u32 begin, end;            // the warp's stages of every tile
    u32 first_token, tokens;   // the block's rows of input
    u32 starts[HELD];          // where rows of input begin

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
        constexpr u32 SHARE_COLS = Weights::SHARE_STEPS * STEP_COLS;
        const u32 shares = (product.cols + SHARE_COLS - 1) / SHARE_COLS;
        begin = shares * warp / WARPS * (Weights::SHARE_STEPS / STEPS);
        end = shares * (warp + 1) / WARPS * (Weights::SHARE_STEPS / STEPS);
        first_token = blockIdx.y * TOKENS;
        tokens = min(product.rows - first_token, TOKENS);
    }

    // Blocks take the groups of a head one after the other; other groups, which are
    // less work, come after those and are taken singly.
    DEVICE u32 following(u32 group) const {
        if (group >= head_groups) return group + gridDim.x;
        if ((group + 1) % HEAD_GROUPS != 0) return group + 1;
        return group_of_turn(group / HEAD_GROUPS + gridDim.x);
    }

    DEVICE u32 group_of_turn(u32 turn) const {
        const u32 heads = head_groups / HEAD_GROUPS;
        return turn < heads ? turn * HEAD_GROUPS : head_groups + turn - heads;
    }

    // The first tile of a group; those of heads are the last tiles.
    DEVICE u32 first_tile(u32 group) const {
        return (group < head_groups ? groups - head_groups + group : group - head_groups) * TILES;
    }

    // A warp that has no columns has nothing to load.
    DEVICE Cursor start() const { return {begin < end ? group_of_turn(blockIdx.x) : groups, begin}; }

    DEVICE void advance(Cursor& cursor) const {
        cursor.stage++;
        if (cursor.stage == end) {
            cursor.stage = begin;
            cursor.group = following(cursor.group);
        }
    }

    DEVICE void load_weights(const Cursor& cursor, u32 slot) const {
        unsigned char* to = ring + slot * STAGE_BYTES + lane * 16;
#pragma unroll
        for (u32 t = 0; t < TILES; t++) {
            const u32 tile = first_tile(cursor.group) + t;
            const bool valid = tile < tiles;
            const uint4* from = load_at<Weights>(product.weights, steps, valid ? tile : 0, cursor.stage * STEPS, lane);
#pragma unroll
            for (u32 i = 0; i < TILE_LOADS; i++) {
                cp_async16(to + (t * TILE_LOADS + i) * LOAD_BYTES, from + i * 32, valid);
            }
        }
    }

    DEVICE void find_input() {
#pragma unroll
        for (u32 i = 0; i < HELD; i++) {
            const u32 token = HELD == LOADS ? i * LOAD_TOKENS + lane / PIECES : i * 32 + lane;
            starts[i] = token < tokens ? input_piece(product, first_token + token) : 0;
        }
    }

    // Where the row begins that this lane copies in a load.
    DEVICE u32 start_of(u32 load) const {
        if constexpr (HELD == LOADS) return starts[load];
        const u32 token = load * LOAD_TOKENS;
        return __shfl_sync(0xFFFFFFFFu, starts[token / 32 % HELD], token % 32 + lane / PIECES);
    }

    // Input lies as [piece][token], so that eight rows of a matrix are in 128 bytes;
    // they change places so that what eight lanes copy is in different banks.
    DEVICE static u32 input_offset(u32 token, u32 piece) {
        return (piece * TOKENS + (token ^ piece * (8 / PIECES))) * 16;
    }

    DEVICE void load_input(const Cursor& cursor, u32 slot) const {
        unsigned char* to = ring + slot * STAGE_BYTES + WEIGHT_BYTES;
        const uint4* input = reinterpret_cast<const uint4*>(product.input);
        const u32 piece = lane % PIECES;
        const u32 at = cursor.stage * PIECES + piece;
#pragma unroll
        for (u32 i = 0; i < LOADS; i++) {
            const u32 token = i * LOAD_TOKENS + lane / PIECES;
            const bool valid = token < tokens && at * 8 < product.cols;
            const u32 start = start_of(i);
            // Whole eights of rows are no part of what changes places.
            const u32 eights = i * LOAD_TOKENS / 8 * 8;
            cp_async16(to + eights * 16 + input_offset(token - eights, piece), input + (valid ? start + at : 0), valid);
        }
    }

    DEVICE void multiply(u32 slot, float (&sums)[TILES][COLUMN_TILES][4]) const {
        const unsigned char* stage = ring + slot * STAGE_BYTES;
        // Four matrices of eight rows at once: four pieces of 8 rows, or two of 16.
        const u32 matrix = lane / 8;
        const u32 upper = MMA_STEPS == 2 ? 0 : matrix / 2;
        uint4 words[TILES] = {};
#pragma unroll
        for (u32 first = 0; first < STEPS; first += MMA_STEPS) {
            u32 a[TILES][MMA_STEPS][4];
#pragma unroll
            for (u32 t = 0; t < TILES; t++) {
#pragma unroll
                for (u32 s = 0; s < MMA_STEPS; s++) {
                    const u32 part = (first + s) % Weights::LOAD_STEPS;
                    if (part == 0) {
                        const u32 at = t * TILE_LOADS + (first + s) / Weights::LOAD_STEPS;
                        words[t] = *reinterpret_cast<const uint4*>(stage + at * LOAD_BYTES + lane * 16);
                    }
                    Weights::decode(words[t], part, a[t][s]);
                }
            }
            const u32 piece = first * 2 + (MMA_STEPS == 2 ? matrix : matrix % 2);
            const unsigned char* input = stage + WEIGHT_BYTES + input_offset(upper * 8 + lane % 8, piece);
#pragma unroll
            for (u32 n = 0; n < COLUMN_TILES; n += 3 - MMA_STEPS) {
                u32 b[4];
                ldmatrix_x4(b, input + n * 128);
#pragma unroll
                for (u32 t = 0; t < TILES; t++) {
                    mma_bf16(sums[t][n], a[t][0], b[0], b[1]);
                    mma_bf16(sums[t][MMA_STEPS == 2 ? n : n + 1], a[t][MMA_STEPS - 1], b[2], b[3]);
                }
            }
        }
    }

    // Adds up what the warps have of eight rows of input, and hands it on.
    template <class Epilogue>
    DEVICE void finish(u32 group, u32 column_tile, const float4 (&mine)[TILES], float* shared_sums,
                       const uint2* places, float* head_rows, const Epilogue& epilogue) const {
        const u32 thread = threadIdx.x;
#pragma unroll
        for (u32 t = 0; t < TILES; t++) {
            reinterpret_cast<float4*>(shared_sums)[(thread / 32 * TILES + t) * 32 + lane] = mine[t];
        }
        const u32 t = thread / 64, token = column_tile * 8 + thread / 8 % 8, tile = first_tile(group) + t;
        const bool takes = t < TILES && token < tokens && tile < tiles;
        const TileRows rows = tile_rows(tile, product.outputs);
        const u32 output = rows.first + thread % 8;
        RowEdge low_edge = {0.0f, 0.0f}, high_edge = {0.0f, 0.0f};
        float2 turn = make_float2(1.0f, 0.0f);
        if (takes) {
            low_edge = row_edge<Weights>(product, output);
            high_edge = row_edge<Weights>(product, output + rows.gap);
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
            float low = finished<Weights>(low_edge, low_sum), high = finished<Weights>(high_edge, high_sum);
            epilogue.rotate(turn, low, high);
            if (group < head_groups) {
                float* row = head_rows + token * HEAD_STRIDE + output % 64;
                row[0] = low;
                row[rows.gap] = high;
            } else {
                epilogue.put(output, first_token + token, places[token], low);
                epilogue.put(output + rows.gap, first_token + token, places[token], high);
            }
        }
        __syncthreads();
    }

    // Hands on a head, once its last group is done.
    template <class Epilogue>
    DEVICE void put_head(u32 group, const uint2* places, const float* head_rows, const Epilogue& epilogue) const {
        if constexpr (Epilogue::HAS_HEADS) {
            if (group >= head_groups || (group + 1) % HEAD_GROUPS != 0) return;
            const u32 output = first_tile(group) / 4 * 64;
            for (u32 token = threadIdx.x / 32; token < tokens; token += WARPS) {
                epilogue.put_head(output, first_token + token, places[token], head_rows + token * HEAD_STRIDE);
            }
        }
    }

    // The whole product. `shared` is RING_BYTES, SUM_BYTES, and 8 bytes a token; and
    // where heads are handed on, HEAD_STRIDE floats a token.
    template <class Epilogue>
    DEVICE static void run(const Product& product, const Epilogue& epilogue, unsigned char* shared) {
        Skinny self(product, shared);
        self.head_groups = 0;
        if constexpr (Epilogue::HAS_HEADS) {
            const u32 first = epilogue.first_head();
            if (first < product.outputs) self.head_groups = (self.tiles - first / TILE_ROWS) / TILES;
        }
        float* shared_sums = reinterpret_cast<float*>(shared + RING_BYTES);
        uint2* places = reinterpret_cast<uint2*>(shared + RING_BYTES + SUM_BYTES);
        float* head_rows = reinterpret_cast<float*>(places + TOKENS);

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
        for (u32 group = self.group_of_turn(blockIdx.x); group < self.groups; group = self.following(group)) {
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
                self.finish(group, n, mine, shared_sums, places, head_rows, epilogue);
            }
            self.put_head(group, places, head_rows, epilogue);
        }
    }
};

// Few rows want deep rings; what more of them take, the ring gives. All fit into
// the 99 KiB of the smallest GPUs. Rust's side is the table in src/product/.
typedef Skinny<Bf16Weights, 8, 1, 2, 7> Skinny8x1;
typedef Skinny<Bf16Weights, 8, 2, 2, 4> Skinny8x2;
typedef Skinny<Bf16Weights, 16, 2, 1, 6> Skinny16x2;
typedef Skinny<Bf16Weights, 32, 2, 1, 5> Skinny32x2;
typedef Skinny<Bf16Weights, 64, 2, 1, 3> Skinny64x2;

// Of integers a step is half as many bytes: more of them in a stage make up for
// what a stage costs, as far as the input's share of the ring allows.
typedef Skinny<Int8Weights, 8, 1, 4, 5> Int8Skinny8x1;
typedef Skinny<Int8Weights, 8, 2, 4, 3> Int8Skinny8x2;
typedef Skinny<Int8Weights, 16, 2, 2, 5> Int8Skinny16x2;
typedef Skinny<Int8Weights, 32, 2, 2, 3> Int8Skinny32x2;
typedef Skinny<Int8Weights, 64, 2, 2, 2> Int8Skinny64x2;
