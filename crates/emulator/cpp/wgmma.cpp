// Products of a warpgroup: each warp's part happens when that warp waits for it, and
// reads registers and shared memory as these are then. Until its own wait, a
// thread finds NaN in its accumulators.
#include "hopper_state.h"

#include "hopper.cuh"

namespace emulated {

// --- Products ----------------------------------------------------------------

void fence_wgmma() {
    thread_hopper().fenced = true;
}

static Accumulators& take_accumulators(ThreadHopper& thread, float* d, u32 count) {
    for (Accumulators& taken : thread.accumulators) {
        if (taken.registers == d) {
            if (taken.count != count) {
                fail("wgmma: the same accumulators are in use with another N");
            }
            return taken;
        }
    }
    thread.accumulators.push_back({d, count, 0, {}});
    Accumulators& taken = thread.accumulators.back();
    std::memcpy(taken.values, d, count * sizeof(float));
    std::memset(d, 0xFF, count * sizeof(float));
    return taken;
}

void begin_wgmma(u32 columns, float* d, const u32* a, u64 a_description, u64 b_description, bool accumulate,
                 bool transposed) {
    ThreadHopper& thread = thread_hopper();
    if (running->fibers.size() < (current->index.x / WARPGROUP + 1) * WARPGROUP) {
        fail("wgmma: the thread's warpgroup has less than four warps");
    }
    if (!thread.fenced) {
        fail("wgmma: no wgmma_fence() since the last wgmma_commit()");
    }
    take_accumulators(thread, d, columns / 2).users++;
    thread.pending.push_back(
        {thread.groups, columns, d, a, a_description, b_description, accumulate, transposed});
    thread.wgmmas++;
}

void commit_wgmmas() {
    ThreadHopper& thread = thread_hopper();
    thread.groups++;
    thread.fenced = false;
    wake(hopper().for_warpgroup);
}

// What a description of a matrix in shared memory says.
struct Description {
    u32 start, chunk_bytes, group_bytes;

    explicit Description(u64 bits)
        : start((u32)(bits & 0x3FFF) << 4),
          chunk_bytes((u32)(bits >> 16 & 0x3FFF) << 4),
          group_bytes((u32)(bits >> 32 & 0x3FFF) << 4) {
        // All but the three fields; among them where the swizzle begins, which is
        // at a multiple of 1024.
        if ((bits & ~0x00003FFF3FFF3FFFull) != 1ull << 62) {
            fail("wgmma: a description is not one of desc128()");
        }
        if (group_bytes != 1024) {
            fail("wgmma: rows do not follow each other every 128 bytes");
        }
    }

    // Of rows along which k runs: 16 of the 64 columns of such rows.
    void check_rows() const {
        if (start % 32 || start % 1024 >= 128) {
            fail("wgmma: rows begin at byte %u, which is not 0, 32, 64 or 96 behind a multiple of 1024", start);
        }
    }

    void check_columns(u32 columns) const {
        if (start % 1024) {
            fail("wgmma: the transposed rows begin at byte %u, no multiple of 1024", start);
        }
        if (columns > 64 && (chunk_bytes == 0 || chunk_bytes % 1024)) {
            fail("wgmma: 64 columns and the next 64 are %u bytes apart, no multiple of 1024", chunk_bytes);
        }
    }
};

// 16 bytes at an offset in rows that are swizzled.
static void read_eight(u32 offset, float (&elements)[8]) {
    const u32 at = swizzle_128(offset);
    if (at + 16 > running->grid->shared_bytes) {
        fail("wgmma: reads past dynamic shared memory, at byte %u of %u", at, running->grid->shared_bytes);
    }
    watch(running->dynamic_begin + at, 16, Access::WGMMA_READ);
    u16 bits[8];
    std::memcpy(bits, running->dynamic_begin + at, 16);
    for (int i = 0; i < 8; i++) {
        elements[i] = __uint_as_float((u32)bits[i] << 16);
    }
}

// Rows of 16 elements, k along each.
static void read_rows(const Description& from, u32 first_row, u32 rows, float* to, u32 row_step, u32 k_step) {
    from.check_rows();
    for (u32 r = 0; r < rows; r++) {
        const u32 row = first_row + r;
        for (u32 half = 0; half < 2; half++) {
            float elements[8];
            read_eight(from.start + row / 8 * from.group_bytes + row % 8 * 128 + half * 16, elements);
            for (u32 i = 0; i < 8; i++) {
                to[r * row_step + (half * 8 + i) * k_step] = elements[i];
            }
        }
    }
}

// As many rows as there are k, each of all columns.
static void read_columns(const Description& from, u32 columns, float* to) {
    from.check_columns(columns);
    for (u32 k = 0; k < 16; k++) {
        for (u32 column = 0; column < columns; column += 8) {
            float elements[8];
            read_eight(from.start + column / 64 * from.chunk_bytes + k / 8 * from.group_bytes + k % 8 * 128 +
                           column % 64 * 2,
                       elements);
            std::memcpy(to + k * columns + column, elements, sizeof(elements));
        }
    }
}

static void check_alike(const PendingWgmma& mine, const PendingWgmma& first) {
    if (mine.columns != first.columns || mine.b_description != first.b_description || !mine.a != !first.a ||
        mine.a_description != first.a_description || mine.accumulate != first.accumulate ||
        mine.transposed != first.transposed) {
        fail("wgmma: the lanes of a warp give different descriptions");
    }
}

static Accumulators& accumulators_of(ThreadHopper& thread, const float* d) {
    for (Accumulators& taken : thread.accumulators) {
        if (taken.registers == d) {
            return taken;
        }
    }
    fail("wgmma: accumulators are lost");
}

// Gives results back once no wgmma that has yet to happen adds to them.
static void release_accumulators(ThreadHopper& thread, float* d) {
    Accumulators& taken = accumulators_of(thread, d);
    taken.users--;
    if (taken.users == 0) {
        std::memcpy(taken.registers, taken.values, taken.count * sizeof(float));
        taken = thread.accumulators.back();
        thread.accumulators.pop_back();
    }
}

// A warp's part of one wgmma: 16 rows of the left matrix and of the result.
static void finish_wgmma(ThreadHopper* lanes, u32 warp_of_group, size_t which) {
    const PendingWgmma& first = lanes[0].pending[which];
    const u32 columns = first.columns;
    alignas(32) float left[16][16];
    alignas(32) float right[16 * 256];
    alignas(32) float sums[16][256];

    if (!first.a) {
        read_rows(Description(first.a_description), warp_of_group * 16, 16, &left[0][0], 16, 1);
    }
    if (first.transposed) {
        read_columns(Description(first.b_description), columns, right);
    } else {
        read_rows(Description(first.b_description), 0, columns, right, 1, columns);
    }

    Accumulators* accumulators[LANES];
    for (u32 lane = 0; lane < LANES; lane++) {
        PendingWgmma& mine = lanes[lane].pending[which];
        check_alike(mine, first);
        const u32 group = lane / 4, pair = lane % 4 * 2;
        if (mine.a) {
            put_pair(&left[group][pair], mine.a[0]);
            put_pair(&left[group + 8][pair], mine.a[1]);
            put_pair(&left[group][pair + 8], mine.a[2]);
            put_pair(&left[group + 8][pair + 8], mine.a[3]);
        }
        accumulators[lane] = &accumulators_of(lanes[lane], mine.d);
        const float* values = accumulators[lane]->values;
        for (u32 j = 0; j < columns / 8; j++) {
            std::memcpy(&sums[group][8 * j + pair], values + 4 * j, 8);
            std::memcpy(&sums[group + 8][8 * j + pair], values + 4 * j + 2, 8);
        }
    }
    if (!first.accumulate) {
        std::memset(sums, 0, sizeof(sums));
    }
    for (u32 row = 0; row < 16; row++) {
        for (u32 column = 0; column < columns; column += 8) {
            Floats8 sum = *reinterpret_cast<const Floats8*>(&sums[row][column]);
            for (u32 k = 0; k < 16; k++) {
                sum += left[row][k] * *reinterpret_cast<const Floats8*>(&right[k * columns + column]);
            }
            *reinterpret_cast<Floats8*>(&sums[row][column]) = sum;
        }
    }
    for (u32 lane = 0; lane < LANES; lane++) {
        const u32 group = lane / 4, pair = lane % 4 * 2;
        float* values = accumulators[lane]->values;
        for (u32 j = 0; j < columns / 8; j++) {
            std::memcpy(values + 4 * j, &sums[group][8 * j + pair], 8);
            std::memcpy(values + 4 * j + 2, &sums[group + 8][8 * j + pair], 8);
        }
    }
}

// True if every thread of the warpgroup has ended so many groups: they multiply
// together or not at all.
static bool all_committed(const ThreadHopper* warpgroup, u64 groups) {
    for (u32 i = 0; i < WARPGROUP; i++) {
        if (warpgroup[i].groups < groups) {
            return false;
        }
    }
    return true;
}

// The warp's own part: of the others' nothing is promised, so they may read shared
// memory as late as they wait.
static void finish_groups(ThreadHopper* warpgroup, u32 warp, u64 groups) {
    ThreadHopper* lanes = warpgroup + warp * LANES;
    for (size_t which = 0; which < lanes[0].pending.size(); which++) {
        if (lanes[0].pending[which].group < groups) {
            finish_wgmma(lanes, warp, which);
        }
    }
}

static void check_same_wgmmas(ThreadHopper* const* lanes) {
    for (u32 lane = 0; lane < LANES; lane++) {
        if (lanes[lane]->groups != lanes[0]->groups || lanes[lane]->wgmmas != lanes[0]->wgmmas) {
            fail("wgmma_wait: the lanes of a warp have begun different wgmmas");
        }
    }
}

void wait_wgmmas(u32 groups_left) {
    ThreadHopper& mine = thread_hopper();
    together("wgmma_wait", 0xFFFFFFFFu, &mine, [groups_left](ThreadHopper** lanes) {
        check_same_wgmmas(lanes);
        if (lanes[0]->groups <= groups_left) {
            return;
        }
        const u64 groups = lanes[0]->groups - groups_left;
        ThreadHopper* warpgroup = &hopper().threads[current->index.x / WARPGROUP * WARPGROUP];
        while (!all_committed(warpgroup, groups)) {
            wait_in(hopper().for_warpgroup, "the wgmmas of other warps");
        }
        finish_groups(warpgroup, current->index.x / LANES % (WARPGROUP / LANES), groups);
        for (u32 lane = 0; lane < LANES; lane++) {
            std::vector<PendingWgmma>& pending = lanes[lane]->pending;
            size_t released = 0;
            while (released < pending.size() && pending[released].group < groups) {
                release_accumulators(*lanes[lane], pending[released].d);
                released++;
            }
            pending.erase(pending.begin(), pending.begin() + (long)released);
        }
    });
}

}  // namespace emulated
