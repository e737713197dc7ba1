// Copies to shared memory, and the matrix instructions of a warp.
#pragma once

#include "warp.h"

inline u32 shared_address(const void* pointer) {
    return (u32)((const unsigned char*)pointer - emulated::dynamic_shared());
}

inline void cp_async16(void* shared, const void* global, bool valid) {
    emulated::begin_copy(shared, global, 16, valid);
}

inline void cp_async4(void* shared, const void* global, bool valid) {
    emulated::begin_copy(shared, global, 4, valid);
}

inline void cp_async_commit() { emulated::commit_copies(); }

template <int N>
inline void cp_async_wait() {
    emulated::wait_copies(N);
}

inline uint4 load_streaming16(const void* global) {
    if ((uintptr_t)global % 16) {
        emulated::fail("load_streaming16: %p is no multiple of 16", global);
    }
    return *static_cast<const uint4*>(global);
}

template <class Type>
inline Type load_early(const Type* global) {
    if ((uintptr_t)global % sizeof(Type)) {
        emulated::fail("load_early: %p is no multiple of %zu", (const void*)global, sizeof(Type));
    }
    return *global;
}

inline void prefetch_l2(const void*) {}
inline void prefetch_l2_to_stay(const void*) {}

inline void pdl_wait() { emulated::wait_for_earlier_kernels(); }
inline void pdl_trigger() { emulated::let_next_begin(); }

inline void named_barrier(u32 number, u32 threads) { emulated::sync_named(number, threads); }

namespace emulated {

template <int COUNT, bool TRANSPOSED>
inline void load_matrices(const char* operation, u32 (&fragment)[COUNT], const void* shared) {
    struct Lane {
        const u16* row;
        u32* fragment;
    } mine{static_cast<const u16*>(shared), fragment};
    if (current->lane < 8 * COUNT) {
        check_shared(operation, shared, 16, 16);
        watch(shared, 16, Access::READ);
    }
    together(operation, 0xFFFFFFFFu, &mine, [](Lane** lanes) {
        for (int matrix = 0; matrix < COUNT; matrix++) {
            Lane** rows = lanes + 8 * matrix;
            for (u32 lane = 0; lane < LANES; lane++) {
                const u32 row = lane / 4, column = lane % 4 * 2;
                u16 low, high;
                if (TRANSPOSED) {
                    low = rows[column]->row[row];
                    high = rows[column + 1]->row[row];
                } else {
                    low = rows[row]->row[column];
                    high = rows[row]->row[column + 1];
                }
                lanes[lane]->fragment[matrix] = low | ((u32)high << 16);
            }
        }
    });
}

typedef float Floats8 __attribute__((vector_size(32)));

// Writes the two bf16 of a word to columns next to each other.
inline void put_pair(float* to, u32 packed) {
    to[0] = __uint_as_float(packed << 16);
    to[1] = __uint_as_float(packed & 0xFFFF0000u);
}

}  // namespace emulated

inline void ldmatrix_x4(u32 (&fragment)[4], const void* shared) {
    emulated::load_matrices<4, false>("ldmatrix_x4", fragment, shared);
}

inline void ldmatrix_x4_trans(u32 (&fragment)[4], const void* shared) {
    emulated::load_matrices<4, true>("ldmatrix_x4_trans", fragment, shared);
}

inline void ldmatrix_x2(u32 (&fragment)[2], const void* shared) {
    emulated::load_matrices<2, false>("ldmatrix_x2", fragment, shared);
}

inline void ldmatrix_x2_trans(u32 (&fragment)[2], const void* shared) {
    emulated::load_matrices<2, true>("ldmatrix_x2_trans", fragment, shared);
}

inline void mma_bf16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    using emulated::Floats8;
    struct Lane {
        float* c;
        const u32* a;
        u32 b0, b1;
    } mine{c, a, b0, b1};
    emulated::together("mma_bf16", 0xFFFFFFFFu, &mine, [](Lane** lanes) {
        float left[16][16];
        Floats8 right[16], sums[16];
        for (u32 lane = 0; lane < emulated::LANES; lane++) {
            const Lane& from = *lanes[lane];
            const u32 group = lane / 4, pair = lane % 4 * 2;
            emulated::put_pair(&left[group][pair], from.a[0]);
            emulated::put_pair(&left[group + 8][pair], from.a[1]);
            emulated::put_pair(&left[group][pair + 8], from.a[2]);
            emulated::put_pair(&left[group + 8][pair + 8], from.a[3]);
            const float2 upper = unpack_bf16(from.b0), lower = unpack_bf16(from.b1);
            right[pair][group] = upper.x;
            right[pair + 1][group] = upper.y;
            right[pair + 8][group] = lower.x;
            right[pair + 9][group] = lower.y;
            std::memcpy((float*)&sums[group] + pair, from.c, 8);
            std::memcpy((float*)&sums[group + 8] + pair, from.c + 2, 8);
        }
        for (int row = 0; row < 16; row++) {
            Floats8 sum = sums[row];
            for (int k = 0; k < 16; k++) {
                sum += left[row][k] * right[k];
            }
            sums[row] = sum;
        }
        for (u32 lane = 0; lane < emulated::LANES; lane++) {
            const u32 group = lane / 4, pair = lane % 4 * 2;
            std::memcpy(lanes[lane]->c, (float*)&sums[group] + pair, 8);
            std::memcpy(lanes[lane]->c + 2, (float*)&sums[group + 8] + pair, 8);
        }
    });
}

inline void mma_bf16_from_zero(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    std::fill(c, c + 4, 0.0f);
    mma_bf16(c, a, b0, b1);
}
