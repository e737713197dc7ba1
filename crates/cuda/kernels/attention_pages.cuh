// How keys and values get from their pages into shared memory, and from there to
// the tensor cores: rows of bf16, and rows of FP8.
#pragma once
#include "attention.cuh"
#include "fp8.cuh"

// A row of keys or values in a page, and in shared memory: where 16 bytes lie
// there, so that eight rows at the same column lie in different banks.
struct Bf16Rows {
    static constexpr bool HAS_EXPONENTS = false;
    static constexpr u32 ROW_BYTES = HEAD_DIM * sizeof(bf16);
    static constexpr u32 CHUNKS = ROW_BYTES / 16;

    static DEVICE u32 place(u32 row, u32 chunk) { return row * ROW_BYTES + ((chunk ^ (row & 7)) * 16); }
};

struct Fp8Rows {
    static constexpr bool HAS_EXPONENTS = true;
    static constexpr u32 ROW_BYTES = FP8_ROW_BYTES;
    static constexpr u32 CHUNKS = ROW_BYTES / 16;

    static DEVICE u32 place(u32 row, u32 chunk) { return row * ROW_BYTES + ((chunk ^ (row / 2 & 3)) * 16); }
};

// Queries and context, too, are rows of bf16.
DEVICE u32 swizzled(u32 row, u32 chunk) {
    return Bf16Rows::place(row, chunk);
}

// One thread's part in copying KEYS keys and values that THREADS threads copy
// together: 16 bytes at the same column of COUNT of each, STEP positions apart.
template <class Rows, u32 THREADS, u32 KEYS>
struct PageReader {
    static constexpr u32 CHUNKS = Rows::CHUNKS, ROW_BYTES = Rows::ROW_BYTES;
    static constexpr u32 STEP = THREADS / CHUNKS;
    static constexpr u32 COUNT = KEYS / STEP;
    static constexpr u32 BYTES = 2 * KEYS * ROW_BYTES;  // keys, then values

    const unsigned char* head_pages;      // the thread's column in the head's part of page 0
    const unsigned char* head_exponents;  // the head's part of page 0's exponents
    u32 page_bytes, block_shift;
    u32 values;                       // from keys to values
    // Keys are counted from the beginning of the page of the tile's first one.
    const u32* table;                 // from that page on
    u32 base;                         // of the thread's row
    u32 first, count;                 // keys that are there
    u32 row, chunk;

    // `thread` counts those that copy together.
    DEVICE PageReader(const AttentionArgs& args, const AttentionUnit& unit, u32 thread) {
        row = thread / CHUNKS;
        chunk = thread % CHUNKS;
        const u32 head_rows = unit.head * 2 << args.block_shift;
        head_pages = args.pages + static_cast<size_t>(head_rows) * ROW_BYTES + chunk * 16;
        if constexpr (Rows::HAS_EXPONENTS) head_exponents = args.exponents + head_rows;
        page_bytes = args.page_bytes;
        block_shift = args.block_shift;
        values = ROW_BYTES << args.block_shift;
        const u32 page = unit.tile.first >> args.block_shift;
        table = args.step + unit.tile.table + (page - unit.tile.table_first);
        base = row - (page << args.block_shift);
        first = unit.tile.first - (page << args.block_shift);
        count = unit.end - unit.tile.first;
    }

    // True if a key is there; those before the first have wrapped round.
    DEVICE bool has(u32 place) const { return place - first < count; }

    DEVICE u32 slot(u32 place) const { return place & ((1u << block_shift) - 1); }

    // Reads the numbers of the pages that the keys from `key` on lie in. It is
    // called well before `copy`, as that has to wait for them.
    DEVICE void look_up(u32 key, u32 (&pages)[COUNT]) const {
#pragma unroll
        for (u32 i = 0; i < COUNT; i++) {
            const u32 place = key + base + i * STEP;
            pages[i] = has(place) ? load_early(table + (place >> block_shift)) : 0;
        }
    }

    // Begins to copy KEYS keys from `key` on, and behind them as many values. Rows
    // that are not there become zeros: what lies there was never written, and 0
    // times what is not a number would spoil the sum.
    DEVICE void copy(u32 key, const u32 (&pages)[COUNT], unsigned char* shared) const {
#pragma unroll
        for (u32 i = 0; i < COUNT; i++) {
            const u32 place = key + base + i * STEP;
            const u64 page = static_cast<u64>(pages[i]) * page_bytes;
            const unsigned char* source = head_pages + page + slot(place) * ROW_BYTES;
            unsigned char* target = shared + Rows::place(row + i * STEP, chunk);
            cp_async16(target, source, has(place));
            cp_async16(target + KEYS * ROW_BYTES, source + values, has(place));
        }
    }

    // Asks for keys and values that are there to be in the L2 cache soon.
    DEVICE void prefetch(u32 key, const u32 (&pages)[COUNT]) const {
#pragma unroll
        for (u32 i = 0; i < COUNT; i++) {
            const u64 page = static_cast<u64>(pages[i]) * page_bytes;
            const unsigned char* source = head_pages + page + slot(key + base + i * STEP) * ROW_BYTES;
            // A row is a line of the cache, which its threads share.
            if (chunk == 0) prefetch_l2(source);
            if (chunk == 1) prefetch_l2(source + values);
        }
    }

    // Begins to copy their exponents: for each position the four bytes that hold
    // those of its key and value. The i-th of a row's threads copies the i-th row's.
    DEVICE void copy_exponents(u32 key, const u32 (&pages)[COUNT], u32* shared) const {
        static_assert(COUNT <= CHUNKS, "each row has a thread");
        if (chunk >= COUNT) return;
        const u32 own = chunk * STEP, place = key + base + own;
        u32 number = pages[0];
#pragma unroll
        for (u32 i = 1; i < COUNT; i++) {
            const u32 other = keep(pages[i]);
            number = chunk == i ? other : number;
        }
        const u64 page = static_cast<u64>(number) * (page_bytes / ROW_BYTES);
        const unsigned char* source = head_exponents + page + slot(place) * 2;
        u32* target = shared + row + own;
        if (block_shift > 0) {
            const size_t odd = reinterpret_cast<size_t>(source) & 2;
            cp_async4(target, source - odd, has(place));
        } else {
            // Alone in its page, it may be any half of the four bytes.
            *target = has(place) ? *reinterpret_cast<const u16*>(source) * 0x00010001u : 0;
        }
    }
};

// --- Of bf16 -----------------------------------------------------------------

// The b operands of 16 keys, for a step of 16 dimensions of q k^T: the first two
// are of the first 8 keys.
DEVICE void load_keys(u32 (&fragment)[4], const unsigned char* keys, u32 first, u32 step) {
    const u32 lane = threadIdx.x % 32, matrix = lane / 8;
    ldmatrix_x4(fragment, keys + swizzled(first + matrix / 2 * 8 + lane % 8, step * 2 + matrix % 2));
}

// Adds a step's 16 dimensions to scores, which begin with the first.
DEVICE void add_scores(float (&scores)[4], const u32 (&queries)[4], u32 b0, u32 b1, u32 step) {
    if (step == 0) {
        mma_bf16_from_zero(scores, queries, b0, b1);
    } else {
        mma_bf16(scores, queries, b0, b1);
    }
}

// The b operands of 16 values, for 16 dimensions of p v: the first two are of
// the first 8 dimensions.
DEVICE void load_values(u32 (&fragment)[4], const unsigned char* values, u32 first, u32 step) {
    const u32 lane = threadIdx.x % 32, matrix = lane / 8;
    ldmatrix_x4_trans(fragment, values + swizzled(first + matrix % 2 * 8 + lane % 8, step * 2 + matrix / 2));
}

// --- Of FP8 ------------------------------------------------------------------

// Of what copy_exponents() brought for two positions, the first of them at `key`
// or an even number after it: the bytes of the first's key and value, and then of
// the second's.
DEVICE u32 pair_exponents(uint2 words, u32 key) {
    return byte_perm(words.x, words.y, key % 2 == 0 ? 0x7610 : 0x5432);
}

// The powers of two of the keys, and of the values, of such a pair.
DEVICE float2 key_powers(u32 exponents) {
    return make_float2(__uint_as_float(exponents << 23 & 0x7F800000u), __uint_as_float(exponents << 7 & 0x7F800000u));
}

DEVICE float2 value_powers(u32 exponents) {
    return make_float2(__uint_as_float(exponents << 15 & 0x7F800000u), __uint_as_float(exponents >> 1 & 0x7F800000u));
}
