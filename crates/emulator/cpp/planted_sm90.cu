// A wgmma with a bug of Hopper's kind, or without one: the emulator must see it.
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
    wgmma<8>(d, a, desc128(bytes), false);
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
