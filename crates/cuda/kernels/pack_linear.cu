// Packs rows of a bf16 matrix into fragments. A block packs one tile.
#include "fragments.cuh"

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
