// Projects to queries, keys and values with weights in eight bits: see qkv.cu.
#include "linear_skinny.cuh"
#include "linear_tiled.cuh"
#include "qkv.cuh"

#define QKV(name, Kind, ...)                              \
    KERNEL(name, QkvArgs, __VA_ARGS__) {                  \
        DYN_SHARED(shared);                               \
        Kind::run(args.product, Qkv{args}, shared);       \
    }

QKV(qkv_int8_8x1, Int8Skinny8x1, 256, 2)
QKV(qkv_int8_8x2, Int8Skinny8x2, 256, 2)
QKV(qkv_int8_16x2, Int8Skinny16x2, 256, 2)
QKV(qkv_int8_32x2, Int8Skinny32x2, 256, 2)
QKV(qkv_int8_64x2, Int8Skinny64x2, 256, 2)
QKV(qkv_int8_tiled128, Int8Tiled128, 256, 2)
QKV(qkv_int8_tiled32, Int8Tiled32, 256, 2)
