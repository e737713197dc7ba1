// Products with many rows of input on Hopper. A block of threads stays on its
// processor and computes 64 outputs for each of its MULTIPLIERS, of TOKENS rows,
// again and again. One thread keeps a ring full: of the input by TMA, of the
// weights, which lie there as fragments, by bulk copies. Warpgroups, the
// multipliers, take weights to registers and multiply them with the input where
// it lies; the ring lets one run ahead, so that it multiplies while another hands
// out results. The sum of one result goes through the columns in order, whatever
// TOKENS and MULTIPLIERS are.
#pragma once
#include "hopper.cuh"
#include "linear.cuh"

#ifdef HOPPER

template <class Weights, u32 TOKENS_, u32 MULTIPLIERS_, u32 STAGES_>
struct Warpgroups {
    static constexpr u32 TOKENS = TOKENS_;
    static constexpr u32 STAGES = STAGES_;
    static constexpr u32 MULTIPLIERS = MULTIPLIERS_;
    static constexpr u32 THREADS = 128 + MULTIPLIERS * 128;
    static constexpr u32 OUTPUTS = MULTIPLIERS * 64;
    static constexpr u32 TILES = OUTPUTS / TILE_ROWS;

    static constexpr u32 INPUT_BYTES = TOKENS * 128;
    static constexpr u32 TILE_LOADS = CHUNK_STEPS / Weights::LOAD_STEPS;
    static constexpr u32 TILE_BYTES = TILE_LOADS * LOAD_BYTES;
    static constexpr u32 STAGE_BYTES = INPUT_BYTES + TILES * TILE_BYTES;
    static constexpr u32 RING_BYTES = STAGES * STAGE_BYTES;
    // Of a warpgroup: 64 rows of 64 results in bf16 and 16 bytes, or half of them in f32.
    static constexpr u32 RESULT_BYTES = 64 * (64 * 2 + 16);

    // What a block of threads computes at a time, numbered output by output.
    struct Piece {
        u32 first_tile;
        u32 first_token;
    };

    const Product& product;
    unsigned char* ring;
    u64* full;
    u64* empty;
    u32 tiles, steps, chunks, across, pieces;

    DEVICE Warpgroups(const Product& product, unsigned char* shared, u64* barriers)
        : product(product), ring(shared), full(barriers), empty(barriers + STAGES) {
        tiles = tiles_of(product.outputs);
        steps = steps_of(product.cols);
        chunks = steps / CHUNK_STEPS;
        across = (tiles + TILES - 1) / TILES;
        pieces = across * ((product.rows + TOKENS - 1) / TOKENS);
    }

    DEVICE Piece piece(u32 number) const { return {number % across * TILES, number / across * TOKENS}; }

    DEVICE void load_weights(const Piece& piece, u32 chunk, u32 slot) const {
        const u32 count = min(tiles - piece.first_tile, TILES);
        mbarrier_expect(&full[slot], INPUT_BYTES + count * TILE_BYTES);
        unsigned char* to = ring + slot * STAGE_BYTES + INPUT_BYTES;
        for (u32 t = 0; t < count; t++) {
            const uint4* from = load_at<Weights>(product.weights, steps, piece.first_tile + t, chunk * CHUNK_STEPS, 0);
            bulk_load(to + t * TILE_BYTES, from, TILE_BYTES, &full[slot]);
        }
    }

    DEVICE void load_input(const Piece& piece, u32 chunk, u32 slot, const TensorMap* input) const {
        tma_load(ring + slot * STAGE_BYTES, input, &full[slot], chunk * 64, piece.first_token);
    }

    // One thread's work.
    DEVICE void fill(const TensorMap* input) const {
        tma_prefetch(input);
        // Weights depend on no earlier kernel.
        const u32 ahead = min(chunks, STAGES);
        for (u32 chunk = 0; chunk < ahead; chunk++) load_weights(piece(blockIdx.x), chunk, chunk);
        pdl_wait();
        for (u32 chunk = 0; chunk < ahead; chunk++) load_input(piece(blockIdx.x), chunk, chunk, input);
        u32 loaded = ahead;
        for (u32 number = blockIdx.x; number < pieces; number += gridDim.x) {
            for (u32 chunk = number == blockIdx.x ? ahead : 0; chunk < chunks; chunk++, loaded++) {
                const u32 slot = loaded % STAGES;
                mbarrier_wait(&empty[slot], (loaded / STAGES & 1) ^ 1);
                load_weights(piece(number), chunk, slot);
                load_input(piece(number), chunk, slot, input);
            }
        }
    }

    // One piece of a warpgroup's work: 64 outputs, of which each warp has a tile.
    // `taken` counts stages since the kernel began.
    DEVICE void multiply(float (&sums)[TOKENS / 2], u32 tile, u32& taken) const {
#pragma unroll
        for (u32 i = 0; i < TOKENS / 2; i++) sums[i] = 0.0f;
        // Two sets: one is read by products that run while the other is loaded.
        u32 a[2][CHUNK_STEPS][4];
        for (u32 first = 0; first < chunks; first += 2) {
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                const u32 chunk = first + half;
                // With a `break` the compiler waits for each product to end.
                if (chunk < chunks) {
                    const u32 slot = taken % STAGES;
                    mbarrier_wait(&full[slot], taken / STAGES & 1);
                    const unsigned char* stage = ring + slot * STAGE_BYTES;
                    const unsigned char* weights = stage + INPUT_BYTES + tile * TILE_BYTES + threadIdx.x % 32 * 16;
#pragma unroll
                    for (u32 first = 0; first < CHUNK_STEPS; first += Weights::LOAD_STEPS) {
                        const u32 at = first / Weights::LOAD_STEPS * LOAD_BYTES;
                        const uint4 words = *reinterpret_cast<const uint4*>(weights + at);
#pragma unroll
                        for (u32 s = 0; s < Weights::LOAD_STEPS; s++) Weights::decode(words, s, a[half][first + s]);
                    }
                    wgmma_fence();
#pragma unroll
                    for (u32 s = 0; s < CHUNK_STEPS; s++) {
                        wgmma<TOKENS>(sums, a[half][s], desc128(stage + s * 32));
                    }
                    wgmma_commit();
                    // The products before these are done, and their stage is free.
                    wgmma_wait<1>();
                    if (chunk > 0) release(taken - 1);
                    taken++;
                }
            }
        }
        wgmma_wait<0>();
        pin(sums);
        release(taken - 1);
    }

    // Each warp for itself: it knows of its own reads and products alone. Copies
    // come by another way than the loads of weights that they overwrite.
    DEVICE void release(u32 stage) const {
        fence_proxy_async();
        __syncwarp();
        if (threadIdx.x % 32 == 0) mbarrier_arrive(&empty[stage % STAGES]);
    }

    // Lays a warpgroup's results out as rows of the input see them, some rows at
    // a time, so that they leave 16 bytes at a time, or a head at a time.
    template <class Element, bool ARE_HEADS, class Epilogue>
    DEVICE void put(const float (&sums)[TOKENS / 2], const Piece& piece, unsigned char* shared, const uint2* places,
                    const Epilogue& epilogue) const {
        constexpr u32 COUNT = 16 / sizeof(Element);
        constexpr u32 STRIDE = 64 + COUNT;
        constexpr u32 ROWS = 128 / sizeof(Element);
        static_assert(ROWS * STRIDE * sizeof(Element) <= RESULT_BYTES, "results have room");
        Element* results = reinterpret_cast<Element*>(shared);
        const u32 group = threadIdx.x / 128 - 1, lane = threadIdx.x % 32;
        const u32 tile = piece.first_tile + threadIdx.x / 32 - 4;
        const u32 first_output = piece.first_tile * TILE_ROWS + group * 64;
        const u32 tokens = min(product.rows - piece.first_token, TOKENS);

        const TileRows rows = tile_rows(tile, product.outputs);
        const u32 output = rows.first + lane / 4;
        RowEdge low_edge = {0.0f, 0.0f}, high_edge = {0.0f, 0.0f};
        if (tile < tiles) {
            low_edge = row_edge<Weights>(product, output);
            high_edge = row_edge<Weights>(product, output + rows.gap);
        }
#pragma unroll
        for (u32 first = 0; first < TOKENS; first += ROWS) {
#pragma unroll
            for (u32 n = 0; n < ROWS / 8; n++) {
#pragma unroll
                for (u32 i = 0; i < 2; i++) {
                    const u32 row = n * 8 + lane % 4 * 2 + i;
                    if (tile < tiles && first + row < tokens) {
                        const u32 at = first / 2 + n * 4 + i;
                        float low = finished<Weights>(low_edge, sums[at]);
                        float high = finished<Weights>(high_edge, sums[at + 2]);
                        epilogue.rotate(epilogue.turn(output, piece.first_token + first + row), low, high);
                        Element* to = results + row * STRIDE + output - first_output;
                        put_element(to, low);
                        put_element(to + rows.gap, high);
                    }
                }
            }
            named_barrier(1 + group, 128);
            if constexpr (ARE_HEADS) {
                for (u32 row = threadIdx.x / 32 % 4; row < ROWS; row += 4) {
                    if (first + row >= tokens || first_output >= product.outputs) break;
                    epilogue.put_head(first_output, piece.first_token + first + row, places[first + row],
                                      results + row * STRIDE);
                }
            } else {
                for (u32 index = threadIdx.x % 128; index < ROWS * (64 / COUNT); index += 128) {
                    const u32 row = index / (64 / COUNT), part = index % (64 / COUNT) * COUNT;
                    if (first + row < tokens && first_output + part < product.outputs) {
                        const uint4* from = reinterpret_cast<const uint4*>(results + row * STRIDE + part);
                        epilogue.put_piece(first_output + part, piece.first_token + first + row, places[first + row],
                                           from);
                    }
                }
            }
            named_barrier(1 + group, 128);
        }
    }

    // The whole product. `shared` is RING_BYTES, RESULT_BYTES and 8 bytes a token
    // for each warpgroup, 16 bytes a stage.
    template <class Epilogue>
    DEVICE static void run(const Product& product, const TensorMap* input, const Epilogue& epilogue,
                           unsigned char* shared) {
        unsigned char* results = shared + RING_BYTES;
        uint2* places = reinterpret_cast<uint2*>(results + MULTIPLIERS * RESULT_BYTES);
        const Warpgroups self(product, shared, reinterpret_cast<u64*>(places + MULTIPLIERS * TOKENS));
        if (threadIdx.x == 0) {
            for (u32 slot = 0; slot < STAGES; slot++) {
                mbarrier_init(&self.full[slot], 1);
                mbarrier_init(&self.empty[slot], MULTIPLIERS * 4);
            }
            fence_mbarrier_init();
        }
        __syncthreads();
        pdl_trigger();
        if (threadIdx.x < 128) {
            // Of one multiplier the threads have registers enough.
            if constexpr (MULTIPLIERS > 1) setmaxnreg_dec<40>();
            if (threadIdx.x == 0) {
                self.fill(input);
            } else {
                pdl_wait();
            }
        } else {
            if constexpr (MULTIPLIERS > 1) setmaxnreg_inc<232>();
            pdl_wait();
            const u32 group = threadIdx.x / 128 - 1;
            results += group * RESULT_BYTES;
            places += group * TOKENS;
            u32 taken = 0;
            for (u32 number = blockIdx.x; number < self.pieces; number += gridDim.x) {
                const Piece piece = self.piece(number);
                const u32 tokens = min(product.rows - piece.first_token, TOKENS);
                epilogue.prepare(places, piece.first_token, tokens, threadIdx.x % 128);
                float sums[TOKENS / 2];
                self.multiply(sums, threadIdx.x / 32 - 4, taken);
                typedef typename Epilogue::Element Element;
                if constexpr (Epilogue::HAS_HEADS) {
                    if (piece.first_tile * TILE_ROWS + group * 64 >= epilogue.first_head()) {
                        self.template put<float, true>(sums, piece, results, places, epilogue);
                        continue;
                    }
                }
                self.template put<Element, false>(sums, piece, results, places, epilogue);
            }
        }
    }
};

// The others are for fewer rows, or where pieces of the first leave processors idle.
typedef Warpgroups<Bf16Weights, 256, 2, 4> Wide256;
typedef Warpgroups<Bf16Weights, 128, 2, 6> Wide128;
typedef Warpgroups<Bf16Weights, 128, 1, 8> Narrow128;

// Integers become fragments on their way to registers. That takes a warp some 50
// instructions for 64 columns, while the tensor cores are busy with the 64 before
// for 512 clocks, or 256 with half the rows: it is hidden, and the weights' copies
// are halved. Expanded once into bf16 elsewhere, they would be read once, written
// once and read again at full size.
typedef Warpgroups<Int8Weights, 256, 2, 5> Int8Wide256;
typedef Warpgroups<Int8Weights, 128, 2, 8> Int8Wide128;
typedef Warpgroups<Int8Weights, 128, 1, 10> Int8Narrow128;

#endif  // HOPPER
