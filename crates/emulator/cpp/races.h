// Finds what is read or written in shared memory without an order between the
// threads: with the crate's feature `races`, the compiler calls the emulator
// before each access (it takes it for a thread sanitizer). Otherwise nothing
// here does anything.
//
// Order is known by warps: a barrier, or an mbarrier between its arrivals and
// its waits, orders what whole warps do. Lanes of one warp are ordered by
// __syncwarp(), and by no shuffle or matrix instruction.
#pragma once

#include "language.h"

namespace emulated {

struct Block;
struct Waiting;
struct Watch;

// What a warp knows to have happened: how far each warp is.
struct Seen {
    u32 epochs[32];
};

// BULK_WRITE and WGMMA_READ go past the threads' own way to shared memory.
enum class Access { READ, WRITE, ATOMIC, BULK_WRITE, WGMMA_READ };

#ifdef CHORALE_RACES

constexpr bool FINDS_RACES = true;

// While it lives, what the current fiber does is not its thread's doing.
struct Unwatched {
    Unwatched();
    ~Unwatched();
};

// The current thread accesses memory; nothing happens unless it is shared.
void watch(const void* pointer, size_t bytes, Access access) __attribute__((noinline));
void watch_begin(Block& block);
// The threads that wait, and the current one, meet.
void watch_meeting(const Waiting& waiting);
void watch_sync_warp();
// The current warp gives what it has seen, or takes it.
void watch_release(Seen& into);
void watch_acquire(const Seen& from);
void watch_join(Seen& into, const Seen& from);
// The current thread's writes are for wgmma to see.
void watch_proxy_fence();

#else

constexpr bool FINDS_RACES = false;

struct Unwatched {
    Unwatched() {}
};

inline void watch(const void*, size_t, Access) {}
inline void watch_begin(Block&) {}
inline void watch_meeting(const Waiting&) {}
inline void watch_sync_warp() {}
inline void watch_release(Seen&) {}
inline void watch_acquire(const Seen&) {}
inline void watch_join(Seen&, const Seen&) {}
inline void watch_proxy_fence() {}

#endif

}  // namespace emulated
