// Packs rows of a bf16 matrix into fragments, of bf16 or of integers. A block
// packs one tile.
#include "int8.cuh"

struct PackLinearArgs {
    const bf16* source;  // [num_rows, cols]: rows from `first_row` on
    uint4* fragments;    // the whole matrix's
    u32 rows;            // of the whole matrix
    u32 cols;            // a multiple of 8
    u32 first_row;       // a multiple of 64
    u32 num_rows;        // a multiple of 64 unless they are the last
};

// Two neighbours of a row, or zeros beyond the matrix.
DEVICE u32 source_pair(const PackLinearArgs& args, u32 row, u32 col) {
    if (row >= args.rows || col >= args.cols) return 0;
    const size_t at = static_cast<size_t>(row - args.first_row) * args.cols + col;
    return *reinterpret_cast<const u32*>(args.source + at);
}

KERNEL(pack_linear, PackLinearArgs, 256) {
    pdl_wait();
    pdl_trigger();
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const u32 tile = args.first_row / TILE_ROWS + blockIdx.x;
    const TileRows rows = tile_rows(tile, args.rows);
    const u32 low = rows.first + lane / 4, high = low + rows.gap;
    const u32 steps = steps_of(args.cols);
    for (u32 step = warp; step < steps; step += 8) {
        const u32 col = step * STEP_COLS + lane % 4 * 2;
        uint4 words;
        words.x = source_pair(args, low, col);
        words.y = source_pair(args, high, col);
        words.z = source_pair(args, low, col + 8);
        words.w = source_pair(args, high, col + 8);
        args.fragments[(static_cast<size_t>(tile) * steps + step) * 32 + lane] = words;
    }
}

struct PackInt8Args {
    PackLinearArgs matrix;
    float* scales;  // [rows of the whole matrix], padded to 16
};

// The largest size of a weight in a row, which a warp finds; 0 beyond the matrix.
DEVICE float largest_of(const PackLinearArgs& args, u32 row, u32 lane) {
    float largest = 0.0f;
    if (row < args.rows) {
        const uint4* source = reinterpret_cast<const uint4*>(args.source) +
                              static_cast<size_t>(row - args.first_row) * (args.cols / 8);
        for (u32 piece = lane; piece < args.cols / 8; piece += 32) {
            const uint4 words = source[piece];
            const u32 parts[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                const float2 pair = unpack_bf16(parts[i]);
                // Of two operands it takes the one that is a number.
                largest = fmaxf(largest, fmaxf(fabsf(pair.x), fabsf(pair.y)));
            }
        }
    }
    return warp_max(largest);
}

// Four integers of a row as a word.
DEVICE u32 integer_word(const PackLinearArgs& args, u32 row, u32 col, float inverse) {
    const float2 first = unpack_bf16(source_pair(args, row, col));
    const float2 second = unpack_bf16(source_pair(args, row, col + 8));
    const u32 low = place_first(quantize(first.x, inverse)) | place_second(quantize(second.x, inverse));
    const u32 high = place_first(quantize(first.y, inverse)) | place_second(quantize(second.y, inverse));
    return low | high << 16;
}

KERNEL(pack_linear_int8, PackInt8Args, 256) {
    SHARED(inverses, float[TILE_ROWS]);
    pdl_wait();
    pdl_trigger();
    const PackLinearArgs& matrix = args.matrix;
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const u32 tile = matrix.first_row / TILE_ROWS + blockIdx.x;
    const TileRows rows = tile_rows(tile, matrix.rows);
    for (u32 i = warp; i < TILE_ROWS; i += 8) {
        const u32 row = rows.first + i % 8 + i / 8 * rows.gap;
        const float largest = largest_of(matrix, row, lane);
        const float inverse = inverse_scale(largest);
        if (lane == 0) {
            inverses[i] = inverse;
            args.scales[row] = inverse > 0.0f ? largest / 127.0f * INT8_UNIT : 0.0f;
        }
    }
    __syncthreads();
    const u32 low = rows.first + lane / 4, high = low + rows.gap;
    const float low_inverse = inverses[lane / 4], high_inverse = inverses[lane / 4 + 8];
    const u32 steps = steps_of(matrix.cols);
    for (u32 step = warp * 2; step < steps; step += 16) {
        const u32 col = step * STEP_COLS + lane % 4 * 2;
        uint4 words;
        words.x = integer_word(matrix, low, col, low_inverse);
        words.y = integer_word(matrix, high, col, high_inverse);
        words.z = integer_word(matrix, low, col + STEP_COLS, low_inverse);
        words.w = integer_word(matrix, high, col + STEP_COLS, high_inverse);
        matrix.fragments[(static_cast<size_t>(tile) * steps + step) / 2 * 32 + lane] = words;
    }
}
