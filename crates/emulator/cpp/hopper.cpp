// Barriers in shared memory, and bulk copies that report to them: as late as the
// waits allow, in any order, now and then as early as they may.
#include "hopper_state.h"

#include "hopper.cuh"

namespace emulated {

constexpr u64 MARK = 0x5EED;
constexpr long long TRANSACTIONS_MAX = (1 << 20) - 1;
constexpr u32 REGISTERS_OF_SM = 65536;

BlockHopper& hopper() {
    BlockHopper& state = *running->hopper;
    if (!state.used) {
        state.used = true;
        state.copies.clear();
        state.barriers.clear();
        state.hidden.clear();
        state.for_warpgroup = Waiting{};
        state.threads.resize(running->fibers.size());
        for (ThreadHopper& thread : state.threads) {
            thread.fenced = false;
            thread.registers = 0;
            thread.wgmmas = 0;
            thread.groups = 0;
            thread.pending.clear();
            thread.accumulators.clear();
        }
    }
    return state;
}

ThreadHopper& thread_hopper() {
    return hopper().threads[current->index.x];
}

// --- Barriers ----------------------------------------------------------------

static Mbarrier* barrier_at(const char* what, u64* word) {
    check_shared(what, word, sizeof(u64), sizeof(u64));
    Mbarrier* barrier = reinterpret_cast<Mbarrier*>(word);
    if (barrier->mark != MARK) {
        fail("%s: there is no barrier at %p: mbarrier_init() has not been called, or it was overwritten", what,
             static_cast<void*>(word));
    }
    return barrier;
}

static MbarrierState& state_of(Mbarrier* barrier) {
    for (MbarrierState& state : hopper().barriers) {
        if (state.barrier == barrier) {
            return state;
        }
    }
    hopper().barriers.push_back({barrier, Waiting{}, Seen{}});
    return hopper().barriers.back();
}

static void end_phase_if_due(Mbarrier* barrier) {
    if (barrier->pending > 0 || barrier->transactions != 0) {
        return;
    }
    barrier->parity ^= 1;
    barrier->pending = barrier->arrivals;
    wake(state_of(barrier).waiting);
}

static void add_transactions(Mbarrier* barrier, long long bytes) {
    const long long sum = barrier->transactions + bytes;
    if (sum > TRANSACTIONS_MAX || sum < -TRANSACTIONS_MAX) {
        fail("a barrier cannot await %lld bytes", sum);
    }
    barrier->transactions = sum;
}

static void arrive_at(const char* what, Mbarrier* barrier) {
    if (barrier->pending == 0) {
        fail("%s: the phase has had its %u arrivals and awaits %d bytes", what, (u32)barrier->arrivals,
             (int)barrier->transactions);
    }
    barrier->pending--;
    watch_release(state_of(barrier).seen);
    end_phase_if_due(barrier);
}

void init_mbarrier(u64* word, u32 arrivals) {
    check_shared("mbarrier_init", word, sizeof(u64), sizeof(u64));
    Mbarrier* barrier = reinterpret_cast<Mbarrier*>(word);
    if (arrivals == 0 || arrivals > MAX_THREADS) {
        fail("mbarrier_init: %u arrivals", arrivals);
    }
    if (barrier->mark == MARK) {
        fail("mbarrier_init: there is a barrier at %p already", static_cast<void*>(word));
    }
    *barrier = Mbarrier{arrivals, arrivals, 0, 0, MARK};
    hopper().hidden.push_back(barrier);
}

void show_mbarriers() {
    hopper().hidden.clear();
}

void arrive_mbarrier(u64* word) {
    arrive_at("mbarrier_arrive", barrier_at("mbarrier_arrive", word));
    take_turns();
}

void expect_mbarrier(u64* word, u32 bytes) {
    Mbarrier* barrier = barrier_at("mbarrier_expect", word);
    add_transactions(barrier, bytes);
    arrive_at("mbarrier_expect", barrier);
    take_turns();
}

bool is_over(u64* word, u32 parity) {
    const Mbarrier* barrier = barrier_at("mbarrier_wait", word);
    if (parity > 1) {
        fail("mbarrier_wait: parity %u is not 0 or 1", parity);
    }
    return barrier->parity != parity;
}

void wait_mbarrier(u64* word, u32 parity) {
    BlockHopper& state = hopper();
    while (!is_over(word, parity)) {
        if (!state.copies.empty() && random_word() % 4 == 0) {
            finish_bulk_copy();
            continue;
        }
        wait_in(state_of(reinterpret_cast<Mbarrier*>(word)).waiting, "mbarrier_wait");
    }
    watch_acquire(state_of(reinterpret_cast<Mbarrier*>(word)).seen);
}

// --- Copies ------------------------------------------------------------------

static void copy_box(const BulkCopy& copy) {
    const EmulatedMap& map = *reinterpret_cast<const EmulatedMap*>(copy.map);
    u8* base = running->dynamic_begin;
    const u32 start = (u32)(copy.to - base);
    const long long columns_left = (long long)map.cols - copy.column;
    for (u32 r = 0; r < map.box_rows; r++) {
        const long long row = (long long)copy.row + r;
        const bool row_is_inside = row >= 0 && row < (long long)map.rows;
        for (u32 chunk = 0; chunk < 8; chunk++) {
            u16 elements[8] = {};
            for (int i = 0; row_is_inside && i < 8; i++) {
                const long long column = (long long)chunk * 8 + i;
                if (column < columns_left && copy.column + column >= 0) {
                    const u64 from = map.address + (u64)row * map.row_bytes + (u64)(copy.column + column) * 2;
                    std::memcpy(&elements[i], reinterpret_cast<const void*>(from), 2);
                }
            }
            std::memcpy(base + swizzle_128(start + r * 128 + chunk * 16), elements, 16);
        }
    }
}

bool finish_bulk_copy() {
    BlockHopper& state = *running->hopper;
    if (!state.used || state.copies.empty()) {
        return false;
    }
    const size_t which = random_word() % state.copies.size();
    const BulkCopy copy = state.copies[which];
    state.copies.erase(state.copies.begin() + (long)which);
    if (copy.map) {
        copy_box(copy);
    } else {
        std::memcpy(copy.to, copy.from, copy.bytes);
    }
    watch_join(state_of(copy.barrier).seen, copy.seen);
    add_transactions(copy.barrier, -(long long)copy.bytes);
    end_phase_if_due(copy.barrier);
    return true;
}

static void begin_bulk_copy(BulkCopy copy) {
    BlockHopper& state = hopper();
    watch(copy.to, copy.bytes, Access::BULK_WRITE);
    watch_release(copy.seen);
    for (const Mbarrier* hidden : state.hidden) {
        if (hidden == copy.barrier) {
            fail("a copy reports to a barrier that was made without fence_mbarrier_init() after it");
        }
    }
    state.copies.push_back(copy);
    if (running->eager_copies) {
        finish_bulk_copy();
    }
}

void begin_box_copy(void* shared, const TensorMap* map, u64* word, int column, int row) {
    const EmulatedMap& box = *reinterpret_cast<const EmulatedMap*>(map);
    if (box.mark != EMULATED_MAP_MARK || (uintptr_t)map % alignof(TensorMap)) {
        fail("tma_load: no TensorMap at %p, or not aligned to 128", static_cast<const void*>(map));
    }
    const u32 bytes = box.box_rows * 128;
    check_shared("tma_load", shared, bytes, 1024);
    begin_bulk_copy({static_cast<u8*>(shared), nullptr, map->words, column, row, bytes,
                     barrier_at("tma_load", word), Seen{}});
}

void begin_plain_copy(void* shared, const void* global, u32 bytes, u64* word) {
    check_shared("bulk_load", shared, bytes, 16);
    if (bytes == 0 || bytes % 16 || (uintptr_t)global % 16) {
        fail("bulk_load: %u bytes from %p: both must be multiples of 16", bytes, global);
    }
    begin_bulk_copy({static_cast<u8*>(shared), static_cast<const u8*>(global), nullptr, 0, 0, bytes,
                     barrier_at("bulk_load", word), Seen{}});
}

// --- Registers ---------------------------------------------------------------

// What each thread of the block has when it begins.
static u32 registers_at_launch() {
    return std::min(REGISTERS_OF_SM / (u32)hopper().threads.size(), 255u) / 8 * 8;
}

void set_registers(u32 registers, bool is_more) {
    ThreadHopper& thread = thread_hopper();
    const u32 before = thread.registers ? thread.registers : registers_at_launch();
    if (is_more ? registers < before : registers > before) {
        fail("setmaxnreg_%s<%u>: the thread has %u registers", is_more ? "inc" : "dec", registers, before);
    }
    thread.registers = registers;
    int nothing = 0;
    together("setmaxnreg", 0xFFFFFFFFu, &nothing, [](int**) {});
}

// --- Ends --------------------------------------------------------------------

void check_hopper_thread() {
    if (!running->hopper->used) {
        return;
    }
    const ThreadHopper& thread = thread_hopper();
    if (!thread.pending.empty()) {
        fail("the thread ended, and %zu wgmmas are unfinished", thread.pending.size());
    }
}

void check_hopper_block() {
    BlockHopper& state = *running->hopper;
    if (!state.used) {
        return;
    }
    if (!state.copies.empty()) {
        fail("the block ended, and %zu bulk copies are unfinished", state.copies.size());
    }
    const u32 threads = (u32)state.threads.size();
    const u32 at_launch = registers_at_launch();
    u32 registers = 0;
    for (u32 i = 0; i < threads; i++) {
        const ThreadHopper& thread = state.threads[i];
        const ThreadHopper& first = state.threads[i / WARPGROUP * WARPGROUP];
        if (thread.wgmmas != first.wgmmas || thread.registers != first.registers) {
            fail("threads %u and %u are of one warpgroup, and differ in wgmmas or setmaxnreg", i / WARPGROUP * WARPGROUP,
                 i);
        }
        registers += thread.registers ? thread.registers : at_launch;
    }
    if (registers > at_launch * threads) {
        fail("setmaxnreg: the warpgroups want %u registers, the block has %u", registers, at_launch * threads);
    }
    state.used = false;
}

}  // namespace emulated
