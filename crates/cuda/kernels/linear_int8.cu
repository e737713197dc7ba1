// Products with dense weights in eight bits: see linear.cu.
#include "linear_plain.cuh"

LINEAR(linear_int8_half_8x1, Int8Skinny8x1, bf16, 256, 2)
LINEAR(linear_int8_half_8x2, Int8Skinny8x2, bf16, 256, 2)
LINEAR(linear_int8_half_16x2, Int8Skinny16x2, bf16, 256, 2)
LINEAR(linear_int8_half_32x2, Int8Skinny32x2, bf16, 256, 2)
LINEAR(linear_int8_half_64x2, Int8Skinny64x2, bf16, 256, 2)
LINEAR(linear_int8_half_tiled128, Int8Tiled128, bf16, 256, 2)
LINEAR(linear_int8_half_tiled32, Int8Tiled32, bf16, 256, 2)

LINEAR(linear_int8_full_8x1, Int8Skinny8x1, float, 256, 2)
LINEAR(linear_int8_full_8x2, Int8Skinny8x2, float, 256, 2)
LINEAR(linear_int8_full_16x2, Int8Skinny16x2, float, 256, 2)
LINEAR(linear_int8_full_32x2, Int8Skinny32x2, float, 256, 2)
LINEAR(linear_int8_full_64x2, Int8Skinny64x2, float, 256, 2)
LINEAR(linear_int8_full_tiled128, Int8Tiled128, float, 256, 2)
LINEAR(linear_int8_full_tiled32, Int8Tiled32, float, 256, 2)
