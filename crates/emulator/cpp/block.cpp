// The fibers of a block: how they are made, chosen and switched.
#include "scheduler.h"

#include "hopper_state.h"

#include <cstdarg>

namespace emulated {

__thread Fiber* current;
__thread Index current_block;
__thread Index current_block_threads;
__thread Index current_grid;
__thread Block* running;

// Saves what a call must preserve on this stack, and goes on where `to` was saved.
extern "C" void emulator_switch(void** save, void* to);
__asm__(
    ".text\n"
    ".globl emulator_switch\n"
    ".type emulator_switch, @function\n"
    "emulator_switch:\n"
    "    push %rbp\n"
    "    push %rbx\n"
    "    push %r12\n"
    "    push %r13\n"
    "    push %r14\n"
    "    push %r15\n"
    "    mov %rsp, (%rdi)\n"
    "    mov %rsi, %rsp\n"
    "    pop %r15\n"
    "    pop %r14\n"
    "    pop %r13\n"
    "    pop %r12\n"
    "    pop %rbx\n"
    "    pop %rbp\n"
    "    ret\n"
    ".size emulator_switch, .-emulator_switch\n");

void fail(const char* format, ...) {
    char what[512];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(what, sizeof(what), format, arguments);
    va_end(arguments);
    if (running && running->grid) {
        const Index block = running->index;
        std::fprintf(stderr, "emulator: kernel %s, block (%u, %u, %u)", running->grid->kernel->name, block.x, block.y,
                     block.z);
        if (current) {
            std::fprintf(stderr, ", thread %u", current->index.x);
        }
        std::fprintf(stderr, ": %s\n", what);
    } else {
        std::fprintf(stderr, "emulator: %s\n", what);
    }
    std::fflush(stderr);
    std::abort();
}

u32 random_word() {
    u64& state = running->random;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (u32)(state >> 32);
}

// --- Choosing ----------------------------------------------------------------

// Lanes take turns from a different one in every block. One of them is ready.
static Fiber* ready_lane(const Warp& warp, u32 turn) {
    const u32 rotated = (warp.ready >> turn) | (warp.ready << ((LANES - turn) % LANES));
    return warp.fibers + ((u32)__builtin_ctz(rotated) + turn) % LANES;
}

static Fiber* ready_in_random_warp(Block& block) {
    const u32 start = random_word() % block.warps_used;
    for (u32 i = 0; i < block.warps_used; i++) {
        const Warp& warp = block.warps[(start + i) % block.warps_used];
        if (warp.ready) {
            return ready_lane(warp, block.first_lane);
        }
    }
    return nullptr;
}

static void switch_to(Fiber* next) {
    if (next == current) {
        return;
    }
    Fiber* before = current;
    current = next;
    emulator_switch(&before->stack_pointer, next->stack_pointer);
}

[[noreturn]] static void fail_stuck(Block& block) {
    std::fprintf(stderr, "emulator: no thread can go on:\n");
    const char* waits_for = nullptr;
    u32 first = 0;
    const u32 threads = (u32)block.fibers.size();
    for (u32 i = 0; i <= threads; i++) {
        const bool ended = i < threads && !(block.fibers[i].warp->alive >> block.fibers[i].lane & 1);
        const char* now = i == threads ? nullptr : ended ? "nothing, it has ended" : block.fibers[i].waits_for;
        if (i == 0 || now != waits_for) {
            if (i > 0) {
                std::fprintf(stderr, "  threads %u to %u wait for %s\n", first, i - 1, waits_for);
            }
            waits_for = now;
            first = i;
        }
    }
    fail("deadlock");
}

// The fiber to run when the current one cannot; null if the block is done or
// must wait for the gate.
static Fiber* choose(Block& block, const Warp& warp) {
    if (warp.ready) {
        return ready_lane(warp, block.first_lane);
    }
    for (;;) {
        if (Fiber* next = ready_in_random_warp(block)) {
            return next;
        }
        if (!finish_bulk_copy()) {
            break;
        }
    }
    if (block.alive == 0 || (block.gate_closed && block.at_gate.count > 0)) {
        return nullptr;
    }
    fail_stuck(block);
}

static void leave_block(Block& block) {
    Fiber* before = current;
    current = nullptr;
    emulator_switch(&before->stack_pointer, block.host_stack_pointer);
}

void park() {
    Block& block = *running;
    if (Fiber* next = choose(block, *current->warp)) {
        switch_to(next);
    } else {
        leave_block(block);
    }
}

void take_turns() {
    Block& block = *running;
    if (block.turns_in_16 && random_word() % 16 < block.turns_in_16) {
        switch_to(ready_in_random_warp(block));
    }
}

// --- Waiting -----------------------------------------------------------------

void wait_in(Waiting& waiting, const char* for_what) {
    Warp& warp = *current->warp;
    const u32 bit = 1u << current->lane;
    waiting.count++;
    waiting.lanes[warp.number] |= bit;
    warp.ready &= ~bit;
    current->waits_for = for_what;
    park();
}

void wake(Waiting& waiting) {
    for (u32 warp = 0; warp < running->warps_used; warp++) {
        running->warps[warp].ready |= waiting.lanes[warp];
        waiting.lanes[warp] = 0;
    }
    waiting.count = 0;
}

void sync_threads(u32 line) {
    Block& block = *running;
    Warp& warp = *current->warp;
    Waiting& barrier = block.all_threads;
    if (barrier.lanes[warp.number] == 0) {
        warp.barrier_line = line;
    } else if (warp.barrier_line != line) {
        fail("divergent barrier: lanes of a warp are at the __syncthreads() of line %u and of line %u",
             warp.barrier_line, line);
    }
    if (barrier.count + 1 == block.alive) {
        watch_meeting(barrier);
        wake(barrier);
        take_turns();
    } else {
        wait_in(barrier, "__syncthreads()");
    }
}

void sync_named(u32 number, u32 threads) {
    Block& block = *running;
    if (number == 0 || number >= NAMED_BARRIERS || threads == 0 || threads % LANES) {
        fail("named_barrier(%u, %u): the number is 1 to 15, threads are warps", number, threads);
    }
    Waiting& barrier = block.named[number];
    if (barrier.count == 0) {
        block.named_threads[number] = threads;
    } else if (block.named_threads[number] != threads) {
        fail("named_barrier(%u, %u): others wait there for %u threads", number, threads, block.named_threads[number]);
    }
    if (barrier.count + 1 == threads) {
        watch_meeting(barrier);
        wake(barrier);
        take_turns();
    } else {
        wait_in(barrier, "named_barrier");
    }
}

void wait_for_earlier_kernels() {
    Block& block = *running;
    current->pdl_waited = true;
    if (block.gate_closed) {
        wait_in(block.at_gate, "pdl_wait()");
    }
}

void let_next_begin() {
    if (!current->pdl_waited) {
        running->triggers_early = true;
    }
}

// --- Copies to shared memory -------------------------------------------------

static void finish_copy(const AsyncCopy& copy) {
    if (copy.from) {
        std::memcpy(copy.to, copy.from, copy.bytes);
    } else {
        std::memset(copy.to, 0, copy.bytes);
    }
}

void begin_copy(void* shared, const void* global, u32 bytes, bool valid) {
    check_shared("cp_async", shared, bytes, bytes);
    watch(shared, bytes, Access::WRITE);
    if ((uintptr_t)global % bytes) {
        fail("cp_async: %p in global memory is no multiple of %u", global, bytes);
    }
    const AsyncCopy copy{shared, valid ? global : nullptr, bytes};
    if (running->eager_copies) {
        finish_copy(copy);
    } else {
        current->copies.push_back(copy);
    }
}

void commit_copies() {
    current->copy_groups.push_back((u32)current->copies.size());
}

void wait_copies(u32 groups_left) {
    Fiber& me = *current;
    if (me.copy_groups.size() <= groups_left) {
        return;
    }
    const size_t groups = me.copy_groups.size() - groups_left;
    const u32 copies = me.copy_groups[groups - 1];
    for (u32 i = 0; i < copies; i++) {
        watch(me.copies[i].to, me.copies[i].bytes, Access::WRITE);
        finish_copy(me.copies[i]);
    }
    me.copies.erase(me.copies.begin(), me.copies.begin() + copies);
    me.copy_groups.erase(me.copy_groups.begin(), me.copy_groups.begin() + (long)groups);
    for (u32& end : me.copy_groups) {
        end -= copies;
    }
}

// --- Shared memory -----------------------------------------------------------

unsigned char* dynamic_shared() {
    return running->dynamic_begin;
}

void* static_shared(const void* key, size_t bytes, size_t alignment) {
    Block& block = *running;
    for (const StaticShared& known : block.static_shared) {
        if (known.key == key) {
            return block.statics.begin() + known.offset;
        }
    }
    const size_t offset = (block.static_bytes + alignment - 1) / alignment * alignment;
    const size_t end = offset + bytes;
    // The dynamic part begins behind it at a multiple of 1024.
    const size_t taken = block.grid->shared_bytes > 0 ? (end + 1023) / 1024 * 1024 : end;
    if (end > STATIC_SHARED_MAX || taken + block.grid->shared_bytes > block.grid->shared_bytes_max) {
        fail("%zu bytes of static and %u of dynamic shared memory are too much", taken, block.grid->shared_bytes);
    }
    block.static_shared.push_back({key, (u32)offset});
    block.static_bytes = (u32)end;
    return block.statics.begin() + offset;
}

void check_shared(const char* what, const void* pointer, size_t bytes, size_t alignment) {
    const Block& block = *running;
    const u8* begin = static_cast<const u8*>(pointer);
    if ((uintptr_t)begin % alignment) {
        fail("%s: shared address %p is no multiple of %zu", what, pointer, alignment);
    }
    const u8* dynamic = block.dynamic_begin;
    const u8* statics = block.statics.begin();
    const bool in_dynamic = begin >= dynamic && begin + bytes <= dynamic + block.grid->shared_bytes;
    const bool in_statics = begin >= statics && begin + bytes <= statics + block.static_bytes;
    if (!in_dynamic && !in_statics) {
        fail("%s: %p is not in the block's shared memory (%td bytes after its %u dynamic bytes begin)", what, pointer,
             begin - dynamic, block.grid->shared_bytes);
    }
}

// --- The life of a block -----------------------------------------------------

static void end_thread() {
    Block& block = *running;
    Fiber& me = *current;
    if (!me.pdl_waited) {
        fail("the thread ended without pdl_wait()");
    }
    check_hopper_thread();
    Warp& warp = *me.warp;
    const u32 bit = 1u << me.lane;
    for (u32 lanes = warp.arrived; lanes; lanes &= lanes - 1) {
        const u32 lane = (u32)__builtin_ctz(lanes);
        if (warp.mask[lane] & bit) {
            fail("the thread ended, and lane %u waits for it at %s", lane, warp.operation[lane]);
        }
    }
    warp.alive &= ~bit;
    warp.ready &= ~bit;
    block.alive--;
    if (block.alive > 0 && block.all_threads.count == block.alive) {
        watch_meeting(block.all_threads);
        wake(block.all_threads);
    }
    if (Fiber* next = choose(block, warp)) {
        switch_to(next);
    } else {
        leave_block(block);
    }
    __builtin_unreachable();
}

static void fiber_main() {
    running->grid->kernel->entry(running->grid->args);
    end_thread();
}

Block::Block() : hopper(new BlockHopper()) {
    if (!dynamic.begin() || !statics.begin()) {
        fail("the host has no room for shared memory");
    }
}

Block::~Block() {
    for (Guarded* stack : stacks) {
        delete stack;
    }
}

// Where a fiber's first switch finds what it pops: six registers, then where to go.
static void* first_frame(u8* stack_end) {
    u64* top = reinterpret_cast<u64*>(stack_end);
    *--top = 0;
    *--top = reinterpret_cast<u64>(&fiber_main);
    for (int i = 0; i < 6; i++) {
        *--top = 0;
    }
    return top;
}

void Block::begin(const Grid& of, Index at, u64 seed, bool closed) {
    grid = &of;
    index = at;
    random = seed * 0x9E3779B97F4A7C15ull + 1;
    running = this;
    random_word();
    eager_copies = random_word() % 4 == 0;
    turns_in_16 = random_word() % 2 ? 0 : random_word() % 8;
    first_lane = random_word() % LANES;

    const u32 threads = of.kernel->threads;
    alive = threads;
    warps_used = threads / LANES;
    fibers.resize(threads);
    while (stacks.size() < threads) {
        stacks.push_back(new Guarded(STACK_BYTES));
        if (!stacks.back()->begin()) {
            fail("the host has no room for %u stacks", threads);
        }
    }
    for (u32 i = 0; i < warps_used; i++) {
        warps[i].number = i;
        warps[i].fibers = &fibers[i * LANES];
        warps[i].alive = warps[i].ready = 0xFFFFFFFFu;
        warps[i].arrived = 0;
    }
    for (u32 i = 0; i < threads; i++) {
        Fiber& fiber = fibers[i];
        fiber.index = {i, 0, 0};
        fiber.lane = i % LANES;
        fiber.warp = &warps[i / LANES];
        fiber.waits_for = "its turn";
        fiber.pdl_waited = false;
        fiber.unwatched = 0;
        fiber.copies.clear();
        fiber.copy_groups.clear();
        // Stacks that end at the same place of a page would share cache lines.
        fiber.stack = stacks[i]->begin();
        fiber.stack_pointer = first_frame(stacks[i]->end() - (i * 7 % 61) * 192);
    }
    std::memset(&all_threads, 0, sizeof(all_threads));
    std::memset(named, 0, sizeof(named));
    std::memset(&at_gate, 0, sizeof(at_gate));
    gate_closed = closed;
    triggers_early = false;
    watch_begin(*this);
    static_shared.clear();
    std::memset(statics.begin(), 0xFF, static_bytes);
    static_bytes = 0;
    const size_t room = (of.shared_bytes + 1023) / 1024 * 1024;
    dynamic_begin = dynamic.end() - room;
    std::memset(dynamic_begin, 0xFF, room);
}

void Block::run() {
    running = this;
    current_block = index;
    current_block_threads = {grid->kernel->threads, 1, 1};
    current_grid = grid->blocks;
    current = ready_in_random_warp(*this);
    emulator_switch(&host_stack_pointer, current->stack_pointer);
}

void Block::open_gate() {
    running = this;
    gate_closed = false;
    wake(at_gate);
}

void Block::check_end() {
    running = this;
    check_hopper_block();
    const u8* used_end = dynamic_begin + grid->shared_bytes;
    for (const u8* byte = used_end; byte < dynamic.end(); byte++) {
        if (*byte != 0xFF) {
            fail("written past the end of dynamic shared memory, %td bytes after it", byte - used_end);
        }
    }
}

}  // namespace emulated
