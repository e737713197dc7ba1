// Running kernels from C++: `emulated::launch` is for small tests; the Rust side
// calls the functions below it.
#pragma once

#include "block.h"

namespace emulated {

struct LaunchCall {
    const char* kernel;
    const void* args;
    size_t args_bytes;
    u32 threads;
    u32 grid[3];
    u32 shared_bytes;
};

// What of a GPU matters to a launch.
struct Machine {
    u64 seed;
    u32 shared_bytes_max;
    u32 is_hopper;
};

// Runs launches in order; with the same seed in the same way. Returns an empty
// string, or what is wrong with a launch: then none has run.
extern "C" const char* emulator_run(const LaunchCall* calls, size_t count, const Machine* machine);

// Tells what a kernel takes and in how many threads it runs; 0 if there is none
// of that name.
extern "C" int emulator_find(const char* kernel, size_t* args_bytes, u32* threads);

// Memory between guarding pages, filled with 0xFF; its end is close to the guard.
extern "C" void* emulator_alloc(size_t bytes);
extern "C" void emulator_free(void* memory);

// Runs one kernel by name, and ends the process if that is not possible.
template <class Args>
inline void launch(const char* kernel, u32 threads, Index grid, u32 shared_bytes, const Args& args, u64 seed = 1) {
    const LaunchCall call{kernel, &args, sizeof(Args), threads, {grid.x, grid.y, grid.z}, shared_bytes};
    const Machine machine{seed, 227 * 1024, 1};
    const char* problem = emulator_run(&call, 1, &machine);
    if (*problem) {
        std::fprintf(stderr, "%s\n", problem);
        std::abort();
    }
}

}  // namespace emulated
