// How one of several blocks finds out that it is the last, and so may go on with
// what all of them have written.
#pragma once
#include "gpu.cuh"

// Called by all threads of each of `count` blocks, each once: true in the block
// that calls last, which from then on sees what all of them had written before.
// The counter is 0 before the first call and after the last.
DEVICE bool is_last_block(u32* counter, u32 count) {
    SHARED(is_last, bool);
    __syncthreads();
    if (threadIdx.x == 0) {
        is_last = count_in_order(counter) + 1 == count;
        if (is_last) *counter = 0;
    }
    __syncthreads();
    return is_last;
}
