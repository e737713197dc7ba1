// What a block remembers of barriers in shared memory, bulk copies and wgmma.
#pragma once

#include "scheduler.h"

#include <deque>

namespace emulated {

constexpr u32 WARPGROUP = 128;

// What lies in the 8 bytes of a barrier. Its transactions may be below 0 while
// bytes arrive that have yet to be announced.
struct Mbarrier {
    u64 arrivals : 12;
    u64 pending : 12;
    u64 parity : 1;
    long long transactions : 24;
    u64 mark : 15;
};
static_assert(sizeof(Mbarrier) == sizeof(u64), "a barrier is a word");

// A copy that has yet to happen. Without a map it is plain.
struct BulkCopy {
    u8* to;
    const u8* from;
    const u64* map;
    int column, row;
    u32 bytes;
    Mbarrier* barrier;
    // What its thread had seen.
    Seen seen;
};

// Accumulators of wgmmas that have yet to happen: what they hold is here, and
// what a thread would read of them is NaN.
struct Accumulators {
    float* registers;
    u32 count;
    u32 users;
    float values[128];
};

// One thread's part of a wgmma, until the thread has waited for it.
struct PendingWgmma {
    // How many groups the thread had ended before.
    u64 group;
    u32 columns;
    float* d;
    // The left matrix: in registers, or else described.
    const u32* a;
    u64 a_description;
    u64 b_description;
    bool accumulate;
    bool transposed;
};

struct ThreadHopper {
    bool fenced;
    u32 registers;
    u64 wgmmas;
    // Groups that the thread has ended.
    u64 groups;
    std::vector<PendingWgmma> pending;
    std::vector<Accumulators> accumulators;
};

// What does not fit into a barrier's 8 bytes.
struct MbarrierState {
    Mbarrier* barrier;
    // Threads that wait for its phase to end.
    Waiting waiting;
    // What those that arrived had seen.
    Seen seen;
};

struct BlockHopper {
    bool used = false;
    std::vector<BulkCopy> copies;
    std::deque<MbarrierState> barriers;
    // Barriers that their maker has not shown to others yet.
    std::vector<const Mbarrier*> hidden;
    std::vector<ThreadHopper> threads;
    // Warps that wait for the others of their warpgroup.
    Waiting for_warpgroup;
};

// Of the running block, made when it first needs one; and of the current thread.
BlockHopper& hopper();
ThreadHopper& thread_hopper();

// Where what would be at this offset of dynamic shared memory is, when rows of
// 128 bytes are swizzled.
inline u32 swizzle_128(u32 offset) {
    return offset ^ (((offset >> 7) & 7) << 4);
}

}  // namespace emulated
