// Products with dense weights on Hopper, for many rows of input.
#include "linear_warpgroups.cuh"

struct LinearHopperArgs {
    TensorMap input;
    Product product;
    void* out;   // [rows, outputs]
    u32 stride;  // of `out` in elements
    u32 pad;
};

// Rows of a matrix, one behind the other: tensor maps take them in no other way.
struct GatherArgs {
    const uint4* from;
    const u32* picked;  // [rows]
    uint4* to;          // [rows, pieces]
    u32 rows;
    u32 pieces;         // of 16 bytes in a row
    u32 stride;         // of `from`, in pieces
    u32 pad;
};

#ifdef HOPPER
KERNEL(gather_rows, GatherArgs, 128) {
    pdl_wait();
    pdl_trigger();
    const u32 piece = blockIdx.y * 128 + threadIdx.x;
    if (piece >= args.pieces) return;
    const size_t row = args.picked[blockIdx.x];
    args.to[static_cast<size_t>(blockIdx.x) * args.pieces + piece] = args.from[row * args.stride + piece];
}

#define LINEAR(name, Kind, Type)                                                                             \
    KERNEL(name, LinearHopperArgs, Kind::THREADS, 1) {                                                       \
        DYN_SHARED(shared);                                                                                  \
        const Plain<Type> plain = {static_cast<Type*>(args.out), args.product.outputs, args.stride};         \
        Kind::run(args.product, &args.input, plain, shared);                                                 \
    }

LINEAR(linear_half_wide256, Wide256, bf16)
LINEAR(linear_half_wide128, Wide128, bf16)
LINEAR(linear_half_narrow128, Narrow128, bf16)
LINEAR(linear_full_wide256, Wide256, float)
LINEAR(linear_full_wide128, Wide128, float)
LINEAR(linear_full_narrow128, Narrow128, float)

LINEAR(linear_int8_half_wide256, Int8Wide256, bf16)
LINEAR(linear_int8_half_wide128, Int8Wide128, bf16)
LINEAR(linear_int8_half_narrow128, Int8Narrow128, bf16)
LINEAR(linear_int8_full_wide256, Int8Wide256, float)
LINEAR(linear_int8_full_wide128, Int8Wide128, float)
LINEAR(linear_int8_full_narrow128, Int8Narrow128, float)
#endif
