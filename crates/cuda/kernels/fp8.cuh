// Keys and values in eight bits, as device/src/fp8.rs says: 64 E4M3 codes, and
// the biased exponent of the power of two that they are multiplied with. Here the
// codes of dimensions 0 to 3 lie in the order 0, 2, 1, 3, and so on: a word's
// first pair of bf16 is then made of its lower bytes, the second of its upper ones.
//
// A code in the place of a bf16's sign and lowest exponent bits is worth 2^-120 of
// what it stands for, subnormals included, so one exact multiplication gives it.
// The code that is no number comes out as 480: only what was no number makes it.
#pragma once
#include "gpu.cuh"

constexpr u32 FP8_ROW_BYTES = 64;

// A code's place in its row.
DEVICE u32 code_place(u32 dimension) {
    return (dimension & ~3u) | (dimension & 1) << 1 | (dimension >> 1 & 1);
}

// The codes in a word's upper bytes as two bf16.
DEVICE u32 decode_upper_codes(u32 word) {
    const u32 two_to_120 = 0x7B807B80u;
    return mul_bf16x2((word & 0x80008000u) | (word & 0x7F007F00u) >> 4, two_to_120);
}

// Four dimensions' codes as two pairs of bf16.
DEVICE void decode_codes(u32 word, u32& first, u32& second) {
    first = decode_upper_codes(word << 8);
    second = decode_upper_codes(word);
}

// The biased exponent of a row whose largest magnitude is given: the least that
// makes it at most 448, which is 1.75 * 2^8.
DEVICE u32 row_exponent(float largest) {
    const u32 bits = __float_as_uint(largest);
    const u32 above = (bits & 0x007FFFFFu) > 0x00600000u ? 1 : 0;
    const int exponent = static_cast<int>(bits >> 23) + static_cast<int>(above) - 8;
    return bits == 0 ? 127 : static_cast<u32>(min(max(exponent, 27), 227));
}

// What brings a row of this exponent into the codes' range.
DEVICE float inverse_power(u32 exponent) {
    return __uint_as_float((254 - exponent) << 23);
}
