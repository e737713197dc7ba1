// Projects to queries, keys and values; see qkv.cuh for what becomes of them.
#include "linear_skinny.cuh"
#include "linear_tiled.cuh"
#include "qkv.cuh"

#define QKV(name, Kind, ...)                              \
    KERNEL(name, QkvArgs, __VA_ARGS__) {                  \
        DYN_SHARED(shared);                               \
        Kind::run(args.product, Qkv{args}, shared);       \
    }

QKV(qkv_8x1, Skinny8x1, 256, 2)
QKV(qkv_8x2, Skinny8x2, 256, 2)
QKV(qkv_16x2, Skinny16x2, 256, 2)
QKV(qkv_32x2, Skinny32x2, 256, 2)
QKV(qkv_64x2, Skinny64x2, 256, 2)
QKV(qkv_tiled128, Tiled128, 256, 2)
QKV(qkv_tiled32, Tiled32, 256, 2)
