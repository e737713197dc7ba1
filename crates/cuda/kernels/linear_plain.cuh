// Kernels of products whose results are matrices, bf16 or f32.
#pragma once
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
