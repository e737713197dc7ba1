// What the lanes of a warp do together.
#pragma once

#include "block.h"

namespace emulated {

// Every lane of the mask gets what lane `source(lane, its argument)` gave, or
// keeps its own where there is no such lane.
template <class Type, class Source>
inline Type shuffle(const char* operation, u32 mask, Type value, int argument, int width, Source source) {
    struct Lane {
        Type in, out;
        int argument, width;
    } mine{value, value, argument, width};
    together(operation, mask, &mine, [&](Lane** lanes) {
        for (int lane = 0; lane < (int)LANES; lane++) {
            if (!(mask >> lane & 1)) {
                continue;
            }
            Lane& here = *lanes[lane];
            const int first = lane & ~(here.width - 1);
            const int from = source(lane - first, here.argument, here.width);
            if (from < 0 || from >= here.width) {
                continue;
            }
            if (!(mask >> (first + from) & 1)) {
                fail("%s: lane %d reads lane %d, which is not in mask %08x", operation, lane, first + from, mask);
            }
            here.out = lanes[first + from]->in;
        }
    });
    return mine.out;
}

}  // namespace emulated

template <class Type>
inline Type __shfl_sync(u32 mask, Type value, int lane, int width = 32) {
    return emulated::shuffle("__shfl_sync", mask, value, lane, width,
                             [](int, int source, int width) { return source & (width - 1); });
}

template <class Type>
inline Type __shfl_xor_sync(u32 mask, Type value, int bits, int width = 32) {
    return emulated::shuffle("__shfl_xor_sync", mask, value, bits, width,
                             [](int lane, int bits, int) { return lane ^ bits; });
}

template <class Type>
inline Type __shfl_down_sync(u32 mask, Type value, u32 distance, int width = 32) {
    return emulated::shuffle("__shfl_down_sync", mask, value, (int)distance, width,
                             [](int lane, int distance, int) { return lane + distance; });
}

template <class Type>
inline Type __shfl_up_sync(u32 mask, Type value, u32 distance, int width = 32) {
    return emulated::shuffle("__shfl_up_sync", mask, value, (int)distance, width,
                             [](int lane, int distance, int) { return lane - distance; });
}

inline u32 __ballot_sync(u32 mask, int predicate) {
    struct Lane {
        bool in;
        u32 out;
    } mine{predicate != 0, 0};
    emulated::together("__ballot_sync", mask, &mine, [&](Lane** lanes) {
        u32 votes = 0;
        for (u32 lane = 0; lane < emulated::LANES; lane++) {
            if (mask >> lane & 1) {
                votes |= (u32)lanes[lane]->in << lane;
            }
        }
        for (u32 lane = 0; lane < emulated::LANES; lane++) {
            if (mask >> lane & 1) {
                lanes[lane]->out = votes;
            }
        }
    });
    return mine.out;
}

inline int __any_sync(u32 mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(u32 mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }

template <class Type>
inline u32 __match_any_sync(u32 mask, Type value) {
    struct Lane {
        Type in;
        u32 out;
    } mine{value, 0};
    emulated::together("__match_any_sync", mask, &mine, [&](Lane** lanes) {
        for (u32 lane = 0; lane < emulated::LANES; lane++) {
            for (u32 other = 0; other < emulated::LANES; other++) {
                if ((mask >> lane & 1) && (mask >> other & 1) && lanes[lane]->in == lanes[other]->in) {
                    lanes[lane]->out |= 1u << other;
                }
            }
        }
    });
    return mine.out;
}

namespace emulated {

template <class Type, class Join>
inline Type reduce(const char* operation, u32 mask, Type value, Join join) {
    Type mine = value;
    together(operation, mask, &mine, [&](Type** lanes) {
        const u32 first = (u32)__builtin_ctz(mask);
        Type joined = *lanes[first];
        for (u32 lane = first + 1; lane < LANES; lane++) {
            if (mask >> lane & 1) {
                joined = join(joined, *lanes[lane]);
            }
        }
        for (u32 lane = first; lane < LANES; lane++) {
            if (mask >> lane & 1) {
                *lanes[lane] = joined;
            }
        }
    });
    return mine;
}

}  // namespace emulated

template <class Type>
inline Type __reduce_add_sync(u32 mask, Type value) {
    static_assert(std::is_integral<Type>::value, "only integers");
    return emulated::reduce("__reduce_add_sync", mask, value, [](Type a, Type b) { return (Type)(a + b); });
}

template <class Type>
inline Type __reduce_max_sync(u32 mask, Type value) {
    static_assert(std::is_integral<Type>::value, "only integers");
    return emulated::reduce("__reduce_max_sync", mask, value, [](Type a, Type b) { return a < b ? b : a; });
}

template <class Type>
inline Type __reduce_min_sync(u32 mask, Type value) {
    static_assert(std::is_integral<Type>::value, "only integers");
    return emulated::reduce("__reduce_min_sync", mask, value, [](Type a, Type b) { return b < a ? b : a; });
}

inline void __syncwarp(u32 mask = 0xFFFFFFFFu) {
    int nothing = 0;
    emulated::together("__syncwarp", mask, &nothing, [](int**) { emulated::watch_sync_warp(); });
}
