// Attention of many rows: multiplying is what takes the time. A block takes 128
// rows and goes through the keys that they see, 64 at a time; each of its four
// warps has 32 rows. How they multiply is for the kernels that include this.
#pragma once
#include "attention.cuh"

constexpr u32 PREFILL_ROWS = 128;
constexpr u32 WARP_ROWS = PREFILL_ROWS / (ATTENTION_THREADS / 32);
constexpr u32 MMA_ROWS = 16;
constexpr u32 MMAS = WARP_ROWS / MMA_ROWS;
constexpr u32 PREFILL_STAGES = 3;
// Keys, then values. PREFILL_STAGES of them are PREFILL_SHARED_BYTES in src/attention.rs.
constexpr u32 STAGE_BYTES = 2 * KEY_TILE * ROW_BYTES;
static_assert(PREFILL_ROWS * ROW_BYTES <= STAGE_BYTES, "queries and context pass through a stage");

// A warp's rows: their queries, and what becomes of them.
struct WarpTile {
    u32 queries[MMAS][HEAD_DIM / 16][4];
    float output[MMAS][HEAD_DIM / 8][4];
    Softmax softmax[MMAS];
    u32 oldest[MMAS][2], newest[MMAS][2];  // the keys that a lane's rows see
    u32 first_oldest, last_oldest, first_newest, last_newest;  // those of the warp's first and last row
    bool has_rows;

    DEVICE WarpTile(const AttentionArgs& args, const AttentionUnit& unit) : output{} {
        const u32 first_row = threadIdx.x / 32 * WARP_ROWS, num_rows = unit.tile.num_tokens * args.group;
#pragma unroll
        for (u32 m = 0; m < MMAS; m++) {
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                const u32 token = (first_row + m * MMA_ROWS + half * 8 + threadIdx.x % 32 / 4) / args.group;
                oldest[m][half] = unit.oldest(args, token);
                newest[m][half] = unit.tile.position + token;
            }
        }
        has_rows = first_row < num_rows;
        const u32 first = first_row / args.group;
        const u32 last = min(first_row + WARP_ROWS - 1, num_rows - 1) / args.group;
        first_oldest = unit.oldest(args, first);
        last_oldest = unit.oldest(args, last);
        first_newest = unit.tile.position + first;
        last_newest = unit.tile.position + last;
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
        if (key < last_oldest || key + KEY_TILE > first_newest + 1) mask_scores(scores, key, oldest[m], newest[m]);
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

// A unit by a Tile, which is a WarpTile that can attend().
template <class Tile>
DEVICE void prefill_unit(const AttentionArgs& args, const AttentionUnit& unit, unsigned char* stages) {
    const PageReader<KEY_TILE / 4> reader(args, unit, threadIdx.x);
    u32 key = unit.begin;
    u32 pages[PREFILL_STAGES][4];
#pragma unroll
    for (u32 stage = 0; stage < PREFILL_STAGES; stage++) {
        reader.look_up(key + stage * KEY_TILE, pages[stage]);
    }
    // What came before it in the step may have written all that follows.
    pdl_wait();
    unsigned char* queries = stages + (PREFILL_STAGES - 1) * STAGE_BYTES;
    copy_queries(args, unit, queries);
    cp_async_commit();
#pragma unroll
    for (u32 stage = 0; stage < PREFILL_STAGES - 1; stage++) {
        if (key + stage * KEY_TILE < unit.end) {
            reader.copy(key + stage * KEY_TILE, pages[stage], stages + stage * STAGE_BYTES);
        }
        cp_async_commit();
    }
    Tile tile(args, unit);
    cp_async_wait<PREFILL_STAGES - 1>();
    __syncthreads();
    tile.load_queries(queries);

    for (u32 stage = 0, next = PREFILL_STAGES - 1; key < unit.end; key += KEY_TILE) {
        cp_async_wait<PREFILL_STAGES - 2>();
        Tile::show_copies();
        // All see this stage, and are done with the one before, which is next.
        __syncthreads();
        const u32 ahead = key + (PREFILL_STAGES - 1) * KEY_TILE;
        if (ahead < unit.end) reader.copy(ahead, pages[PREFILL_STAGES - 1], stages + next * STAGE_BYTES);
        cp_async_commit();
        reader.look_up(ahead + KEY_TILE, pages[PREFILL_STAGES - 1]);
        tile.attend(key, stages + stage * STAGE_BYTES);
        next = stage;
        stage = stage + 1 == PREFILL_STAGES ? 0 : stage + 1;
    }
    __syncthreads();
    if (unit.tile.num_splits == 1) {
        tile.write_context(args, unit, stages);
        return;
    }
    tile.write_partial(args, unit);
    if (is_last_split(args, unit)) merge_splits(args, unit);
}

// The whole kernel.
template <class Tile>
DEVICE void prefill(const AttentionArgs& args, unsigned char* stages) {
    pdl_trigger();
    const AttentionWork work = *args.work;
    const u32 num_units = work.num_prefill_units * args.num_kv_heads;
    for (u32 turn = 0; turn * gridDim.x < num_units; turn++) {
        const u32 index = unit_of_turn(turn);
        if (index >= num_units) break;
        prefill_unit<Tile>(args, AttentionUnit(args, work.tiles, args.step + work.prefill_units, index), stages);
        __syncthreads();
    }
    pdl_wait();
}
