// Memory between pages that nobody may touch, for a GPU's global memory and for
// what a block has of its own.
#include "launch.h"
#include "scheduler.h"

#include <map>
#include <mutex>
#include <sys/mman.h>

namespace emulated {

constexpr size_t PAGE_BYTES = 4096;
// Wide enough that a step of a row too far lands in it.
constexpr size_t GUARD_BYTES = 256 * 1024;
constexpr size_t ALIGNMENT = 256;

static size_t round_up(size_t bytes, size_t to) {
    return (bytes + to - 1) / to * to;
}

Guarded::Guarded(size_t bytes) : begin_(nullptr), bytes_(round_up(bytes, PAGE_BYTES)) {
    void* mapping =
        mmap(nullptr, bytes_ + 2 * GUARD_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) {
        return;
    }
    u8* begin = static_cast<u8*>(mapping) + GUARD_BYTES;
    if (mprotect(begin, bytes_, PROT_READ | PROT_WRITE) == 0) {
        begin_ = begin;
    } else {
        munmap(mapping, bytes_ + 2 * GUARD_BYTES);
    }
}

Guarded::~Guarded() {
    if (begin_) {
        munmap(begin_ - GUARD_BYTES, bytes_ + 2 * GUARD_BYTES);
    }
}

bool Guarded::guards(const void* address) const {
    const u8* byte = static_cast<const u8*>(address);
    return (byte >= begin_ - GUARD_BYTES && byte < begin_) || (byte >= end() && byte < end() + GUARD_BYTES);
}

// Global memory that is in use, by where it begins.
struct Allocation {
    size_t bytes;
    std::unique_ptr<Guarded> memory;
};

// Never destroyed: threads that outlive main may still give memory back.
static std::mutex& lock() {
    static std::mutex& mutex = *new std::mutex;
    return mutex;
}

static std::map<u64, Allocation>& allocations() {
    static std::map<u64, Allocation>& all = *new std::map<u64, Allocation>;
    return all;
}

extern "C" void* emulator_alloc(size_t bytes) {
    std::unique_ptr<Guarded> memory(new Guarded(round_up(bytes, ALIGNMENT)));
    if (!memory->begin()) {
        return nullptr;
    }
    std::memset(memory->begin(), 0xFF, memory->bytes());
    u8* begin = memory->end() - round_up(bytes, ALIGNMENT);
    const std::lock_guard<std::mutex> guard(lock());
    allocations().emplace((u64)(uintptr_t)begin, Allocation{bytes, std::move(memory)});
    return begin;
}

extern "C" void emulator_free(void* memory) {
    const std::lock_guard<std::mutex> guard(lock());
    allocations().erase((u64)(uintptr_t)memory);
}

void check_global_ends() {
    const std::lock_guard<std::mutex> guard(lock());
    for (const auto& entry : allocations()) {
        const Allocation& allocation = entry.second;
        const u8* end = reinterpret_cast<const u8*>(entry.first) + allocation.bytes;
        for (const u8* byte = end; byte < allocation.memory->end(); byte++) {
            if (*byte != 0xFF) {
                fail("some block has written %td bytes past the end of a global allocation of %zu", byte - end,
                     allocation.bytes);
            }
        }
    }
}

void describe_global(const void* address, char* text, size_t room) {
    const std::unique_lock<std::mutex> guard(lock(), std::try_to_lock);
    const u64 at = (u64)(uintptr_t)address;
    if (guard.owns_lock()) {
        for (const auto& entry : allocations()) {
            const u64 begin = entry.first, end = begin + entry.second.bytes;
            if (at >= end && at < end + ALIGNMENT + GUARD_BYTES) {
                std::snprintf(text, room, "%llu bytes past the end of a global allocation of %zu", at - end,
                              entry.second.bytes);
                return;
            }
            if (at < begin && at + GUARD_BYTES + PAGE_BYTES >= begin) {
                std::snprintf(text, room, "%llu bytes before a global allocation of %zu", begin - at,
                              entry.second.bytes);
                return;
            }
        }
    }
    std::snprintf(text, room, "which is no memory of the GPU");
}

}  // namespace emulated
