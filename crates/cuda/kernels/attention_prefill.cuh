// Attention of many rows: multiplying is what takes the time. A block takes 128
// rows and goes through the keys that they see, 64 at a time; each of its four
// warps has 32 rows. How they multiply is for the kernels that include this; what
// they multiply are tiles of bf16, which FP8 is made into first.
#pragma once
#include "attention_pages.cuh"

constexpr u32 PREFILL_ROWS = 128;
constexpr u32 WARP_ROWS = PREFILL_ROWS / (ATTENTION_THREADS / 32);
constexpr u32 MMA_ROWS = 16;
constexpr u32 MMAS = WARP_ROWS / MMA_ROWS;
// Of bf16: keys, then values.
constexpr u32 TILE_BYTES = 2 * KEY_TILE * Bf16Rows::ROW_BYTES;
static_assert(PREFILL_ROWS * Bf16Rows::ROW_BYTES <= TILE_BYTES, "queries and context pass through a tile");

// A warp's rows: their queries, and what becomes of them.
struct WarpTile {
    u32 queries[MMAS][HEAD_DIM / 16][4];
    float output[MMAS][HEAD_DIM / 8][4];
    Softmax softmax[MMAS];
    u32 newest[MMAS][2];            // the last keys that a lane's rows see
    u32 first_newest, last_newest;  // those of the warp's first and last row
    u32 window;
    bool has_rows;

    DEVICE WarpTile(const AttentionArgs& args, const AttentionUnit& unit) : output{} {
        const u32 first_row = threadIdx.x / 32 * WARP_ROWS, num_rows = unit.tile.num_tokens * args.group;
#pragma unroll
        for (u32 m = 0; m < MMAS; m++) {
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                const u32 token = (first_row + m * MMA_ROWS + half * 8 + threadIdx.x % 32 / 4) / args.group;
                newest[m][half] = unit.tile.position + token;
            }
        }
        has_rows = first_row < num_rows;
        first_newest = unit.tile.position + first_row / args.group;
        last_newest = unit.tile.position + min(first_row + WARP_ROWS - 1, num_rows - 1) / args.group;
        window = args.window;
    }

    // True if a row of the warp sees one of 64 keys.
    DEVICE bool sees(u32 key) const {
        return has_rows && key <= last_newest && key + KEY_TILE > oldest_seen(first_newest, window);
    }

    // True if all rows of the warp see all of 64 keys.
    DEVICE bool sees_all(u32 key) const {
        return key + KEY_TILE <= first_newest + 1 && key >= oldest_seen(last_newest, window);
    }

    DEVICE void load_queries(const unsigned char* shared) {
        const u32 lane = threadIdx.x % 32, matrix = lane / 8, first_row = threadIdx.x / 32 * WARP_ROWS;
#pragma unroll
        for (u32 m = 0; m < MMAS; m++) {
#pragma unroll
            for (u32 step = 0; step < HEAD_DIM / 16; step++) {
                const u32 row = first_row + m * MMA_ROWS + matrix % 2 * 8 + lane % 8;
                ldmatrix_x4(queries[m][step], shared + swizzled(row, step * 2 + matrix / 2));
            }
        }
    }

    // Takes the scores of the warp's m-th 16 rows in and makes them powers.
    DEVICE void soften(u32 m, float (&scores)[KEY_TILE / 8][4], u32 key) {
        if (!sees_all(key)) {
            const u32 oldest[2] = {oldest_seen(newest[m][0], window), oldest_seen(newest[m][1], window)};
            mask_scores(scores, key, oldest, newest[m]);
        }
        float factors[2];
        softmax[m].take(scores, factors);
        // Most of the time the largest score stays what it was.
        if (!__any_sync(0xFFFFFFFFu, factors[0] != 1.0f || factors[1] != 1.0f)) return;
#pragma unroll
        for (u32 n = 0; n < HEAD_DIM / 8; n++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                output[m][n][i] *= factors[i / 2];
            }
        }
    }

    // The a operand that the powers of 16 keys are.
    static DEVICE void pack_powers(u32 (&powers)[4], const float (&scores)[KEY_TILE / 8][4], u32 step) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const float(&score)[4] = scores[step * 2 + i / 2];
            powers[i] = pack_bf16(score[i % 2 * 2], score[i % 2 * 2 + 1]);
        }
    }

    // Writes the context of the warp's rows, in whole rows by way of shared memory.
    DEVICE void write_context(const AttentionArgs& args, const AttentionUnit& unit, unsigned char* shared) const {
        const u32 lane = threadIdx.x % 32, first_row = threadIdx.x / 32 * WARP_ROWS;
        const u32 num_rows = unit.tile.num_tokens * args.group;
#pragma unroll
        for (u32 m = 0; m < MMAS; m++) {
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                const u32 row = first_row + m * MMA_ROWS + half * 8 + lane / 4;
                const float sum = softmax[m].row_sum(half);
                const float sink = unit.sink(args, row);
                const float highest = softmax[m].highest[half], largest = fmaxf(highest, sink);
                const float scale = exp2_approx(highest - largest);
                const float factor = scale / fmaf(sum, scale, exp2_approx(sink - largest));
#pragma unroll
                for (u32 n = 0; n < HEAD_DIM / 8; n++) {
                    const float(&values)[4] = output[m][n];
                    u32* target = reinterpret_cast<u32*>(shared + swizzled(row, n)) + lane % 4;
                    *target = pack_bf16(values[half * 2] * factor, values[half * 2 + 1] * factor);
                }
            }
        }
        __syncwarp();
#pragma unroll
        for (u32 i = 0; i < WARP_ROWS / 4; i++) {
            const u32 row = first_row + i * 4 + lane / 8, chunk = lane % 8;
            if (row < num_rows) {
                bf16* target = args.context + unit.place(args, row, args.context_stride) + chunk * 8;
                *reinterpret_cast<uint4*>(target) = *reinterpret_cast<const uint4*>(shared + swizzled(row, chunk));
            }
        }
    }

    // Writes what the split contributes to the context of the warp's rows.
    DEVICE void write_partial(const AttentionArgs& args, const AttentionUnit& unit) const {
        const u32 lane = threadIdx.x % 32, first_row = threadIdx.x / 32 * WARP_ROWS;
        const u32 num_rows = unit.tile.num_tokens * args.group;
#pragma unroll
        for (u32 m = 0; m < MMAS; m++) {
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                const u32 row = first_row + m * MMA_ROWS + half * 8 + lane / 4;
                const float sum = softmax[m].row_sum(half);
                if (row >= num_rows) continue;
                const size_t place = unit.partial(args, unit.split, row);
                if (lane % 4 == 0) args.partial_sums[place] = make_float2(softmax[m].highest[half], sum);
#pragma unroll
                for (u32 n = 0; n < HEAD_DIM / 8; n++) {
                    float* target = args.partial_outputs + place * HEAD_DIM + n * 8 + lane % 4 * 2;
                    *reinterpret_cast<float2*>(target) =
                        make_float2(output[m][n][half * 2], output[m][n][half * 2 + 1]);
                }
            }
        }
    }
};

DEVICE void copy_queries(const AttentionArgs& args, const AttentionUnit& unit, unsigned char* shared) {
    const u32 chunk = threadIdx.x % 8, num_rows = unit.tile.num_tokens * args.group;
#pragma unroll
    for (u32 i = 0; i < PREFILL_ROWS * 8 / ATTENTION_THREADS; i++) {
        const u32 row = threadIdx.x / 8 + i * (ATTENTION_THREADS / 8);
        const bool there = row < num_rows;
        const bf16* source = args.queries + unit.place(args, there ? row : 0, args.query_stride) + chunk * 8;
        cp_async16(shared + swizzled(row, chunk), source, there);
    }
}

// --- Tiles of keys and values --------------------------------------------------

// Of bf16, which are copied to where they are multiplied. Three tiles are
// PREFILL_SHARED_BYTES in src/attention.rs.
struct CopiedTiles {
    typedef PageReader<Bf16Rows, ATTENTION_THREADS, KEY_TILE> Reader;

    const Reader reader;
    unsigned char* tiles;
    u32 pages[3][Reader::COUNT];
    u32 tile, next;

    DEVICE CopiedTiles(const AttentionArgs& args, const AttentionUnit& unit, unsigned char* shared)
        : reader(args, unit, threadIdx.x), tiles(shared), tile(0), next(2) {
#pragma unroll
        for (u32 i = 0; i < 3; i++) {
            reader.look_up(unit.begin + i * KEY_TILE, pages[i]);
        }
    }

    // A tile that is free before the first take().
    DEVICE unsigned char* queries() const { return tiles + 2 * TILE_BYTES; }

    // Begins to copy the first two tiles, a group each.
    DEVICE void start(u32 key, u32 end) {
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            if (key + i * KEY_TILE < end) reader.copy(key + i * KEY_TILE, pages[i], tiles + i * TILE_BYTES);
            cp_async_commit();
        }
    }

    // The next tile, from `key` on, for all threads; they are done with the last.
    template <class Tile>
    DEVICE const unsigned char* take(u32 key, u32 end) {
        cp_async_wait<1>();
        Tile::show_writes();
        // All see this tile, and are done with the one before, which is next.
        __syncthreads();
        const u32 ahead = key + 2 * KEY_TILE;
        if (ahead < end) reader.copy(ahead, pages[2], tiles + next * TILE_BYTES);
        cp_async_commit();
        reader.look_up(ahead + KEY_TILE, pages[2]);
        const unsigned char* taken = tiles + tile * TILE_BYTES;
        next = tile;
        tile = tile + 1 == 3 ? 0 : tile + 1;
        return taken;
    }
};

// Of FP8: each thread makes bf16 of the codes that it has copied itself, one tile
// while others may still multiply the last. Two tiles of bf16 and two of codes are
// as many bytes as three tiles of bf16; exponents lie elsewhere.
struct DecodedTiles {
    typedef PageReader<Fp8Rows, ATTENTION_THREADS, KEY_TILE> Reader;

    const Reader reader;
    unsigned char* tiles;
    u32* exponents;  // of two tiles
    u32 pages[3][Reader::COUNT];
    u32 tile;

    DEVICE DecodedTiles(const AttentionArgs& args, const AttentionUnit& unit, unsigned char* shared)
        : reader(args, unit, threadIdx.x), tiles(shared), tile(0) {
        SHARED(all, u32[2 * KEY_TILE]);
        exponents = all;
#pragma unroll
        for (u32 i = 0; i < 3; i++) {
            reader.look_up(unit.begin + i * KEY_TILE, pages[i]);
        }
    }

    DEVICE unsigned char* queries() const { return tiles + TILE_BYTES; }

    DEVICE unsigned char* codes(u32 i) const { return tiles + 2 * TILE_BYTES + i * Reader::BYTES; }

    DEVICE void copy(u32 key, const u32 (&numbers)[Reader::COUNT], u32 i) const {
        reader.copy(key, numbers, codes(i));
        reader.copy_exponents(key, numbers, exponents + i * KEY_TILE);
    }

    DEVICE void start(u32 key, u32 end) {
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            if (key + i * KEY_TILE < end) copy(key + i * KEY_TILE, pages[i], i);
            cp_async_commit();
        }
    }

    template <class Tile>
    DEVICE const unsigned char* take(u32 key, u32 end) {
        cp_async_wait<1>();
        // Exponents were copied by a neighbour.
        __syncwarp();
        decode(key);
        __syncwarp();
        const u32 ahead = key + 2 * KEY_TILE;
        if (ahead < end) copy(ahead, pages[2], tile);
        cp_async_commit();
        reader.look_up(ahead + KEY_TILE, pages[2]);
        const unsigned char* taken = tiles + tile * TILE_BYTES;
        tile ^= 1;
        Tile::show_writes();
        // All see this tile, and are done with the one before, where the next is made.
        __syncthreads();
        return taken;
    }

    // Makes bf16 of the thread's codes, exactly: a code times a power of two is one.
    DEVICE void decode(u32 key) const {
        // An exponent's byte becomes the upper ones of both halves of a word.
        const u32 odd = (key + reader.row) % 2;
        const u32 selectors[2] = {odd == 0 ? 0x0404u : 0x2424u, odd == 0 ? 0x1414u : 0x3434u};
#pragma unroll
        for (u32 i = 0; i < Reader::COUNT; i++) {
            const u32 row = reader.row + i * Reader::STEP;
            const u32 pair = exponents[tile * KEY_TILE + row];
#pragma unroll
            for (u32 kind = 0; kind < 2; kind++) {
                const u32 power = byte_perm(pair, 0, selectors[kind]) >> 1;
                const unsigned char* from = codes(tile) + kind * KEY_TILE * FP8_ROW_BYTES;
                const uint4 words = *reinterpret_cast<const uint4*>(from + Fp8Rows::place(row, reader.chunk));
                unsigned char* to = tiles + tile * TILE_BYTES + kind * KEY_TILE * Bf16Rows::ROW_BYTES;
                *reinterpret_cast<uint4*>(to + swizzled(row, reader.chunk * 2)) = decoded(words.x, words.y, power);
                *reinterpret_cast<uint4*>(to + swizzled(row, reader.chunk * 2 + 1)) = decoded(words.z, words.w, power);
            }
        }
    }

    static DEVICE uint4 decoded(u32 low, u32 high, u32 power) {
        uint4 pairs;
        decode_codes(low, pairs.x, pairs.y);
        decode_codes(high, pairs.z, pairs.w);
        return make_uint4(mul_bf16x2(pairs.x, power), mul_bf16x2(pairs.y, power), mul_bf16x2(pairs.z, power),
                          mul_bf16x2(pairs.w, power));
    }
};

// --- Units -------------------------------------------------------------------

// A unit by a Tile, which is a WarpTile that can attend(), of what Tiles bring.
template <class Tile, class Tiles>
DEVICE void prefill_unit(const AttentionArgs& args, const AttentionUnit& unit, unsigned char* shared) {
    // What is only needed afterwards takes no registers in the meantime.
    SHARED(kept, AttentionUnit);
    if (threadIdx.x == 0) kept = unit;
    Tiles tiles(args, unit, shared);
    // What came before it in the step may have written all that follows.
    pdl_wait();
    copy_queries(args, unit, tiles.queries());
    cp_async_commit();
    tiles.start(unit.begin, unit.end);
    Tile tile(args, unit);
    cp_async_wait<2>();
    __syncthreads();
    tile.load_queries(tiles.queries());

    for (u32 key = unit.begin; key < unit.end; key += KEY_TILE) {
        tile.attend(key, tiles.template take<Tile>(key, unit.end));
    }
    __syncthreads();
    if (kept.tile.num_splits == 1) {
        tile.write_context(args, kept, shared);
        return;
    }
    tile.write_partial(args, kept);
    if (is_last_split(args, kept)) merge_splits(args, kept);
}

// The whole kernel.
template <class Tile, class Tiles>
DEVICE void prefill(const AttentionArgs& args, unsigned char* shared) {
    pdl_trigger();
    const AttentionWork work = load_described<AttentionWork>(reinterpret_cast<const u32*>(args.work));
    const u32 num_units = work.num_prefill_units * args.num_kv_heads;
    for (u32 turn = 0; turn * gridDim.x < num_units; turn++) {
        const u32 index = unit_of_turn(turn);
        if (index >= num_units) break;
        const AttentionUnit unit(args, work.tiles, args.step + work.prefill_units, index);
        prefill_unit<Tile, Tiles>(args, unit, shared);
        __syncthreads();
    }
    pdl_wait();
}
