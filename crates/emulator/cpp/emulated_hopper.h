// What hopper.cuh is to nvcc, for the host's compiler.
#pragma once

#include "matrix.h"

#undef EMULATED_NEEDS_HOPPER
#define EMULATED_NEEDS_HOPPER true

namespace emulated {

// What a TensorMap holds here; the Rust side fills it too.
struct EmulatedMap {
    u64 mark;
    u64 address;
    u64 rows, cols;
    u64 row_bytes;
    u64 box_rows, box_cols;
    u64 unused[9];
};
static_assert(sizeof(EmulatedMap) == sizeof(TensorMap), "one stands for the other");
constexpr u64 EMULATED_MAP_MARK = 0x50414D524F534E54ull;

// A map for tests in C++.
inline TensorMap tensor_map(const void* address, u64 rows, u64 cols, u64 row_bytes, u32 box_rows, u32 box_cols = 64) {
    const EmulatedMap fields{EMULATED_MAP_MARK, (u64)(uintptr_t)address, rows, cols, row_bytes, box_rows, box_cols, {}};
    return same_bits<TensorMap>(fields);
}

void init_mbarrier(u64* barrier, u32 arrivals);
void show_mbarriers();
void arrive_mbarrier(u64* barrier);
void expect_mbarrier(u64* barrier, u32 bytes);
bool is_over(u64* barrier, u32 parity);
void wait_mbarrier(u64* barrier, u32 parity);
void begin_box_copy(void* shared, const TensorMap* map, u64* barrier, int column, int row);
void begin_plain_copy(void* shared, const void* global, u32 bytes, u64* barrier);
void set_registers(u32 registers, bool is_more);
void fence_wgmma();
// `a` is null where the left matrix is described.
void begin_wgmma(u32 columns, float* d, const u32* a, u64 a_description, u64 b_description, bool accumulate,
                 bool transposed);
void commit_wgmmas();
void wait_wgmmas(u32 groups_left);

template <int N>
inline void check_registers() {
    static_assert(N >= 24 && N <= 256 && N % 8 == 0, "setmaxnreg takes multiples of 8 from 24 to 256");
}

template <int N>
inline void check_columns() {
    static_assert(N == 8 || N == 16 || N == 32 || N == 40 || N == 64 || N == 80 || N == 128 || N == 256,
                  "hopper.cuh has no wgmma of this N");
}

}  // namespace emulated

inline void mbarrier_init(u64* barrier, u32 arrivals) { emulated::init_mbarrier(barrier, arrivals); }
inline void fence_mbarrier_init() { emulated::show_mbarriers(); }
inline void mbarrier_arrive(u64* barrier) { emulated::arrive_mbarrier(barrier); }
inline void mbarrier_expect(u64* barrier, u32 bytes) { emulated::expect_mbarrier(barrier, bytes); }
inline void mbarrier_wait(u64* barrier, u32 parity) { emulated::wait_mbarrier(barrier, parity); }

inline void tma_load(void* shared, const TensorMap* map, u64* barrier, int column, int row) {
    emulated::begin_box_copy(shared, map, barrier, column, row);
}
inline void tma_prefetch(const TensorMap*) {}
inline void bulk_load(void* shared, const void* global, u32 bytes, u64* barrier) {
    emulated::begin_plain_copy(shared, global, bytes, barrier);
}
inline void fence_proxy_async() { emulated::watch_proxy_fence(); }

template <int N>
inline void setmaxnreg_dec() {
    emulated::check_registers<N>();
    emulated::set_registers(N, false);
}

template <int N>
inline void setmaxnreg_inc() {
    emulated::check_registers<N>();
    emulated::set_registers(N, true);
}

inline void wgmma_fence() { emulated::fence_wgmma(); }
inline void wgmma_commit() { emulated::commit_wgmmas(); }

template <int PENDING>
inline void wgmma_wait() {
    emulated::wait_wgmmas(PENDING);
}

template <int COUNT>
inline void pin(float (&)[COUNT]) {}

template <int COUNT>
inline void pin(u32 (&)[COUNT]) {}

template <int N>
inline void wgmma(float (&d)[N / 2], u64 a, u64 b, bool accumulate = true) {
    emulated::check_columns<N>();
    emulated::begin_wgmma(N, d, nullptr, a, b, accumulate, false);
}

template <int N>
inline void wgmma(float (&d)[N / 2], const u32 (&a)[4], u64 b, bool accumulate = true) {
    emulated::check_columns<N>();
    emulated::begin_wgmma(N, d, a, 0, b, accumulate, false);
}

template <int N>
inline void wgmma_transposed(float (&d)[N / 2], u64 a, u64 b, bool accumulate = true) {
    emulated::check_columns<N>();
    emulated::begin_wgmma(N, d, nullptr, a, b, accumulate, true);
}

template <int N>
inline void wgmma_transposed(float (&d)[N / 2], const u32 (&a)[4], u64 b, bool accumulate = true) {
    emulated::check_columns<N>();
    emulated::begin_wgmma(N, d, a, 0, b, accumulate, true);
}
