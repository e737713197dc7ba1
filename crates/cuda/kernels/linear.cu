// Products with dense weights: bf16 results, or f32 where precision is kept.
#include "linear_plain.cuh"

LINEAR(linear_half_8x1, Skinny8x1, bf16, 256, 2)
LINEAR(linear_half_8x2, Skinny8x2, bf16, 256, 2)
LINEAR(linear_half_16x2, Skinny16x2, bf16, 256, 2)
LINEAR(linear_half_32x2, Skinny32x2, bf16, 256, 2)
LINEAR(linear_half_64x2, Skinny64x2, bf16, 256, 2)
LINEAR(linear_half_tiled128, Tiled128, bf16, 256, 2)
LINEAR(linear_half_tiled32, Tiled32, bf16, 256, 2)

LINEAR(linear_full_8x1, Skinny8x1, float, 256, 2)
LINEAR(linear_full_8x2, Skinny8x2, float, 256, 2)
LINEAR(linear_full_16x2, Skinny16x2, float, 256, 2)
LINEAR(linear_full_32x2, Skinny32x2, float, 256, 2)
LINEAR(linear_full_64x2, Skinny64x2, float, 256, 2)
LINEAR(linear_full_tiled128, Tiled128, float, 256, 2)
LINEAR(linear_full_tiled32, Tiled32, float, 256, 2)
