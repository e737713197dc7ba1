// Products with dense weights on Hopper, for many rows of input.
#include "linear_warpgroups.cuh"

struct LinearHopperArgs {
    TensorMap input;
    Product product;
    void* out;   // [rows, outputs]
    u32 stride;  // of `out` in elements
    u32 pad;
};

#ifdef HOPPER
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
#endif
