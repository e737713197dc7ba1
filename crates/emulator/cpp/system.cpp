// Words between GPUs, of which each is a thread of the host: see system.h.
#include "system.h"

#include <ctime>
#include <sched.h>

namespace emulated {

struct Word {
    u64* to;
    u64 value;
    const Fiber* from;
};

// Words on their way, of this thread's GPU.
static thread_local std::vector<Word> on_their_way;
constexpr size_t ON_THEIR_WAY_MAX = 256;

static void deliver(size_t which) {
    const Word word = on_their_way[which];
    on_their_way[which] = on_their_way.back();
    on_their_way.pop_back();
    __atomic_store_n(word.to, word.value, __ATOMIC_RELAXED);
}

// A word that goes where another one still goes to comes behind it.
static void send(u64* to, u64 value) {
    for (size_t i = on_their_way.size(); i-- > 0;) {
        if (on_their_way[i].to == to) {
            deliver(i);
        }
    }
    on_their_way.push_back({to, value, current});
}

void deliver_all() {
    while (!on_their_way.empty()) {
        deliver(on_their_way.size() - 1);
    }
}

static void check(const char* what, const void* global, size_t alignment) {
    if ((uintptr_t)global % alignment) {
        fail("%s: %p is no multiple of %zu", what, global, alignment);
    }
}

}  // namespace emulated

using namespace emulated;

void store_system16(void* global, uint4 value) {
    check("store_system16", global, 16);
    u64* words = static_cast<u64*>(global);
    send(words, (u64)value.y << 32 | value.x);
    send(words + 1, (u64)value.w << 32 | value.z);
    // Some at once, in any order.
    for (u32 i = random_word() % 4; i > 0 && !on_their_way.empty(); i--) {
        deliver(random_word() % on_their_way.size());
    }
    while (on_their_way.size() > ON_THEIR_WAY_MAX) {
        deliver(random_word() % on_their_way.size());
    }
}

uint4 load_system16(const void* global) {
    check("load_system16", global, 16);
    const u64* words = static_cast<const u64*>(global);
    const u64 low = __atomic_load_n(words, __ATOMIC_RELAXED);
    if (random_word() % 16 == 0) {
        // The other word may be of a later time.
        sched_yield();
    }
    const u64 high = __atomic_load_n(words + 1, __ATOMIC_RELAXED);
    return make_uint4((u32)low, (u32)(low >> 32), (u32)high, (u32)(high >> 32));
}

void store_release_system(u32* global, u32 value) {
    check("store_release_system", global, 4);
    // What other threads of the launch wrote may be on its way still.
    for (size_t i = on_their_way.size(); i-- > 0;) {
        if (on_their_way[i].from == current) {
            deliver(i);
        }
    }
    __atomic_store_n(global, value, __ATOMIC_RELEASE);
}

u32 load_acquire_system(const u32* global) {
    check("load_acquire_system", global, 4);
    return __atomic_load_n(global, __ATOMIC_ACQUIRE);
}

u32 load_relaxed_system(const u32* global) {
    check("load_relaxed_system", global, 4);
    return __atomic_load_n(global, __ATOMIC_RELAXED);
}

void store_relaxed_system(u32* global, u32 value) {
    check("store_relaxed_system", global, 4);
    __atomic_store_n(global, value, __ATOMIC_RELAXED);
}

u64 nanoseconds() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (u64)now.tv_sec * 1000000000ull + (u64)now.tv_nsec;
}

void look_again() {
    if (!on_their_way.empty()) {
        deliver(random_word() % on_their_way.size());
    }
    sched_yield();
}
