// A block of GPU threads on one host thread. Every GPU thread is a fiber; it
// runs until it must wait for others, and then another one does.
#pragma once

#include "language.h"
#include "races.h"

namespace emulated {

constexpr u32 LANES = 32;
constexpr u32 MAX_WARPS = 32;
constexpr u32 NAMED_BARRIERS = 16;

struct Index {
    u32 x, y, z;
};

struct Block;
struct Fiber;

// 4 or 16 bytes that a thread asked to be copied; from nowhere means zeros.
struct AsyncCopy {
    void* to;
    const void* from;
    u32 bytes;
};

struct Warp {
    u32 number;
    // The fiber of its first lane; the others follow.
    Fiber* fibers;
    u32 alive;    // lanes that have not ended
    u32 ready;    // lanes that wait for nothing
    u32 arrived;  // lanes that wait for other lanes in an operation of the warp
    // Of the lanes that have arrived: the operation, its mask, what they bring.
    const char* operation[LANES];
    u32 mask[LANES];
    void* brought[LANES];
    // The line of the __syncthreads() at which lanes of this warp wait.
    u32 barrier_line;
};

struct Fiber {
    void* stack_pointer;
    u8* stack;
    Index index;
    u32 lane;
    Warp* warp;
    const char* waits_for;
    bool pdl_waited;
    // Above 0 while it does what is not its thread's doing: races.h.
    u32 unwatched;
    std::vector<AsyncCopy> copies;
    // Where groups of copies end, the oldest first.
    std::vector<u32> copy_groups;
};

// Threads of the block that wait for one thing: lanes of each warp.
struct Waiting {
    u32 count;
    u32 lanes[MAX_WARPS];
};

// A registered kernel; registrations form a list.
struct Kernel {
    const char* name;
    void (*entry)(const void* args);
    size_t args_bytes;
    u32 threads;
    bool needs_hopper;
    const Kernel* next;

    Kernel(const char* name, void (*entry)(const void* args), size_t args_bytes, u32 threads, bool needs_hopper);
};

// The fiber that runs on this host thread, and its block.
extern __thread Fiber* current;
extern __thread Index current_block;
extern __thread Index current_block_threads;
extern __thread Index current_grid;

// Says what is wrong with the running kernel, and where, and ends the process.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Lets other fibers run until this one is ready.
void park();
// Lets another warp run now and then.
void take_turns();
// A number that the launch's seed determines.
u32 random_word();

void sync_threads(u32 line);
void sync_named(u32 number, u32 threads);
void wait_for_earlier_kernels();
void let_next_begin();
unsigned char* dynamic_shared();
// Memory of the block's that is the same for every thread that gives this key.
void* static_shared(const void* key, size_t bytes, size_t alignment);
void check_shared(const char* what, const void* pointer, size_t bytes, size_t alignment);
void begin_copy(void* shared, const void* global, u32 bytes, bool valid);
void commit_copies();
void wait_copies(u32 groups_left);

// True in the last lane of `mask` that arrives, at once; it then does the work of
// all and calls `leave`. The others come back when it has.
inline bool arrive(const char* operation, u32 mask, void* mine) {
    Warp& warp = *current->warp;
    const u32 lane = current->lane;
    const u32 bit = 1u << lane;
    if (!(mask & bit)) {
        fail("%s: the lane is not in its own mask %08x", operation, mask);
    }
    if (mask & ~warp.alive) {
        fail("%s: mask %08x has lanes that have ended (alive: %08x)", operation, mask, warp.alive);
    }
    const u32 others = warp.arrived & mask;
    if (others) {
        const u32 other = (u32)__builtin_ctz(others);
        const char* theirs = warp.operation[other];
        if (warp.mask[other] != mask || (theirs != operation && std::strcmp(theirs, operation) != 0)) {
            fail("lane %u is at %s with mask %08x, lane %u at %s with mask %08x", lane, operation, mask, other, theirs,
                 warp.mask[other]);
        }
    }
    warp.operation[lane] = operation;
    warp.mask[lane] = mask;
    warp.brought[lane] = mine;
    warp.arrived |= bit;
    if ((warp.arrived & mask) == mask) {
        return true;
    }
    current->waits_for = operation;
    warp.ready &= ~bit;
    park();
    return false;
}

inline void leave(u32 mask) {
    Warp& warp = *current->warp;
    warp.arrived &= ~mask;
    warp.ready |= mask;
    take_turns();
}

// Runs `work(lanes)` once all lanes of `mask` are here. `lanes[i]` is what lane i
// brought; lanes outside of the mask have nothing valid there.
template <class Lane, class Work>
inline void together(const char* operation, u32 mask, Lane* mine, Work work) {
    if (arrive(operation, mask, mine)) {
        {
            const Unwatched unwatched;
            work(reinterpret_cast<Lane**>(current->warp->brought));
        }
        leave(mask);
    }
}

}  // namespace emulated

#define threadIdx (emulated::current->index)
#define blockIdx (emulated::current_block)
#define blockDim (emulated::current_block_threads)
#define gridDim (emulated::current_grid)
#define __syncthreads() emulated::sync_threads(__LINE__)
#define __trap() emulated::fail("__trap()")

// Redefined by emulated_hopper.h, for the kernels below it.
#define EMULATED_NEEDS_HOPPER false
#define EMULATED_FIRST(first, ...) first
#define KERNEL(name, Args, ...)                                                              \
    static void name(const Args& args);                                                      \
    static void name##_entry(const void* args) { name(*static_cast<const Args*>(args)); }    \
    static const emulated::Kernel name##_registration(#name, name##_entry, sizeof(Args),     \
                                                      EMULATED_FIRST(__VA_ARGS__, 0),        \
                                                      EMULATED_NEEDS_HOPPER);                \
    static void name([[maybe_unused]] const Args& args)

#define DYN_SHARED(name) unsigned char* const name = emulated::dynamic_shared()

#define SHARED(name, ...)                                                                        \
    static const char name##_key = 0;                                                            \
    auto& name = *static_cast<SharedType<__VA_ARGS__>*>(                                         \
        emulated::static_shared(&name##_key, sizeof(SharedType<__VA_ARGS__>), 16))
template <class Type>
using SharedType = Type;
