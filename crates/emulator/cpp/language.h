// The words of CUDA C++ that kernels use, for a host compiler.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <vector>

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
// Nothing, since the host's own headers use the word inside of attributes.
#define __noinline__
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __constant__ static
#define DEVICE __device__ __forceinline__

// A plain static would be neither fresh for every block nor any host thread's own.
#define __shared__ _Pragma("GCC error \"declare shared memory with SHARED(name, type) or DYN_SHARED(name)\"")

struct bf16 {
    u16 bits;
};

struct int2 {
    alignas(8) int x;
    int y;
};

struct int4 {
    alignas(16) int x;
    int y, z, w;
};

struct uint2 {
    alignas(8) u32 x;
    u32 y;
};

struct uint4 {
    alignas(16) u32 x;
    u32 y, z, w;
};

struct float2 {
    alignas(8) float x;
    float y;
};

struct float4 {
    alignas(16) float x;
    float y, z, w;
};

inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(u32 x, u32 y) { return {x, y}; }
inline uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// --- Bits --------------------------------------------------------------------

template <class To, class From>
inline To same_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "only the type changes");
    To to;
    std::memcpy(&to, &from, sizeof(To));
    return to;
}

inline u32 __float_as_uint(float value) { return same_bits<u32>(value); }
inline int __float_as_int(float value) { return same_bits<int>(value); }
inline float __uint_as_float(u32 bits) { return same_bits<float>(bits); }
inline float __int_as_float(int bits) { return same_bits<float>(bits); }
inline int __popc(u32 bits) { return __builtin_popcount(bits); }
inline int __popcll(u64 bits) { return __builtin_popcountll(bits); }
inline int __clz(int bits) { return bits ? __builtin_clz((u32)bits) : 32; }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline u32 __umulhi(u32 a, u32 b) { return (u32)(((u64)a * b) >> 32); }
inline u32 __funnelshift_l(u32 low, u32 high, u32 shift) {
    return (u32)(((((u64)high << 32) | low) << (shift & 31)) >> 32);
}
inline u32 __funnelshift_r(u32 low, u32 high, u32 shift) {
    return (u32)((((u64)high << 32) | low) >> (shift & 31));
}

inline u32 byte_perm(u32 low, u32 high, u32 selector) {
    const u64 bytes = ((u64)high << 32) | low;
    u32 result = 0;
    for (int i = 0; i < 4; i++) {
        // To the instruction the nibble's top bit asks for the byte's sign, eight
        // times; CUDA's function clears it.
        const u32 pick = (selector >> (4 * i)) & 7;
        result |= ((u32)(bytes >> (pick * 8)) & 255) << (8 * i);
    }
    return result;
}
inline u32 __byte_perm(u32 low, u32 high, u32 selector) { return byte_perm(low, high, selector); }

// --- Numbers -----------------------------------------------------------------

template <class A, class B>
inline typename std::common_type<A, B>::type min(A a, B b) {
    typedef typename std::common_type<A, B>::type Result;
    return (Result)b < (Result)a ? (Result)b : (Result)a;
}

template <class A, class B>
inline typename std::common_type<A, B>::type max(A a, B b) {
    typedef typename std::common_type<A, B>::type Result;
    return (Result)a < (Result)b ? (Result)b : (Result)a;
}

inline float bf16_to_float(bf16 value) { return __uint_as_float((u32)value.bits << 16); }

inline bf16 float_to_bf16(float value) {
    const u32 bits = __float_as_uint(value);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) {
        return {0x7FFF};
    }
    return {(u16)((bits + 0x7FFFu + ((bits >> 16) & 1)) >> 16)};
}

inline u32 pack_bf16(float low, float high) {
    return float_to_bf16(low).bits | ((u32)float_to_bf16(high).bits << 16);
}

inline float2 unpack_bf16(u32 packed) {
    return {__uint_as_float(packed << 16), __uint_as_float(packed & 0xFFFF0000u)};
}

inline u32 mul_bf16x2(u32 a, u32 b) {
    const float2 x = unpack_bf16(a), y = unpack_bf16(b);
    return pack_bf16(x.x * y.x, x.y * y.y);
}

// The nearest E4M3, ties to even; what is larger than the largest becomes that.
inline u32 nearest_e4m3(float value) {
    const u32 sign = __float_as_uint(value) >> 31 << 7;
    const float size = std::fabs(value);
    if (std::isnan(value)) {
        return 0x7F;
    }
    u32 code = 0x7E;
    if (size < 448.0f) {
        // Subnormals have the steps of the least normals.
        const int exponent = size > 0.0f ? std::max(std::ilogb(size), -6) : -6;
        const float steps = std::nearbyint(std::ldexp(size, 3 - exponent));
        code = (u32)(exponent + 6) * 8 + (u32)steps;
    }
    return sign | code;
}

inline u32 pack_e4m3(float low, float high) { return nearest_e4m3(low) | nearest_e4m3(high) << 8; }

inline float flush_denormal(float value) {
    return std::fabs(value) < 1.17549435e-38f ? std::copysign(0.0f, value) : value;
}

inline float exp2_approx(float x) { return flush_denormal(std::exp2(flush_denormal(x))); }
inline float exp_approx(float x) { return exp2_approx(x * 1.4426950408889634f); }
inline float __expf(float x) { return exp_approx(x); }
inline float __logf(float x) { return std::log(x); }
inline float __log2f(float x) { return std::log2(x); }
inline float __sinf(float x) { return std::sin(x); }
inline float __cosf(float x) { return std::cos(x); }
inline float __fdividef(float a, float b) {
    const float size = std::fabs(b);
    // The approximation's reciprocal of such a number is 0.
    return size > 0x1p126f && !std::isinf(size) ? a * std::copysign(0.0f, b) : a / b;
}
inline u32 keep(u32 value) { return value; }
template <class Type>
inline const Type* keep(const Type* pointer) {
    return pointer;
}
inline float divide_approx(float a, float b) { return __fdividef(a, b); }
inline float2 cos_sin_pi(float half_turns) {
    const double angle = half_turns * 3.141592653589793;
    return make_float2((float)std::cos(angle), (float)std::sin(angle));
}
inline float rsqrt_approx(float x) { return 1.0f / std::sqrt(x); }
inline float rsqrtf(float x) { return rsqrt_approx(x); }
inline float rsqrt(float x) { return rsqrt_approx(x); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __saturatef(float x) { return std::fmin(1.0f, std::fmax(0.0f, x)); }
inline int __float2int_rn(float x) { return (int)std::nearbyint(x); }
inline int __float2int_rd(float x) { return (int)std::floor(x); }

// --- Memory ------------------------------------------------------------------

template <class Type>
inline Type __ldg(const Type* pointer) {
    return *pointer;
}

inline void __threadfence() {}
inline void __threadfence_block() {}
