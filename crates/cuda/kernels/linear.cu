// Products with dense weights: bf16 results, or f32 where precision is kept.
#include "linear_skinny.cuh"
#include "linear_tiled.cuh"

struct LinearArgs {
    Product product;
    void* out;   // [rows, outputs]
    u32 stride;  // of `out` in elements
    u32 pad;
};

template <class Kind, class Type>
DEVICE void multiply(const LinearArgs& args, unsigned char* shared) {
    const Plain<Type> plain = {static_cast<Type*>(args.out), args.product.outputs, args.stride};
    Kind::run(args.product, plain, shared);
}

#define LINEAR(name, Kind, Type, ...)          \
    KERNEL(name, LinearArgs, __VA_ARGS__) {    \
        DYN_SHARED(shared);                    \
        multiply<Kind, Type>(args, shared);    \
    }

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
