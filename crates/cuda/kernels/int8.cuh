// Dense weights as 8-bit integers, -127 to 127, with one f32 scale for each row,
// which its sums take once. Written by pack_linear.cu, as device/src/int8.rs says.
//
// A word holds four integers of a row: two pairs of columns, 8 apart, of which
// each becomes a word of a fragment. In a half of it, bits 15 and 6 to 0 are sign
// and magnitude of the first pair's, bits 7 and 14 to 8 of the second pair's. A
// magnitude in a bf16's lowest bits is worth 2^-133 of itself, so one exact
// multiplication by 2^127 makes 1/64 of the integer; scales make up for the 64.
// That is five instructions for four weights: two ANDs, a permutation and two
// products. Of the four words of a lane the first two are a step's, one of
// either row.
#pragma once
#include "fragments.cuh"

struct Int8Weights {
    static constexpr bool HAS_SCALES = true;
    static constexpr u32 LOAD_STEPS = 2;
    static constexpr u32 SHARE_STEPS = 4;

    DEVICE static void decode(const uint4& words, u32 step, u32 (&fragment)[4]) {
        decode_row(step == 0 ? words.x : words.z, fragment[0], fragment[2]);
        decode_row(step == 0 ? words.y : words.w, fragment[1], fragment[3]);
    }

    DEVICE static void decode_row(u32 word, u32& first, u32& second) {
        const u32 mask = 0x807F807Fu, two_to_127 = 0x7F007F00u;
        first = mul_bf16x2(word & mask, two_to_127);
        second = mul_bf16x2(byte_perm(word, 0, 0x2301) & mask, two_to_127);
    }
};

// What a scale is multiplied with: decoded weights are so much too small.
constexpr float INT8_UNIT = 64.0f;

// An integer in the bits of a first pair, and in those of a second.
DEVICE u32 place_first(int integer) { return integer < 0 ? 0x8000u | (u32)-integer : (u32)integer; }
DEVICE u32 place_second(int integer) { return integer < 0 ? 0x80u | (u32)-integer << 8 : (u32)integer << 8; }

// `weight * inverse` to the nearest integer, ties to even; 0 for what is no number.
DEVICE int quantize(float weight, float inverse) {
    const float scaled = weight * inverse;
    return scaled == scaled ? __float2int_rn(scaled) : 0;
}

// What a row whose largest weight is `largest` is multiplied with: 0 if there is
// no such number.
DEVICE float inverse_scale(float largest) {
    const float inverse = 127.0f / largest;
    return inverse < __uint_as_float(0x7F800000u) ? inverse : 0.0f;
}
