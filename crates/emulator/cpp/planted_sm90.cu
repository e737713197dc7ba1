// Kernels with a bug of Hopper's kind, or without one: the emulator must see it.
#include "hopper.cuh"

struct PlantedWgmmaArgs {
    const u32* in;
    float* out;
    u32 bug;
    u32 pad;
};

// 64 by 8: the first 16 words of each of 64 rows, times 8 rows of the same.
KERNEL(planted_wgmma, PlantedWgmmaArgs, 128) {
#ifdef HOPPER
    DYN_SHARED(bytes);
    pdl_wait();
    const u32 thread = threadIdx.x, lane = thread % 32, group = lane / 4, pair = lane % 4;
    u32* rows = reinterpret_cast<u32*>(bytes);
    for (u32 i = thread; i < 64 * 8; i += 128) {
        const u32 row = i / 8, word = i % 8;
        // Words of 16 bytes change places by the row, unless that is the bug.
        const u32 place = args.bug == 1 ? word / 4 : word / 4 ^ row % 8;
        rows[row * 32 + place * 4 + word % 4] = args.in[i];
    }
    if (args.bug != 4) {
        fence_proxy_async();
    }
    __syncthreads();
    float d[4];
    const u32* words = args.in + (thread / 32 * 16 + group) * 8 + pair;
    u32 a[4] = {words[0], words[64], words[4], words[68]};
    wgmma_fence();
    // Where the swizzle begins is where a multiple of 1024 is, or that is the bug.
    wgmma<8>(d, a, desc128(args.bug == 5 ? bytes + 128 : bytes), false);
    wgmma_commit();
    if (args.bug == 2) {
        a[0] = 0;
    }
    if (args.bug != 3) {
        wgmma_wait<0>();
        pin(d);
    }
    float* out = args.out + (thread / 32 * 16 + group) * 8 + pair * 2;
    out[0] = d[0];
    out[1] = d[1];
    out[64] = d[2];
    out[65] = d[3];
    wgmma_wait<0>();
    // Keeps the registers in use, so that a compiler has no other place for them.
    if (a[0] == 1 && a[1] == 2) {
        out[0] = 0.0f;
    }
#endif
}

struct PlantedBulkArgs {
    const u32* in;
    u32* out;
    u32 bug;
    u32 pad;
};

// Two copies of 128 words to one place, the second when all have read the first.
KERNEL(planted_bulk, PlantedBulkArgs, 128) {
#ifdef HOPPER
    DYN_SHARED(bytes);
    SHARED(arrived, u64);
    const u32 thread = threadIdx.x;
    if (thread == 0) {
        mbarrier_init(&arrived, 1);
        fence_mbarrier_init();
    }
    __syncthreads();
    pdl_wait();
    u32 sum = 0;
    for (u32 round = 0; round < 2; round++) {
        if (thread == 0) {
            mbarrier_expect(&arrived, 512);
            bulk_load(bytes, args.in + round * 128, 512, &arrived);
        }
        mbarrier_wait(&arrived, round);
        sum += reinterpret_cast<const u32*>(bytes)[thread] * (round + 1);
        if (args.bug != 1) {
            fence_proxy_async();
        }
        __syncthreads();
    }
    args.out[thread] = sum;
#endif
}

struct PlantedRegistersArgs {
    u32* out;
    u32 bug;
    u32 pad;
};

// A warpgroup gives registers away, and another takes them; or that is the bug.
KERNEL(planted_registers, PlantedRegistersArgs, 384, 1) {
#ifdef HOPPER
    pdl_wait();
    if (threadIdx.x < 128) {
        if (args.bug == 1) {
            setmaxnreg_inc<40>();
        } else {
            setmaxnreg_dec<40>();
        }
    } else {
        setmaxnreg_inc<232>();
    }
    args.out[threadIdx.x] = threadIdx.x;
#endif
}
