// Products with many rows of input: a block computes 128 outputs of TOKENS rows,
// 64 columns at a time, which pass through shared memory in a ring. The sum of
// one result goes through the columns in order, whatever TOKENS is.
#pragma once
#include "linear.cuh"

template <class Weights, u32 TOKENS_, u32 OUTPUT_WARPS, u32 STAGES_>
struct Tiled {
    static constexpr u32 WARPS = 8;
    static constexpr u32 OUTPUTS = 128;  // a multiple of 64: see tile_rows
    static constexpr u32 TILES = OUTPUTS / TILE_ROWS;
    static constexpr u32 TOKENS = TOKENS_;
    static constexpr u32 STAGES = STAGES_;
    static constexpr u32 WARP_TILES = TILES / OUTPUT_WARPS;
    static constexpr u32 WARP_TOKENS = TOKENS / (WARPS / OUTPUT_WARPS);
    static constexpr u32 WARP_COLUMNS = WARP_TOKENS / 8;

    static constexpr u32 CHUNK_PIECES = CHUNK_STEPS * 2;  // of 16 bytes, in a row of input
    static constexpr u32 TILE_LOADS = CHUNK_STEPS / Weights::LOAD_STEPS;
    static constexpr u32 TILE_BYTES = TILE_LOADS * LOAD_BYTES;
    static constexpr u32 WEIGHT_BYTES = TILES * TILE_BYTES;
    static constexpr u32 INPUT_BYTES = TOKENS * CHUNK_PIECES * 16;
    static constexpr u32 STAGE_BYTES = WEIGHT_BYTES + INPUT_BYTES;
    static constexpr u32 RING_BYTES = STAGES * STAGE_BYTES;
    static constexpr u32 WEIGHT_LOADS = WEIGHT_BYTES / 16 / 256;
    static constexpr u32 INPUT_LOADS = INPUT_BYTES / 16 / 256;
    static_assert(WARP_COLUMNS % 2 == 0, "16 rows of input are read at once");

    const Product& product;
    unsigned char* ring;
    u32 warp, lane, tiles, steps, chunks;
    u32 first_tile, first_token, tokens;
    u32 pieces[INPUT_LOADS];  // where this thread's rows of input begin

    DEVICE Tiled(const Product& product, unsigned char* shared) : product(product), ring(shared) {
        warp = threadIdx.x / 32;
        lane = threadIdx.x % 32;
        tiles = tiles_of(product.outputs);
        steps = steps_of(product.cols);
        chunks = steps / CHUNK_STEPS;
        first_tile = blockIdx.x * TILES;
        first_token = blockIdx.y * TOKENS;
        tokens = min(product.rows - first_token, TOKENS);
    }

    DEVICE void find_input() {
#pragma unroll
        for (u32 i = 0; i < INPUT_LOADS; i++) {
            const u32 token = (threadIdx.x + i * 256) / CHUNK_PIECES;
            pieces[i] = token < tokens ? input_piece(product, first_token + token) : 0;
        }
    }

    DEVICE void load(u32 chunk, u32 slot) const {
        unsigned char* stage = ring + slot * STAGE_BYTES;
#pragma unroll
        for (u32 i = 0; i < WEIGHT_LOADS; i++) {
            const u32 index = threadIdx.x + i * 256;
            const u32 tile = first_tile + index / (TILE_LOADS * 32);
            const bool valid = tile < tiles;
            const uint4* from = load_at<Weights>(product.weights, steps, valid ? tile : 0, chunk * CHUNK_STEPS,
                                                 index % (TILE_LOADS * 32));
            cp_async16(stage + index * 16, from, valid);
        }
        const uint4* input = reinterpret_cast<const uint4*>(product.input);
#pragma unroll
        for (u32 i = 0; i < INPUT_LOADS; i++) {
            const u32 index = threadIdx.x + i * 256;
            const u32 token = index / CHUNK_PIECES, piece = index % CHUNK_PIECES;
            const u32 at = chunk * CHUNK_PIECES + piece;
            const bool valid = token < tokens && at * 8 < product.cols;
            cp_async16(stage + WEIGHT_BYTES + input_offset(token, piece), input + (valid ? pieces[i] + at : 0), valid);
        }
    }

    // A row is 128 bytes; its pieces change places so that eight rows of one
    // column of pieces lie in different banks.
    DEVICE static u32 input_offset(u32 token, u32 piece) {
        return token * CHUNK_PIECES * 16 + (piece ^ token % CHUNK_PIECES) * 16;
    }

    DEVICE void multiply(u32 slot, float (&sums)[WARP_TILES][WARP_COLUMNS][4]) const {
        const unsigned char* stage = ring + slot * STAGE_BYTES;
        const unsigned char* weights = stage + output_warp() * WARP_TILES * TILE_BYTES + lane * 16;
        const u32 token = token_warp() * WARP_TOKENS + lane / 16 * 8 + lane % 8;
#pragma unroll
        for (u32 first = 0; first < CHUNK_STEPS; first += Weights::LOAD_STEPS) {
            u32 a[WARP_TILES][Weights::LOAD_STEPS][4];
#pragma unroll
            for (u32 t = 0; t < WARP_TILES; t++) {
                const u32 at = t * TILE_BYTES + first / Weights::LOAD_STEPS * LOAD_BYTES;
                const uint4 words = *reinterpret_cast<const uint4*>(weights + at);
#pragma unroll
                for (u32 s = 0; s < Weights::LOAD_STEPS; s++) Weights::decode(words, s, a[t][s]);
            }
#pragma unroll
            for (u32 s = 0; s < Weights::LOAD_STEPS; s++) {
                u32 b[WARP_COLUMNS / 2][4];
#pragma unroll
                for (u32 n = 0; n < WARP_COLUMNS / 2; n++) {
                    const u32 piece = (first + s) * 2 + lane / 8 % 2;
                    ldmatrix_x4(b[n], stage + WEIGHT_BYTES + input_offset(token + n * 16, piece));
                }
#pragma unroll
                for (u32 t = 0; t < WARP_TILES; t++) {
#pragma unroll
                    for (u32 n = 0; n < WARP_COLUMNS; n++) {
                        mma_bf16(sums[t][n], a[t][s], b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
                    }
                }
            }
        }
    }

    DEVICE u32 output_warp() const { return warp % OUTPUT_WARPS; }
    DEVICE u32 token_warp() const { return warp / OUTPUT_WARPS; }

    // Lays results out in shared memory as rows of the input see them, so that
    // they leave 16 bytes at a time.
    template <class Element, class Epilogue>
    DEVICE void gather(const float (&sums)[WARP_TILES][WARP_COLUMNS][4], Element* results, u32 stride,
                       const Epilogue& epilogue) const {
#pragma unroll
        for (u32 t = 0; t < WARP_TILES; t++) {
            const u32 tile = first_tile + output_warp() * WARP_TILES + t;
            if (tile >= tiles) break;
            const TileRows rows = tile_rows(tile, product.outputs);
            const u32 output = rows.first + lane / 4;
            const RowEdge low_edge = row_edge<Weights>(product, output);
            const RowEdge high_edge = row_edge<Weights>(product, output + rows.gap);
#pragma unroll
            for (u32 n = 0; n < WARP_COLUMNS; n++) {
#pragma unroll
                for (u32 i = 0; i < 2; i++) {
                    const u32 token = token_warp() * WARP_TOKENS + n * 8 + lane % 4 * 2 + i;
                    if (token >= tokens) break;
                    float low = finished<Weights>(low_edge, sums[t][n][i]);
                    float high = finished<Weights>(high_edge, sums[t][n][i + 2]);
                    epilogue.rotate(epilogue.turn(output, first_token + token), low, high);
                    Element* to = results + token * stride + output - first_tile * TILE_ROWS;
                    put_element(to, low);
                    put_element(to + rows.gap, high);
                }
            }
        }
    }

    // Hands on heads, by way of f32: a warp each row of one.
    template <class Epilogue>
    DEVICE void put_heads(const float (&sums)[WARP_TILES][WARP_COLUMNS][4], unsigned char* shared, const uint2* places,
                          const Epilogue& epilogue) const {
        constexpr u32 STRIDE = OUTPUTS + 4, HEADS = OUTPUTS / 64;
        static_assert(TOKENS * STRIDE * sizeof(float) <= RING_BYTES, "results take the ring's place");
        float* results = reinterpret_cast<float*>(shared);
        gather(sums, results, STRIDE, epilogue);
        __syncthreads();
        for (u32 index = warp; index < tokens * HEADS; index += WARPS) {
            const u32 token = index / HEADS, part = index % HEADS * 64;
            const u32 output = first_tile * TILE_ROWS + part;
            if (output < product.outputs) {
                epilogue.put_head(output, first_token + token, places[token], results + token * STRIDE + part);
            }
        }
    }

    // The whole product. `shared` is RING_BYTES, and 8 bytes a token.
    template <class Epilogue>
    DEVICE static void run(const Product& product, const Epilogue& epilogue, unsigned char* shared) {
        typedef typename Epilogue::Element Element;
        constexpr u32 PIECE = 16 / sizeof(Element);
        // One piece more than fits keeps rows of the input out of each other's banks.
        constexpr u32 STRIDE = OUTPUTS + PIECE;
        static_assert(TOKENS * STRIDE * sizeof(Element) <= RING_BYTES, "results take the ring's place");

        Tiled self(product, shared);
        uint2* places = reinterpret_cast<uint2*>(shared + RING_BYTES);
        pdl_wait();
        pdl_trigger();
        self.find_input();
        for (u32 slot = 0; slot < STAGES - 1; slot++) {
            if (slot < self.chunks) self.load(slot, slot);
            cp_async_commit();
        }
        epilogue.prepare(places, self.first_token, self.tokens, threadIdx.x);
        float sums[WARP_TILES][WARP_COLUMNS][4];
#pragma unroll
        for (u32 t = 0; t < WARP_TILES; t++) {
#pragma unroll
            for (u32 n = 0; n < WARP_COLUMNS; n++) {
                sums[t][n][0] = sums[t][n][1] = sums[t][n][2] = sums[t][n][3] = 0.0f;
            }
        }
        u32 slot = 0, freed = STAGES - 1;
        for (u32 chunk = 0; chunk < self.chunks; chunk++) {
            cp_async_wait<STAGES - 2>();
            __syncthreads();
            if (chunk + STAGES - 1 < self.chunks) self.load(chunk + STAGES - 1, freed);
            cp_async_commit();
            self.multiply(slot, sums);
            freed = slot;
            slot = slot + 1 == STAGES ? 0 : slot + 1;
        }
        cp_async_wait<0>();
        __syncthreads();
        if constexpr (Epilogue::HAS_HEADS) {
            if (self.first_tile * TILE_ROWS + OUTPUTS > epilogue.first_head()) {
                self.put_heads(sums, shared, places, epilogue);
                return;
            }
        }
        Element* results = reinterpret_cast<Element*>(shared);
        self.gather(sums, results, STRIDE, epilogue);
        __syncthreads();
        for (u32 index = threadIdx.x; index < self.tokens * (OUTPUTS / PIECE); index += WARPS * 32) {
            const u32 token = index / (OUTPUTS / PIECE), part = index % (OUTPUTS / PIECE) * PIECE;
            const u32 output = self.first_tile * TILE_ROWS + part;
            if (output < product.outputs) {
                const uint4* piece = reinterpret_cast<const uint4*>(results + token * STRIDE + part);
                epilogue.put_piece(output, self.first_token + token, places[token], piece);
            }
        }
    }
};

// Shared memory holds 99 KiB at most. The second is for matrices of few rows,
// such as a router, that would leave most of a GPU without work.
typedef Tiled<Bf16Weights, 128, 2, 3> Tiled128;
typedef Tiled<Bf16Weights, 32, 4, 4> Tiled32;
typedef Tiled<Int8Weights, 128, 2, 3> Int8Tiled128;
typedef Tiled<Int8Weights, 32, 4, 4> Int8Tiled32;
