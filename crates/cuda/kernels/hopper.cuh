// What only sm_90a has: barriers in shared memory, bulk copies that report to
// them, and the matrix instruction of a warpgroup (four warps, 128 threads).
// Kernels that use it do so between #ifdef HOPPER and #endif: HOPPER is defined
// where the GPU has it, and in the emulator.
#pragma once

#include "gpu.cuh"

// A bf16 matrix as the copy engine knows it: Gpu::tensor_map() makes it. It is a
// field of a kernel's arguments, which are then aligned to 128 bytes.
struct alignas(128) TensorMap {
    u64 words[16];
};

#if defined(CHORALE_EMULATED)

#define HOPPER
#include "emulated_hopper.h"

#elif defined(__CUDA_ARCH_FEAT_SM90_ALL)

#define HOPPER

// --- Barriers ----------------------------------------------------------------

// Makes a barrier whose phases end after `arrivals` arrivals and the bytes that
// they announced. One thread calls it, then fence_mbarrier_init(), and the block
// synchronises.
DEVICE void mbarrier_init(u64* barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

// Lets other threads and copies see the barriers that this thread has made.
DEVICE void fence_mbarrier_init() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Arrives at the barrier's running phase.
DEVICE void mbarrier_arrive(u64* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Announces bytes that copies will bring in the running phase, and arrives.
DEVICE void mbarrier_expect(u64* barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
}

// True once the phase of this parity is over; it may wait a while for that.
DEVICE bool mbarrier_is_over(u64* barrier, u32 parity) {
    u32 over;
    asm volatile(
        "{\n"
        ".reg .pred over;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2;\n"
        "selp.u32 %0, 1, 0, over;\n"
        "}"
        : "=r"(over)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
    return over != 0;
}

// Waits until the phase of this parity is over: 0 for the first phase. On a new
// barrier, parity 1 does not wait.
DEVICE void mbarrier_wait(u64* barrier, u32 parity) {
    while (!mbarrier_is_over(barrier, parity)) {
    }
}

// --- Copies ------------------------------------------------------------------

// Begins to copy the map's box whose first element is at (row, column) to shared
// memory, a multiple of 1024, and its bytes count for the barrier. Rows follow
// each other every 128 bytes; in row r, what would be the 16 bytes at place p are
// at place p ^ (r % 8). Elements outside of the matrix are 0.
DEVICE void tma_load(void* shared, const TensorMap* map, u64* barrier, int column, int row) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
            shared_address(shared)),
        "l"((u64)map), "r"(shared_address(barrier)), "r"(column), "r"(row)
        : "memory");
}

// Asks for the map itself to be near when the first copy needs it.
DEVICE void tma_prefetch(const TensorMap* map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"((u64)map) : "memory");
}

// Begins to copy bytes as they are, and they count for the barrier. Addresses
// and count are multiples of 16.
DEVICE void bulk_load(void* shared, const void* global, u32 bytes, u64* barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
            shared_address(shared)),
        "l"((u64)__cvta_generic_to_global(global)), "r"(bytes), "r"(shared_address(barrier))
        : "memory");
}

// Lets copies and wgmma see what this thread has written to shared memory, and
// bulk copies overwrite what it has read; a barrier follows where other threads
// start them.
DEVICE void fence_proxy_async() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// --- Registers ---------------------------------------------------------------

// Leaves this warpgroup N registers a thread, a multiple of 8, and gives the rest back.
template <int N>
DEVICE void setmaxnreg_dec() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

// Takes registers that others gave back, up to N a thread.
template <int N>
DEVICE void setmaxnreg_inc() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

// --- Products of a warpgroup --------------------------------------------------

// Orders registers that the threads wrote before the wgmmas that follow: one
// before each group of them.
DEVICE void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

// Ends a group of wgmmas.
DEVICE void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits until at most the last PENDING groups of this warp are unfinished: those of
// the warpgroup's other warps may be.
template <int PENDING>
DEVICE void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Keeps the compiler from reading or writing these registers on the other side of
// this place; it makes no code.
template <int COUNT>
DEVICE void pin(float (&registers)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        asm volatile("" : "+f"(registers[i])::"memory");
    }
}

template <int COUNT>
DEVICE void pin(u32 (&registers)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        asm volatile("" : "+r"(registers[i])::"memory");
    }
}

template <int N>
struct Wgmma;

// The names of a wgmma's accumulators in PTX, and the accumulators.
// clang-format off
#define NAMES_4 \
    "%0, %1, %2, %3"
#define NAMES_8 \
    NAMES_4 \
    ", %4, %5, %6, %7"
#define NAMES_16 \
    NAMES_8 \
    ", %8, %9, %10, %11, %12, %13, %14, %15"
#define NAMES_20 \
    NAMES_16 \
    ", %16, %17, %18, %19"
#define NAMES_32 \
    NAMES_20 \
    ", %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_40 \
    NAMES_32 \
    ", %32, %33, %34, %35, %36, %37, %38, %39"
#define NAMES_64 \
    NAMES_40 \
    ", %40, %41, %42, %43, %44, %45, %46, %47" \
    ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define NAMES_128 \
    NAMES_64 \
    ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79" \
    ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95" \
    ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111" \
    ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define FLOATS_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define FLOATS_8(i) FLOATS_4(i), FLOATS_4(i + 4)
#define FLOATS_16(i) FLOATS_8(i), FLOATS_8(i + 8)
#define FLOATS_20(i) FLOATS_16(i), FLOATS_4(i + 16)
#define FLOATS_32(i) FLOATS_16(i), FLOATS_16(i + 16)
#define FLOATS_40(i) FLOATS_32(i), FLOATS_8(i + 32)
#define FLOATS_64(i) FLOATS_32(i), FLOATS_32(i + 32)
#define FLOATS_128(i) FLOATS_64(i), FLOATS_64(i + 64)

#define WGMMA(N, NAMES, FLOATS, I0, I1, I2, I3, I4, I5, I6)                                                            \
    template <>                                                                                                        \
    struct Wgmma<N> {                                                                                                  \
        template <int TRANSPOSED>                                                                                      \
        static DEVICE void shared(float (&d)[N / 2], u64 a, u64 b, bool accumulate) {                                  \
            asm volatile(                                                                                              \
                "{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, " I2 ", 0;\n"                                      \
                "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 "                                            \
                "{" NAMES "}, " I0 ", " I1 ", accumulate, 1, 1, 0, " I3 ";\n}"                                         \
                : FLOATS                                                                                               \
                : "l"(a), "l"(b), "r"((int)accumulate), "n"(TRANSPOSED));                                              \
        }                                                                                                              \
        template <int TRANSPOSED>                                                                                      \
        static DEVICE void registers(float (&d)[N / 2], const u32 (&a)[4], u64 b, bool accumulate) {                   \
            asm volatile(                                                                                              \
                "{\n.reg .pred accumulate;\nsetp.ne.b32 accumulate, " I5 ", 0;\n"                                      \
                "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 "                                            \
                "{" NAMES "}, {" I0 ", " I1 ", " I2 ", " I3 "}, " I4 ", accumulate, 1, 1, " I6 ";\n}"                  \
                : FLOATS                                                                                               \
                : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)accumulate), "n"(TRANSPOSED));          \
        }                                                                                                              \
    };
WGMMA(8, NAMES_4, FLOATS_4(0), "%4", "%5", "%6", "%7", "%8", "%9", "%10")
WGMMA(16, NAMES_8, FLOATS_8(0), "%8", "%9", "%10", "%11", "%12", "%13", "%14")
WGMMA(32, NAMES_16, FLOATS_16(0), "%16", "%17", "%18", "%19", "%20", "%21", "%22")
WGMMA(40, NAMES_20, FLOATS_20(0), "%20", "%21", "%22", "%23", "%24", "%25", "%26")
WGMMA(64, NAMES_32, FLOATS_32(0), "%32", "%33", "%34", "%35", "%36", "%37", "%38")
WGMMA(80, NAMES_40, FLOATS_40(0), "%40", "%41", "%42", "%43", "%44", "%45", "%46")
WGMMA(128, NAMES_64, FLOATS_64(0), "%64", "%65", "%66", "%67", "%68", "%69", "%70")
WGMMA(256, NAMES_128, FLOATS_128(0), "%128", "%129", "%130", "%131", "%132", "%133", "%134")
#undef WGMMA
// clang-format on

// d += a b, or d = a b if not `accumulate`, begun by a warpgroup: a is 64 by 16, b
// is 16 by N, both bf16, and given by descriptors of shared memory that hold them
// with k along their rows. Warp w of the four has rows 16 w and up; with
// g = lane / 4 and t = 2 (lane % 4), d[4 j + i] is row g, or g + 8 for i = 2 and
// 3, of column 8 j + t + i % 2. Until wgmma_wait() nobody touches d, or shared
// memory that is read.
template <int N>
DEVICE void wgmma(float (&d)[N / 2], u64 a, u64 b, bool accumulate = true) {
    Wgmma<N>::template shared<0>(d, a, b, accumulate);
}

// As above; each warp gives its 16 rows of a in registers, as for mma_bf16, and
// leaves them alone until wgmma_wait().
template <int N>
DEVICE void wgmma(float (&d)[N / 2], const u32 (&a)[4], u64 b, bool accumulate = true) {
    Wgmma<N>::template registers<0>(d, a, b, accumulate);
}

// As wgmma, with b lying in shared memory as 16 rows of N: desc128_transposed().
template <int N>
DEVICE void wgmma_transposed(float (&d)[N / 2], u64 a, u64 b, bool accumulate = true) {
    Wgmma<N>::template shared<1>(d, a, b, accumulate);
}

template <int N>
DEVICE void wgmma_transposed(float (&d)[N / 2], const u32 (&a)[4], u64 b, bool accumulate = true) {
    Wgmma<N>::template registers<1>(d, a, b, accumulate);
}

#endif

#ifdef HOPPER

// Describes rows of 64 bf16 as tma_load() leaves them, of which wgmma takes 16
// columns, its k: those that begin at `shared`, 32, 64 or 96 bytes into a row.
DEVICE u64 desc128(const void* shared) {
    const u64 swizzle_128 = 1ull << 62;
    const u64 bytes_of_8_rows = 1024;
    // The unused distance between columns is 1 by convention.
    return ((shared_address(shared) & 0x3FFFFu) >> 4) | (1ull << 16) | ((bytes_of_8_rows >> 4) << 32) | swizzle_128;
}

// Describes rows of 64 bf16 as tma_load() leaves them, of which wgmma_transposed
// takes 16, its k, from `shared`, a multiple of 1024. Where N is more than 64, the
// next 64 columns begin `chunk_bytes` further on.
DEVICE u64 desc128_transposed(const void* shared, u32 chunk_bytes) {
    const u64 swizzle_128 = 1ull << 62;
    const u64 bytes_of_8_rows = 1024;
    return ((shared_address(shared) & 0x3FFFFu) >> 4) | ((u64)(chunk_bytes >> 4) << 16) |
           ((bytes_of_8_rows >> 4) << 32) | swizzle_128;
}

#endif  // HOPPER
