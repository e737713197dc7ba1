// What GPUs write to each other. Each emulated GPU runs on a thread of its own;
// words that cross arrive late and in any order, as between real ones.
#pragma once

#include "block.h"

namespace emulated {

// Lets all arrive that this thread's GPU has written to others: a launch is done.
void deliver_all();

}  // namespace emulated

void store_system16(void* global, uint4 value);
uint4 load_system16(const void* global);
void store_release_system(u32* global, u32 value);
u32 load_acquire_system(const u32* global);
u32 load_relaxed_system(const u32* global);
void store_relaxed_system(u32* global, u32 value);
u64 nanoseconds();
// Lets the other GPUs' threads run.
void look_again();
