// MXFP4 as the tensor cores take it: the layout of packed matrices, and how a
// fragment becomes bf16. What lies so is written by pack_experts.cu.
//
// A matrix [rows, cols] is cut into tiles of 16 rows by 64 columns; columns are
// padded with zeros. A tile has 512 bytes of codes, 16 for each lane, and 32 of
// scales; the tiles of 16 rows follow each other in both. With g = lane / 4 and
// q = lane % 4, word j of a lane holds of rows g and g + 8 the columns 16 j +
// {2q, 2q + 1, 2q + 8, 2q + 9}: the fragment of an mma's left matrix, and of a
// wgmma's too. The lower half of a word has the even columns.
//
// A code is a sign s, two bits of exponent and one of mantissa, m. Put into a bf16
// as s0000000 mmm00000 0 (bits 15 and 8 to 6) it is worth 2^-126 of what it
// stands for, subnormals included, so one exact multiplication gives the weight:
// by 2^126 * 2^(scale - 127). Three of a half's four codes stand so, shifted
// right by 0, 3 and 6; the fourth has what bits remain.
//
// A scale's byte is the exponent of that multiplier, scale + 126 - shift, which
// is at most 254. `shift` belongs to a row: it is 0 unless the row's largest
// scale is outside of 64 to 128, and then brings it to the nearer end. The row's
// sum is multiplied by 2^shift, so the result is what the untouched scales
// give. That is exact for every code under every scale, unless a row's scales
// are more than 133 apart: then the smallest weights lose bits that are at most
// 2^-133 of the largest, and with scales 0 and 254 in one row they are 0.
#pragma once
#include "gpu.cuh"

constexpr u32 TILE_ROWS = 16;
constexpr u32 TILE_COLS = 64;
constexpr u32 TILE_CODES = 512;   // bytes
constexpr u32 TILE_SCALES = 32;   // bytes

// What a row's sum takes before it is the row's output.
struct RowEdge {
    float multiplier;  // 2^shift
    float bias;
};

// Where the parts of one packed matrix lie, in bytes from the expert's begin.
struct PackedMatrix {
    u32 codes;
    u32 scales;
    u32 edges;      // [row tiles * 16] of RowEdge
    u32 row_tiles;
    u32 chunks;     // tiles side by side
    u32 cols;       // as they are, a multiple of 32
};

// A code in the place of the first of a half's four.
DEVICE u32 place_code(u32 code) {
    return (code & 8) << 12 | (code & 7) << 6;
}

// A code in what the other three leave.
DEVICE u32 place_last_code(u32 code) {
    return (code & 8) << 7 | (code & 6) << 12 | (code & 1) << 11;
}

// The multipliers of a tile's two blocks, each twice in a word, of row g (first)
// and of row g + 8.
struct TileScales {
    u32 first[2];
    u32 second[2];
};

DEVICE TileScales tile_scales(u32 packed) {
    TileScales scales;
    scales.first[0] = byte_perm(packed, 0, 0x0404) >> 1;
    scales.first[1] = byte_perm(packed, 0, 0x1414) >> 1;
    scales.second[0] = byte_perm(packed, 0, 0x2424) >> 1;
    scales.second[1] = byte_perm(packed, 0, 0x3434) >> 1;
    return scales;
}

// A word of codes to a fragment of weights.
DEVICE void decode_fragment(u32 word, u32 first, u32 second, u32 (&fragment)[4]) {
    const u32 mask = 0x81C081C0u;
    fragment[0] = mul_bf16x2(word & mask, first);
    fragment[1] = mul_bf16x2(word << 3 & mask, second);
    fragment[2] = mul_bf16x2(word << 6 & mask, first);
    fragment[3] = mul_bf16x2(
        (word << 5 & 0x80008000u) | (word >> 6 & 0x01800180u) | (word >> 5 & 0x00400040u), second);
}
