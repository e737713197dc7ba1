// Dense weights as the tensor cores take them. The A operand of m16n8k16 is 16
// rows by 16 columns, of which each lane holds four words of two bf16. A matrix
// is [tile of 16 rows][load][lane] uint4: a load is one step of 16 columns of
// bf16, or two steps of 8-bit integers, and a warp reads it as 512 bytes in a row.
// Rows are padded with zeros to 16, columns to 64.
#pragma once
#include "gpu.cuh"

constexpr u32 TILE_ROWS = 16;
constexpr u32 STEP_COLS = 16;
constexpr u32 CHUNK_STEPS = 4;
constexpr u32 LOAD_BYTES = 512;

// Weights as checkpoints have them.
struct Bf16Weights {
    static constexpr bool HAS_SCALES = false;
    static constexpr u32 LOAD_STEPS = 1;
    // Of so many steps each of several warps takes as many as another, or one more.
    static constexpr u32 SHARE_STEPS = 2;

    // A lane's part of a load as the fragment of one of its steps.
    DEVICE static void decode(const uint4& words, u32, u32 (&fragment)[4]) {
        fragment[0] = words.x, fragment[1] = words.y, fragment[2] = words.z, fragment[3] = words.w;
    }
};

// Which rows a tile holds: eight from `first`, and eight from `first + gap`.
struct TileRows {
    u32 first;
    u32 gap;
};

// Within each whole 64 rows, the width of a head, a tile takes eight rows of the
// lower half and the eight that lie 32 above them: the lane that holds one
// element of a pair that is rotated holds the other, too. Rows beyond the last
// whole 64 keep their order.
DEVICE TileRows tile_rows(u32 tile, u32 rows) {
    if (tile < rows / 64 * 4) {
        return {tile / 4 * 64 + tile % 4 * 8, 32};
    }
    return {tile * TILE_ROWS, 8};
}

DEVICE u32 tiles_of(u32 rows) { return (rows + TILE_ROWS - 1) / TILE_ROWS; }

// Steps of a tile, padding included.
DEVICE u32 steps_of(u32 cols) { return (cols + 63) / 64 * CHUNK_STEPS; }

// The lane's part of the load that a step begins.
template <class Weights>
DEVICE const uint4* load_at(const uint4* weights, u32 steps, u32 tile, u32 step, u32 lane) {
    return weights + (static_cast<size_t>(tile) * steps + step) / Weights::LOAD_STEPS * 32 + lane;
}
