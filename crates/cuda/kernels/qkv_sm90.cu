// Projects to queries, keys and values on Hopper, for many rows of input.
#include "linear_warpgroups.cuh"
#include "qkv.cuh"

struct QkvHopperArgs {
    TensorMap input;
    QkvArgs qkv;
};

#ifdef HOPPER
#define QKV(name, Kind)                                                             \
    KERNEL(name, QkvHopperArgs, Kind::THREADS, 1) {                                 \
        DYN_SHARED(shared);                                                         \
        Kind::run(args.qkv.product, &args.input, Qkv{args.qkv}, shared);            \
    }

QKV(qkv_wide256, Wide256)
QKV(qkv_wide128, Wide128)
QKV(qkv_narrow128, Narrow128)

QKV(qkv_int8_wide256, Int8Wide256)
QKV(qkv_int8_wide128, Int8Wide128)
QKV(qkv_int8_narrow128, Int8Narrow128)
#endif
