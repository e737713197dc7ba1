// Kernels with a bug each, which the emulator must find: with `mended` they are
// right.
#include "gpu.cuh"

struct PlantedArgs {
    const u32* in;
    u32* out;
    u32 count;
    u32 mended;
};

// Reads what another warp wrote.
KERNEL(planted_barrier, PlantedArgs, 128) {
    SHARED(values, u32[128]);
    pdl_wait();
    values[threadIdx.x] = args.in[threadIdx.x];
    if (args.mended) {
        __syncthreads();
    }
    args.out[threadIdx.x] = values[127 - threadIdx.x];
}

// Reads what another lane wrote.
KERNEL(planted_warp_barrier, PlantedArgs, 32) {
    SHARED(values, u32[32]);
    pdl_wait();
    values[threadIdx.x] = args.in[threadIdx.x];
    if (args.mended) {
        __syncwarp();
    }
    args.out[threadIdx.x] = values[31 - threadIdx.x];
}

// Overwrites what another warp may still read.
KERNEL(planted_reuse, PlantedArgs, 128) {
    SHARED(values, u32[128]);
    pdl_wait();
    u32 sum = 0;
    for (u32 round = 0; round < 4; round++) {
        values[threadIdx.x] = args.in[threadIdx.x] + round;
        __syncthreads();
        sum += values[127 - threadIdx.x] * (round + 1);
        if (args.mended) {
            __syncthreads();
        }
    }
    args.out[threadIdx.x] = sum;
}

// Reads what a copy brings before it is there.
KERNEL(planted_copy, PlantedArgs, 32) {
    SHARED(values, uint4[32]);
    pdl_wait();
    cp_async16(&values[threadIdx.x], args.in + threadIdx.x * 4, true);
    cp_async_commit();
    if (args.mended) {
        cp_async_wait<0>();
    }
    args.out[threadIdx.x] = values[threadIdx.x].y;
}

// Lets a copy overwrite what has yet to be read.
KERNEL(planted_early_copy, PlantedArgs, 32) {
    SHARED(values, uint4[32]);
    pdl_wait();
    values[threadIdx.x] = reinterpret_cast<const uint4*>(args.in)[threadIdx.x];
    __syncwarp();
    if (args.mended) {
        args.out[threadIdx.x] = values[threadIdx.x].y;
    }
    cp_async16(&values[threadIdx.x], nullptr, false);
    cp_async_commit();
    if (!args.mended) {
        args.out[threadIdx.x] = values[threadIdx.x].y;
    }
    cp_async_wait<0>();
}

// Reads what the kernel before writes, before it is done.
KERNEL(planted_early_read, PlantedArgs, 64) {
    u32 value = 0;
    if (!args.mended) {
        value = args.in[threadIdx.x];
    }
    pdl_wait();
    if (args.mended) {
        value = args.in[threadIdx.x];
    }
    args.out[threadIdx.x] = value;
}

// Some threads end without pdl_wait().
KERNEL(planted_wait, PlantedArgs, 64) {
    if (threadIdx.x == 40 && !args.mended) {
        return;
    }
    pdl_wait();
    args.out[threadIdx.x] = args.in[threadIdx.x];
}

// Reads a whole warp's words where there are fewer.
KERNEL(planted_bounds, PlantedArgs, 32) {
    pdl_wait();
    const u32 at = blockIdx.x * 4096 + threadIdx.x;
    if (!args.mended || at < args.count) {
        args.out[threadIdx.x] = args.in[at];
    }
}

// Writes a word past its output's end, where no guard is.
KERNEL(planted_global_end, PlantedArgs, 32) {
    pdl_wait();
    args.out[threadIdx.x] = args.in[threadIdx.x];
    if (!args.mended && threadIdx.x == 31) {
        args.out[32] = 1;
    }
}

// Lanes of a warp are at two barriers.
KERNEL(planted_divergence, PlantedArgs, 64) {
    pdl_wait();
    if (args.mended || threadIdx.x < 16) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    args.out[threadIdx.x] = args.in[threadIdx.x];
}

// A warp does not come to the barrier at which the other one waits for a shuffle's
// lanes: nobody can go on.
KERNEL(planted_deadlock, PlantedArgs, 64) {
    pdl_wait();
    u32 value = args.in[threadIdx.x];
    if (args.mended || threadIdx.x != 5) {
        value = __shfl_xor_sync(0xFFFFFFFFu, value, 1);
    } else {
        named_barrier(1, 64);
    }
    args.out[threadIdx.x] = value;
}

// A lane has ended that a shuffle is to read.
KERNEL(planted_ended_lane, PlantedArgs, 32) {
    pdl_wait();
    if (!args.mended && threadIdx.x == 31) {
        return;
    }
    args.out[threadIdx.x] = __shfl_xor_sync(0xFFFFFFFFu, args.in[threadIdx.x], 1);
}

// Lanes of a warp are at two operations.
KERNEL(planted_mixed_lanes, PlantedArgs, 32) {
    pdl_wait();
    if (args.mended || threadIdx.x < 16) {
        args.out[threadIdx.x] = __shfl_xor_sync(0xFFFFFFFFu, args.in[threadIdx.x], 1);
    } else {
        args.out[threadIdx.x] = __ballot_sync(0xFFFFFFFFu, 1);
    }
}

// Writes past its dynamic shared memory, of 1000 bytes.
KERNEL(planted_shared_end, PlantedArgs, 32) {
    DYN_SHARED(bytes);
    pdl_wait();
    u32* words = reinterpret_cast<u32*>(bytes);
    words[(args.mended ? 218 : 219) + threadIdx.x] = threadIdx.x;
    __syncwarp();
    args.out[threadIdx.x] = args.in[threadIdx.x];
}

// Loads a matrix from an address that is none of a row.
KERNEL(planted_alignment, PlantedArgs, 32) {
    SHARED(rows, uint4[33]);
    pdl_wait();
    rows[threadIdx.x] = reinterpret_cast<const uint4*>(args.in)[threadIdx.x];
    __syncwarp();
    u32 fragment[4];
    const unsigned char* row = reinterpret_cast<const unsigned char*>(&rows[threadIdx.x]);
    ldmatrix_x4(fragment, row + (args.mended ? 0 : 8));
    args.out[threadIdx.x] = fragment[0];
}

// Loads a vector from an address that is no multiple of its size.
KERNEL(planted_vector, PlantedArgs, 32) {
    pdl_wait();
    const uint2* pairs = reinterpret_cast<const uint2*>(args.in + (args.mended ? 0 : 1));
    args.out[threadIdx.x] = pairs[threadIdx.x].x;
}

// Names an address that is no multiple of 16 for a copy of nothing.
KERNEL(planted_copied_zeros, PlantedArgs, 32) {
    SHARED(values, uint4[32]);
    pdl_wait();
    cp_async16(&values[threadIdx.x], args.in + (args.mended ? 4 : 2), false);
    cp_async_commit();
    cp_async_wait<0>();
    args.out[threadIdx.x] = values[threadIdx.x].x;
}

// Lets the next kernel begin, which then reads too early what the one before this
// one writes.
KERNEL(planted_early_trigger, PlantedArgs, 64) {
    if (!args.mended) pdl_trigger();
    pdl_wait();
    pdl_trigger();
    args.out[threadIdx.x] = args.in[threadIdx.x];
}
