// Remembers, for each byte of shared memory, who wrote it last and who has read
// it since, and refuses an access that nothing orders after these.
#include "races.h"

#ifdef CHORALE_RACES

#include "scheduler.h"

#include <dlfcn.h>

namespace emulated {

// Several lanes of a warp.
constexpr u16 MANY = 0xFFFF;

// An access by a warp: no other epoch of it begins before others can see it.
struct Mark {
    u32 epoch;
    // How often the warp's lanes had met.
    u32 meetings;
    // What its thread's count of fences was, plus 1; 0 for what is not the thread's
    // own way to memory.
    u32 fences;
    u16 thread;
};

struct Readers {
    Mark by_warp[MAX_WARPS];
};

// What is known of a byte. An epoch of 0 means that there was no such access.
struct Cell {
    u32 generation;
    Mark write;
    bool is_atomic;
    u8 read_warp;
    Mark read;
    // Where several warps have read: a place in the table of these, from 1.
    u32 readers;
};

// One for each block that may be under way on a host thread.
struct Watch {
    u32 generation = 0;
    Seen seen[MAX_WARPS];
    u32 meetings[MAX_WARPS];
    u32 fences[MAX_THREADS];
    std::vector<Readers> readers;
    std::vector<Cell> dynamic = std::vector<Cell>(DYNAMIC_SHARED_MAX);
    std::vector<Cell> statics = std::vector<Cell>(STATIC_SHARED_MAX);
};

Unwatched::Unwatched() {
    current->unwatched++;
}

Unwatched::~Unwatched() {
    current->unwatched--;
}

static Watch& watch_of(Block& block) {
    if (!block.watch) {
        block.watch = std::make_shared<Watch>();
    }
    return *block.watch;
}

static u32 warp_of_current() {
    return current->index.x / LANES;
}

void watch_begin(Block& block) {
    Watch& watch = watch_of(block);
    watch.generation++;
    watch.readers.clear();
    std::memset(watch.meetings, 0, sizeof(watch.meetings));
    std::memset(watch.fences, 0, sizeof(watch.fences));
    std::memset(watch.seen, 0, sizeof(watch.seen));
    for (u32 warp = 0; warp < MAX_WARPS; warp++) {
        watch.seen[warp].epochs[warp] = 1;
    }
}

void watch_join(Seen& into, const Seen& from) {
    for (u32 warp = 0; warp < MAX_WARPS; warp++) {
        into.epochs[warp] = std::max(into.epochs[warp], from.epochs[warp]);
    }
}

void watch_meeting(const Waiting& waiting) {
    Watch& watch = watch_of(*running);
    const auto meets = [&](u32 warp) { return waiting.lanes[warp] != 0 || warp == warp_of_current(); };
    Seen all{};
    for (u32 warp = 0; warp < running->warps_used; warp++) {
        if (meets(warp)) {
            watch_join(all, watch.seen[warp]);
        }
    }
    for (u32 warp = 0; warp < running->warps_used; warp++) {
        if (meets(warp)) {
            watch_join(watch.seen[warp], all);
            watch.seen[warp].epochs[warp]++;
            watch.meetings[warp]++;
        }
    }
}

void watch_sync_warp() {
    watch_of(*running).meetings[warp_of_current()]++;
}

void watch_release(Seen& into) {
    Seen& mine = watch_of(*running).seen[warp_of_current()];
    watch_join(into, mine);
    mine.epochs[warp_of_current()]++;
}

void watch_acquire(const Seen& from) {
    Watch& watch = watch_of(*running);
    watch_join(watch.seen[warp_of_current()], from);
    watch.meetings[warp_of_current()]++;
}

void watch_proxy_fence() {
    watch_of(*running).fences[current->index.x]++;
}

// True if something orders the mark before what the current thread does now.
static bool is_ordered(const Watch& watch, const Mark& mark, u32 marked_warp) {
    const u32 warp = warp_of_current();
    if (marked_warp != warp) {
        return mark.epoch <= watch.seen[warp].epochs[marked_warp];
    }
    return mark.thread == current->index.x || mark.meetings != watch.meetings[warp];
}

// Where in the program: for addr2line, which knows the line.
static void describe_place(const void* code, char* text, size_t room) {
    Dl_info info;
    if (dladdr(code, &info) && info.dli_fname) {
        const size_t offset = (size_t)((const u8*)code - (const u8*)info.dli_fbase);
        std::snprintf(text, room, "addr2line -ife %s 0x%zx", info.dli_fname, offset - 1);
    } else {
        std::snprintf(text, room, "%p", code);
    }
}

static __thread const void* accessing_code;

[[noreturn]] static void fail_race(const char* now, const u8* byte, const char* before, u16 thread) {
    char place[512];
    describe_place(accessing_code, place, sizeof(place));
    const bool is_dynamic = byte >= running->dynamic_begin && byte < running->dynamic.end();
    const char* where = is_dynamic ? "dynamic" : "static";
    const ptrdiff_t offset = byte - (is_dynamic ? running->dynamic_begin : running->statics.begin());
    char who[32];
    std::snprintf(who, sizeof(who), thread == MANY ? "threads of a warp have" : "thread %u has", thread);
    fail("race: it %s byte %td of %s shared memory, which %s %s, and nothing orders the two [%s]", now, offset, where,
         who, before, place);
}

// What the current thread does now. The second is true for a thread's own way.
static Mark mark_of_current(const Watch& watch, bool is_own) {
    const u32 warp = warp_of_current(), thread = current->index.x;
    return {watch.seen[warp].epochs[warp], watch.meetings[warp], is_own ? watch.fences[thread] + 1 : 0, (u16)thread};
}

// True if the mark's thread has let copies and wgmma follow it since.
static bool is_fenced(const Watch& watch, const Mark& mark) {
    return mark.fences == 0 || mark.thread == MANY || mark.fences != watch.fences[mark.thread] + 1;
}

static void add_reader(Watch& watch, Cell& cell, bool is_own) {
    const u32 warp = warp_of_current();
    Mark mark = mark_of_current(watch, is_own);
    Mark* known = nullptr;
    if (cell.readers) {
        known = &watch.readers[cell.readers - 1].by_warp[warp];
    } else if (cell.read.epoch == 0 || cell.read_warp == warp) {
        known = &cell.read;
        cell.read_warp = (u8)warp;
    } else {
        watch.readers.push_back(Readers{});
        watch.readers.back().by_warp[cell.read_warp] = cell.read;
        cell.readers = (u32)watch.readers.size();
        known = &watch.readers.back().by_warp[warp];
    }
    if (known->epoch && known->meetings == mark.meetings && known->thread != mark.thread) {
        mark.thread = MANY;
    }
    *known = mark;
}

static void check_fence(const Watch& watch, const Mark& mark, const char* now, const u8* byte, const char* before) {
    if (mark.epoch && !is_fenced(watch, mark)) {
        fail("%s byte %td of dynamic shared memory, which thread %u %s without fence_proxy_async()", now,
             byte - running->dynamic_begin, mark.thread, before);
    }
}

static void check_reader(const Watch& watch, const Mark& mark, u32 warp, const u8* byte, Access access) {
    if (mark.epoch && !is_ordered(watch, mark, warp)) {
        fail_race("writes", byte, "read", mark.thread);
    }
    if (access == Access::BULK_WRITE) {
        check_fence(watch, mark, "a bulk copy writes", byte, "read");
    }
}

static void check_readers(const Watch& watch, const Cell& cell, const u8* byte, Access access) {
    if (cell.readers) {
        for (u32 warp = 0; warp < MAX_WARPS; warp++) {
            check_reader(watch, watch.readers[cell.readers - 1].by_warp[warp], warp, byte, access);
        }
    } else {
        check_reader(watch, cell.read, cell.read_warp, byte, access);
    }
}

static void watch_byte(Watch& watch, Cell& cell, const u8* byte, Access access) {
    if (cell.generation != watch.generation) {
        cell = Cell{};
        cell.generation = watch.generation;
    }
    const bool reads = access == Access::READ || access == Access::WGMMA_READ;
    const bool both_atomic = access == Access::ATOMIC && cell.is_atomic;
    if (cell.write.epoch && !both_atomic && !is_ordered(watch, cell.write, cell.write.thread / LANES)) {
        fail_race(reads ? "reads" : "writes", byte, "written", cell.write.thread);
    }
    const bool is_own = access != Access::BULK_WRITE && access != Access::WGMMA_READ;
    if (!is_own) {
        check_fence(watch, cell.write, reads ? "wgmma reads" : "a bulk copy writes", byte, "wrote");
    }
    if (reads) {
        add_reader(watch, cell, is_own);
        return;
    }
    check_readers(watch, cell, byte, access);
    cell.write = mark_of_current(watch, is_own);
    cell.is_atomic = access == Access::ATOMIC;
    cell.read = Mark{};
    cell.readers = 0;
}

static void watch_from(const void* code, const void* pointer, size_t bytes, Access access) {
    accessing_code = code;
    const u8* begin = static_cast<const u8*>(pointer);
    Block& block = *running;
    std::vector<Cell>* cells = nullptr;
    size_t first = 0;
    if (begin >= block.dynamic.begin() && begin < block.dynamic.end()) {
        first = (size_t)(begin - block.dynamic.begin());
        cells = &block.watch->dynamic;
    } else if (begin >= block.statics.begin() && begin < block.statics.end()) {
        first = (size_t)(begin - block.statics.begin());
        cells = &block.watch->statics;
    } else {
        return;
    }
    for (size_t i = 0; i < bytes && first + i < cells->size(); i++) {
        watch_byte(*block.watch, (*cells)[first + i], begin + i, access);
    }
}

void watch(const void* pointer, size_t bytes, Access access) {
    watch_from(__builtin_return_address(0), pointer, bytes, access);
}

// A plain access of the kernel's code.
static void on_access(const void* pointer, size_t bytes, Access access, const void* code) {
    if (running && current && !current->unwatched) {
        watch_from(code, pointer, bytes, access);
    }
}

}  // namespace emulated

// What the compiler calls.
#define EMULATED_ACCESS(name, bytes, access)                                                                  \
    extern "C" void name(void* pointer) {                                                                     \
        emulated::on_access(pointer, bytes, emulated::Access::access, __builtin_return_address(0));           \
    }

#define EMULATED_ACCESSES(bytes)                            \
    EMULATED_ACCESS(__tsan_read##bytes, bytes, READ)        \
    EMULATED_ACCESS(__tsan_write##bytes, bytes, WRITE)

#define EMULATED_UNALIGNED(bytes)                                  \
    EMULATED_ACCESS(__tsan_unaligned_read##bytes, bytes, READ)     \
    EMULATED_ACCESS(__tsan_unaligned_write##bytes, bytes, WRITE)

EMULATED_ACCESSES(1)
EMULATED_ACCESSES(2)
EMULATED_ACCESSES(4)
EMULATED_ACCESSES(8)
EMULATED_ACCESSES(16)
EMULATED_UNALIGNED(2)
EMULATED_UNALIGNED(4)
EMULATED_UNALIGNED(8)
EMULATED_UNALIGNED(16)

extern "C" void __tsan_read_range(void* pointer, unsigned long bytes) {
    emulated::on_access(pointer, bytes, emulated::Access::READ, __builtin_return_address(0));
}

extern "C" void __tsan_write_range(void* pointer, unsigned long bytes) {
    emulated::on_access(pointer, bytes, emulated::Access::WRITE, __builtin_return_address(0));
}

extern "C" void __tsan_volatile_read4(void* pointer) {
    emulated::on_access(pointer, 4, emulated::Access::READ, __builtin_return_address(0));
}

extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}

#endif  // CHORALE_RACES
