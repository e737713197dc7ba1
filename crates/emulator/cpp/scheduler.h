// How the fibers of a block are run: what only the emulator's own files see.
#pragma once

#include "block.h"

#include <memory>

namespace emulated {

constexpr u32 MAX_THREADS = LANES * MAX_WARPS;
constexpr size_t STACK_BYTES = 128 * 1024;
constexpr size_t DYNAMIC_SHARED_MAX = 256 * 1024;
constexpr size_t STATIC_SHARED_MAX = 48 * 1024;

// Memory between pages that nobody may touch; it begins nowhere if the host has
// no room for it.
class Guarded {
public:
    explicit Guarded(size_t bytes);
    ~Guarded();
    Guarded(const Guarded&) = delete;
    Guarded& operator=(const Guarded&) = delete;

    u8* begin() const { return begin_; }
    u8* end() const { return begin_ + bytes_; }
    size_t bytes() const { return bytes_; }
    // True if the address is in one of the guarding pages.
    bool guards(const void* address) const;

private:
    u8* begin_;
    size_t bytes_;
};

// The block's own variables that SHARED declares.
struct StaticShared {
    const void* key;
    u32 offset;
};

// One launch, for all its blocks.
struct Grid {
    const Kernel* kernel;
    const void* args;
    Index blocks;
    u32 shared_bytes;
    u32 shared_bytes_max;
};

struct BlockHopper;

struct Block {
    const Grid* grid = nullptr;
    Index index{};
    u64 random = 0;
    // Fibers that have not ended.
    u32 alive = 0;
    u32 warps_used = 0;
    Warp warps[MAX_WARPS];
    std::vector<Fiber> fibers;
    std::vector<Guarded*> stacks;

    // What makes one run of a block differ from another.
    bool eager_copies = false;
    u32 turns_in_16 = 0;
    u32 first_lane = 0;

    Waiting all_threads;
    Waiting named[NAMED_BARRIERS];
    u32 named_threads[NAMED_BARRIERS];

    // Closed while an earlier kernel has still to run.
    bool gate_closed = false;
    Waiting at_gate;
    // Lets the next kernel begin while it waits itself, so perhaps before the
    // kernel before it has begun to write.
    bool triggers_early = false;

    Guarded dynamic{DYNAMIC_SHARED_MAX};
    Guarded statics{STATIC_SHARED_MAX};
    u8* dynamic_begin = nullptr;
    u32 static_bytes = 0;
    std::vector<StaticShared> static_shared;
    std::unique_ptr<BlockHopper> hopper;
    std::shared_ptr<Watch> watch;

    void* host_stack_pointer = nullptr;

    Block();
    ~Block();
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;

    // Makes the threads of a block, none of which has run.
    void begin(const Grid& grid, Index index, u64 seed, bool gate_closed);
    // Runs until all threads have ended, or none can go on before the gate opens.
    void run();
    void open_gate();
    // Ends the process unless the block left everything as it should.
    void check_end();
};

// The block whose fibers run on this host thread.
extern __thread Block* running;

void wait_in(Waiting& waiting, const char* for_what);
void wake(Waiting& waiting);

// Finishes one of the block's bulk copies; false if there is none.
bool finish_bulk_copy();
// End the process if a thread, or the block, left something unfinished.
void check_hopper_thread();
void check_hopper_block();

// Makes this host thread say where a kernel touches memory that is not its own.
void catch_faults();
// Ends the process if something was written between the end of an allocation and
// the guard behind it.
void check_global_ends();
// Says where an address is, seen from the global memory that is in use.
void describe_global(const void* address, char* text, size_t room);

}  // namespace emulated
