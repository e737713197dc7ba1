// Launches: finding the kernel, checking what it is given, and running its
// blocks in a random order.
#include "launch.h"

#include "scheduler.h"
#include "system.h"

#include <memory>
#include <string>

namespace emulated {

static const Kernel* kernels;

// As much as anything in them needs.
constexpr size_t ARGS_ALIGNMENT = 128;

Kernel::Kernel(const char* name_, void (*entry_)(const void*), size_t args_bytes_, u32 threads_, bool needs_hopper_)
    : name(name_),
      entry(entry_),
      args_bytes(args_bytes_),
      threads(threads_),
      needs_hopper(needs_hopper_),
      next(kernels) {
    kernels = this;
}

// Launches under way at a time.
constexpr size_t WINDOW = 4;

// A host thread's blocks: one runs, and one of each next kernel may have begun.
static Block& block_of_this_thread(size_t which) {
    static thread_local std::unique_ptr<Block> blocks[WINDOW];
    if (!blocks[which]) {
        blocks[which].reset(new Block());
    }
    return *blocks[which];
}

static const Kernel* find(const char* name, std::string& problem) {
    const Kernel* found = nullptr;
    for (const Kernel* kernel = kernels; kernel; kernel = kernel->next) {
        if (std::strcmp(kernel->name, name) == 0) {
            if (found) {
                problem = std::string("two kernels are called ") + name;
                return nullptr;
            }
            found = kernel;
        }
    }
    if (!found) {
        problem = std::string("no kernel is called ") + name;
    }
    return found;
}

static const Kernel* check(const LaunchCall& call, const Machine& machine, std::string& problem) {
    const Kernel* kernel = find(call.kernel, problem);
    if (!kernel) {
        return nullptr;
    }
    const std::string name = call.kernel;
    if (kernel->needs_hopper && !machine.is_hopper) {
        problem = name + " is for sm_90a alone";
    } else if (call.args_bytes != kernel->args_bytes) {
        problem = name + " takes " + std::to_string(kernel->args_bytes) + " bytes of arguments, not " +
                  std::to_string(call.args_bytes);
    } else if (call.threads != kernel->threads) {
        problem = name + " runs in blocks of " + std::to_string(kernel->threads) + " threads, not " +
                  std::to_string(call.threads);
    } else if (call.threads == 0 || call.threads % LANES || call.threads > MAX_THREADS) {
        problem = name + " has blocks of " + std::to_string(call.threads) + " threads: not whole warps, or too many";
    } else if (call.shared_bytes > machine.shared_bytes_max || call.shared_bytes > DYNAMIC_SHARED_MAX) {
        problem = name + " asks for " + std::to_string(call.shared_bytes) + " bytes of shared memory, of " +
                  std::to_string(machine.shared_bytes_max);
    } else if (call.grid[0] == 0 || call.grid[1] == 0 || call.grid[2] == 0) {
        problem = name + " has an empty grid";
    } else if (call.grid[1] > 65535 || call.grid[2] > 65535 ||
               (u64)call.grid[0] * call.grid[1] * call.grid[2] > 0x7FFFFFFFu) {
        problem = name + " has too large a grid";
    } else {
        return kernel;
    }
    return nullptr;
}

extern "C" int emulator_find(const char* name, size_t* args_bytes, u32* threads) {
    std::string problem;
    const Kernel* kernel = find(name, problem);
    if (!kernel) {
        return 0;
    }
    *args_bytes = kernel->args_bytes;
    *threads = kernel->threads;
    return 1;
}

static std::vector<u32> shuffled(u32 count, u64& random) {
    std::vector<u32> order(count);
    for (u32 i = 0; i < count; i++) {
        order[i] = i;
    }
    for (u32 i = count; i > 1; i--) {
        random = random * 6364136223846793005ull + 1442695040888963407ull;
        std::swap(order[i - 1], order[(random >> 33) % i]);
    }
    return order;
}

// A launch whose first block may have begun before launches before it ran.
struct Begun {
    Grid grid;
    std::vector<u32> order;
    std::vector<u8> args;
    u64 seed;
    Block* first;

    u64 block_seed(u32 place) const { return seed + 0xD1342543DE82EF95ull * (place + 1); }
    Index block_index(u32 place) const {
        const u32 number = order[place];
        return {number % grid.blocks.x, number / grid.blocks.x % grid.blocks.y, number / grid.blocks.x / grid.blocks.y};
    }
};

// Runs one block of the launch up to its pdl_wait(): as far as a GPU may run
// while the kernel before has still to write its results.
static void begin(Begun& launch, const LaunchCall& call, const Kernel* kernel, u32 shared_bytes_max, Block& block) {
    // Registers of arguments are not where the host's are: a kernel gets a copy.
    launch.args.assign(call.args_bytes + ARGS_ALIGNMENT, 0);
    u8* aligned = launch.args.data() + (ARGS_ALIGNMENT - (uintptr_t)launch.args.data() % ARGS_ALIGNMENT) % ARGS_ALIGNMENT;
    std::memcpy(aligned, call.args, call.args_bytes);
    launch.grid = {kernel, aligned, {call.grid[0], call.grid[1], call.grid[2]}, call.shared_bytes, shared_bytes_max};
    u64 random = launch.seed;
    launch.order = shuffled(call.grid[0] * call.grid[1] * call.grid[2], random);
    launch.first = &block;
    block.begin(launch.grid, launch.block_index(0), launch.block_seed(0), true);
    block.run();
}

static void finish(Begun& launch) {
    Block& block = *launch.first;
    if (block.alive) {
        block.open_gate();
        block.run();
    }
    block.check_end();
    for (u32 place = 1; place < launch.order.size(); place++) {
        block.begin(launch.grid, launch.block_index(place), launch.block_seed(place), false);
        block.run();
        block.check_end();
    }
    deliver_all();
    running = &block;
    check_global_ends();
    running = nullptr;
}

extern "C" const char* emulator_run(const LaunchCall* calls, size_t count, const Machine* machine) {
    static thread_local std::string problem;
    problem.clear();
    std::vector<const Kernel*> found;
    for (size_t i = 0; i < count; i++) {
        const Kernel* kernel = check(calls[i], *machine, problem);
        if (!kernel) {
            return problem.c_str();
        }
        found.push_back(kernel);
    }
    catch_faults();
    Begun launches[WINDOW];
    // Which of them are under way, in order.
    std::vector<size_t> under_way;
    const auto unused = [&] {
        size_t place = 0;
        while (std::count(under_way.begin(), under_way.end(), place)) {
            place++;
        }
        return place;
    };
    for (size_t begun = 0; begun < count || !under_way.empty();) {
        // A kernel may begin when the one before it lets it: that one has either
        // waited, so that only it is under way, or not.
        while (begun < count && under_way.size() < WINDOW &&
               (under_way.size() <= 1 || launches[under_way.back()].first->triggers_early)) {
            const size_t place = unused();
            Begun& next = launches[place];
            next.seed = (machine->seed + begun) * 0x2545F4914F6CDD1Dull;
            begin(next, calls[begun], found[begun], machine->shared_bytes_max, block_of_this_thread(place));
            under_way.push_back(place);
            begun++;
        }
        finish(launches[under_way.front()]);
        under_way.erase(under_way.begin());
    }
    running = nullptr;
    return problem.c_str();
}

}  // namespace emulated
