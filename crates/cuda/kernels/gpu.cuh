// What kernels say to a GPU: the declaration of a kernel, and every instruction
// that C++ has no word for. Nothing else holds inline assembly, except
// hopper.cuh. With CHORALE_EMULATED the host compiler gets functions of the same
// names that do the same, from the emulator; nvcc and NVRTC get PTX, and need no
// header of CUDA's.
#pragma once

#ifdef CHORALE_EMULATED

#include "emulated.h"

#else

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define DEVICE __device__ __forceinline__

// A brain float: the upper half of an f32.
struct bf16 {
    u16 bits;
};

// KERNEL(name, Args, threads) { … args.field … }: a kernel that takes one plain
// struct by value and runs in blocks of `threads`, a multiple of 32. A fourth
// argument is the least number of blocks that an SM should hold.
#define KERNEL(name, Args, ...) \
    extern "C" __global__ void __launch_bounds__(__VA_ARGS__) name(const __grid_constant__ Args args)

// DYN_SHARED(name): the launch's dynamic shared memory as `unsigned char* name`,
// aligned to 1024 bytes.
#define DYN_SHARED(name) unsigned char* const name = dynamic_shared_memory
extern __shared__ __align__(1024) unsigned char dynamic_shared_memory[];

// SHARED(name, type): a static variable in shared memory, as in
// SHARED(sums, float[8]) or SHARED(tile, float[4][32]); aligned to 16 bytes.
#define SHARED(name, ...) __shared__ __align__(16) SharedType<__VA_ARGS__> name
template <class Type>
using SharedType = Type;

// --- Numbers -----------------------------------------------------------------

// The f32 that equals a bf16.
DEVICE float bf16_to_float(bf16 value) {
    return __uint_as_float((u32)value.bits << 16);
}

// The nearest bf16, ties to even: two in a word, `low` in the lower half.
DEVICE u32 pack_bf16(float low, float high) {
    u32 packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

// One; the instruction for one alone is the slower on Hopper.
DEVICE bf16 float_to_bf16(float value) {
    return {(u16)pack_bf16(value, 0.0f)};
}

// The two halves of a word as f32: x is the lower.
DEVICE float2 unpack_bf16(u32 packed) {
    return make_float2(__uint_as_float(packed << 16), __uint_as_float(packed & 0xFFFF0000u));
}

// Multiplies the halves of two words as bf16, rounded to nearest.
DEVICE u32 mul_bf16x2(u32 a, u32 b) {
    u32 product;
#if __CUDA_ARCH__ >= 900
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
#else
    // Adding -0 keeps the sign of a product that is 0.
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(product) : "r"(a), "r"(b), "r"(0x80008000u));
#endif
    return product;
}

#if __CUDA_ARCH__ < 890
// The nearest E4M3, for GPUs that have no instruction for it.
DEVICE u32 nearest_e4m3(float value) {
    const u32 sign = __float_as_uint(value) >> 24 & 0x80u;
    const float size = fminf(fabsf(value), 448.0f);
    if (value != value) return 0x7Fu;
    // Adding this leaves the multiple of 2^-9, the step below 2^-6, in the lowest bits.
    if (size < 0.015625f) return sign | (__float_as_uint(size + 16384.0f) & 0xFu);
    const u32 bits = __float_as_uint(size);
    return sign | (((bits + 0x7FFFFu + (bits >> 20 & 1u)) >> 20) - (120u << 3));
}
#endif

// The nearest E4M3 of two numbers, that of `low` in the lowest byte, of `high` in
// the next; ties go to even, and what is larger than 448 becomes that.
DEVICE u32 pack_e4m3(float low, float high) {
#if __CUDA_ARCH__ >= 890
    u16 packed;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(packed) : "f"(high), "f"(low));
    return packed;
#else
    return nearest_e4m3(low) | nearest_e4m3(high) << 8;
#endif
}

// Picks four of the eight bytes of `high:low`; the lower three bits of a nibble of
// `selector` for each.
DEVICE u32 byte_perm(u32 low, u32 high, u32 selector) {
    return __byte_perm(low, high, selector);
}

// 2 to the power of x, with about 22 bits; denormal results are 0.
DEVICE float exp2_approx(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

// e to the power of x, by exp2_approx.
DEVICE float exp_approx(float x) {
    return exp2_approx(x * 1.4426950408889634f);
}

// Cosine (x) and sine (y) of half_turns times pi, to an ulp or two.
DEVICE float2 cos_sin_pi(float half_turns) {
    float2 result;
    sincospif(half_turns, &result.y, &result.x);
    return result;
}

// 1 / sqrt(x), with about 22 bits.
DEVICE float rsqrt_approx(float x) {
    float result;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

// The value, which the compiler now holds in a register and does not compute again.
DEVICE u32 keep(u32 value) {
    asm volatile("" : "+r"(value));
    return value;
}

template <class Type>
DEVICE const Type* keep(const Type* pointer) {
    asm volatile("" : "+l"(pointer));
    return pointer;
}

// a / b with about 22 bits; 0 where b is more than 2^126.
DEVICE float divide_approx(float a, float b) {
    return __fdividef(a, b);
}

// --- Memory ------------------------------------------------------------------

// The address of shared memory as instructions take it.
DEVICE u32 shared_address(const void* pointer) {
    return (u32)__cvta_generic_to_shared(pointer);
}

// Begins to copy 16 bytes to shared memory, or to write zeros if not `valid`:
// then nothing is read. Both addresses are multiples of 16. The caller's
// copies belong to the group that its next cp_async_commit() ends.
DEVICE void cp_async16(void* shared, const void* global, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(valid ? 16 : 0)
                 : "memory");
}

// As cp_async16 with 4 bytes, and multiples of 4.
DEVICE void cp_async4(void* shared, const void* global, bool valid) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(valid ? 4 : 0)
                 : "memory");
}

// Ends a group of the thread's copies; it may be empty.
DEVICE void cp_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most the last N groups of this thread are unfinished.
template <int N>
DEVICE void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// Loads 16 bytes that are read once and that nobody writes while this kernel
// runs: past the L1 cache.
DEVICE uint4 load_streaming16(const void* global) {
    uint4 value;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(global));
    return value;
}

// Loads what the kernel before this one does not write, but an earlier one did, or
// a copy: allowed before pdl_wait(). It goes past the L1 cache, which may hold what
// was there before; that it does not is promised only from pdl_wait() on.
DEVICE u32 load_early(const u32* global) {
    u32 value;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(global));
    return value;
}

DEVICE u64 load_early(const u64* global) {
    u64 value;
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(global));
    return value;
}

DEVICE uint4 load_early(const uint4* global) {
    uint4 value;
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(global));
    return value;
}

// Asks for the line of 128 bytes at `global` to be in the L2 cache soon.
DEVICE void prefetch_l2(const void* global) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(global));
}

// The same, and to be there longer than what is read meanwhile.
DEVICE void prefetch_l2_to_stay(const void* global) {
    asm volatile("prefetch.global.L2::evict_last [%0];" ::"l"(global));
}

// --- Matrices ----------------------------------------------------------------

// Loads four 8 by 8 matrices of bf16 from shared memory. Lane 8i + r gives the
// address, a multiple of 16, of row r of matrix i; lane l gets of each matrix
// the elements 2 (l % 4) and the one after in row l / 4.
DEVICE void ldmatrix_x4(u32 (&fragment)[4], const void* shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
                 : "r"(shared_address(shared))
                 : "memory");
}

// As ldmatrix_x4, each matrix transposed.
DEVICE void ldmatrix_x4_trans(u32 (&fragment)[4], const void* shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
                 : "r"(shared_address(shared))
                 : "memory");
}

// As ldmatrix_x4 with two matrices: lanes 0 to 15 give the addresses.
DEVICE void ldmatrix_x2(u32 (&fragment)[2], const void* shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(fragment[0]), "=r"(fragment[1])
                 : "r"(shared_address(shared))
                 : "memory");
}

// As ldmatrix_x2, each matrix transposed.
DEVICE void ldmatrix_x2_trans(u32 (&fragment)[2], const void* shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(fragment[0]), "=r"(fragment[1])
                 : "r"(shared_address(shared))
                 : "memory");
}

// c += a b by a warp: a is 16 by 16, b is 16 by 8, both bf16; c is 16 by 8 in
// f32. With g = lane / 4 and t = 2 (lane % 4), a pair of columns: a holds rows g
// and g + 8 at columns t, then both at t + 8; b0 and b1 hold rows t and t + 8 of
// column g; c holds row g, then row g + 8, at columns t and t + 1.
DEVICE void mma_bf16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// c = a b, as mma_bf16 with a c that was 0: that takes no instructions to make it so.
DEVICE void mma_bf16_from_zero(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %10, %10, %10};"
        : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(0.0f));
}

// --- Order -------------------------------------------------------------------

// Waits until all kernels before this one are done and their writes are seen.
// Every thread of every kernel calls it, before it touches what they touch.
DEVICE void pdl_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next kernel's blocks start where there is room for them.
DEVICE void pdl_trigger() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// A barrier, numbered 1 to 15, of the `threads` threads that call it.
DEVICE void named_barrier(u32 number, u32 threads) {
    asm volatile("barrier.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

// Adds 1 to a counter that blocks share, and gives what it was. Whoever gets a later
// number sees what had been written before the earlier ones were given out, by this
// thread and by those that it had met at a barrier. That takes one fence where
// __threadfence() before and after would be two, of a slower kind.
DEVICE u32 count_in_order(u32* global) {
    u32 before;
    asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;" : "=r"(before) : "l"(global) : "memory");
    return before;
}

// --- Other GPUs ----------------------------------------------------------------

// Writes two words of 8 bytes, each whole: another GPU or the host may see one
// before the other, and before or after all else that this thread writes.
DEVICE void store_system16(void* global, uint4 value) {
    const u64 low = (u64)value.y << 32 | value.x, high = (u64)value.w << 32 | value.z;
    asm volatile("st.relaxed.sys.global.v2.b64 [%0], {%1, %2};" ::"l"(global), "l"(low), "l"(high) : "memory");
}

// What store_system16 wrote; each of the two words is whole.
DEVICE uint4 load_system16(const void* global) {
    u64 low, high;
    asm volatile("ld.relaxed.sys.global.v2.b64 {%0, %1}, [%2];" : "=l"(low), "=l"(high) : "l"(global) : "memory");
    return make_uint4((u32)low, (u32)(low >> 32), (u32)high, (u32)(high >> 32));
}

// Writes a word that whoever loads it with load_acquire_system sees after all
// that this thread wrote or saw written before, by earlier kernels, too.
DEVICE void store_release_system(u32* global, u32 value) {
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(global), "r"(value) : "memory");
}

DEVICE u32 load_acquire_system(const u32* global) {
    u32 value;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(global) : "memory");
    return value;
}

// A word that others change while this kernel runs.
DEVICE u32 load_relaxed_system(const u32* global) {
    u32 value;
    asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(global) : "memory");
    return value;
}

DEVICE void store_relaxed_system(u32* global, u32 value) {
    asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(global), "r"(value) : "memory");
}

// Nanoseconds since some time, in steps of up to a microsecond.
DEVICE u64 nanoseconds() {
    u64 now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return now;
}

// Between two looks at what another GPU is to write.
DEVICE void look_again() {}

#endif  // CHORALE_EMULATED

// --- Warps -------------------------------------------------------------------

// The sum of what the lanes of a full warp give, in every lane, always added in
// the same order.
DEVICE float warp_sum(float value) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        value += __shfl_xor_sync(0xFFFFFFFFu, value, distance);
    }
    return value;
}

// The greatest of what the lanes of a full warp give, in every lane.
DEVICE float warp_max(float value) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        value = fmaxf(value, __shfl_xor_sync(0xFFFFFFFFu, value, distance));
    }
    return value;
}
